// What the entry points of every device share: the arguments of a call, read and checked once.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "geometry.h"

namespace roi_plugins {

constexpr int kMaxLevels = 16;

// The options of the schema, in its order.
struct Options {
  Method method;
  bool max;
  int pooled_height, pooled_width;
  std::vector<double> scales;

  Options(
      at::ArrayRef<double> spatial_scale, at::IntArrayRef output_size, c10::string_view region,
      std::optional<int64_t> sampling_ratio, c10::string_view reduction, bool aligned,
      int64_t min_samples, std::optional<int64_t> max_samples);

  int64_t bins() const { return int64_t(pooled_height) * pooled_width; }
  // One byte names the winner of a maximum where the arguments bound a bin to 255 samples.
  at::ScalarType winner_type() const;
};

// Throws on anything that depends on shapes, dtypes or devices.
void check_inputs(
    at::TensorList features, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    const Options& options);
void check_shapes(at::IntArrayRef feature_shapes, const at::Tensor& rois, const Options& options);
// Names the first RoI on the CPU whose batch index is none of 0 .. images - 1.
void check_batch_index(const at::Tensor& rois, int64_t images);

// float64 features are pooled in float64, all others in float32; coordinates are never half.
at::ScalarType accumulation_type(at::ScalarType feature_type);
at::Tensor coordinates(const at::Tensor& rois, at::ScalarType feature_type);
at::Tensor level_index(const std::optional<at::Tensor>& levels, const at::Tensor& rois);

// The layout of the output, and of the gradients, is that of the first map.
bool is_channels_last(const at::Tensor& features);
at::MemoryFormat memory_format(bool channels_last);

}  // namespace roi_plugins
