// The arguments of a call, read and checked once for every device, and the functions that a device provides.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "accumulate.h"
#include "geometry.h"

namespace roi_plugins {

constexpr int kMaxLevels = 16;

// The options of the schemas in their order: as parameters, and as arguments.
#define ROI_OPTIONS \
  at::ArrayRef<double> spatial_scale, at::IntArrayRef output_size, c10::string_view region, \
      std::optional<int64_t> sampling_ratio, c10::string_view reduction, bool aligned, \
      int64_t min_samples, std::optional<int64_t> max_samples, bool position_sensitive
#define ROI_GIVEN_OPTIONS \
  spatial_scale, output_size, region, sampling_ratio, reduction, aligned, min_samples, \
      max_samples, position_sensitive

struct Options {
  Method method;
  bool max;
  int pooled_height, pooled_width;
  std::vector<double> scales;

  explicit Options(ROI_OPTIONS);

  int64_t bins() const { return int64_t(pooled_height) * pooled_width; }
  // One byte where the arguments bound a bin to 255 samples, else an int32.
  at::ScalarType argmax_type() const;
};

// A call whose arguments were checked.
struct Call {
  Options options;
  at::Tensor rois;     // (K, 5), or (K, 6) if rotated, contiguous, of the accumulation type
  at::Tensor levels;   // (K,) int64, contiguous; or undefined: all are 0
  at::Tensor offsets;  // (K, 2, PH, PW), x first, contiguous, of the accumulation type; or undefined
  at::Tensor seed;     // one int64; or undefined
  std::vector<int64_t> feature_shapes;  // N, C, then H, W of each map
  bool channels_last;  // layout of the output and of the gradients: that of the first map

  int64_t num_rois() const { return rois.size(0); }
  bool rotated() const { return rois.size(1) == 6; }
  // Whether the bins of a RoI are more than the product of two axes.
  bool has_single_bins() const {
    return rotated() || offsets.defined() || options.method.position_sensitive;
  }
  int64_t images() const { return feature_shapes[0]; }
  int64_t channels() const { return feature_shapes[1]; }
  // Channels of the maps for each channel of the output.
  int64_t groups() const { return options.method.position_sensitive ? options.bins() : 1; }
  int64_t output_channels() const { return channels() / groups(); }
  int64_t num_levels() const { return int64_t(options.scales.size()); }
  int64_t height(int64_t level) const { return feature_shapes[2 + 2 * level]; }
  int64_t width(int64_t level) const { return feature_shapes[3 + 2 * level]; }
  at::MemoryFormat format() const {
    return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  }
};

// Whether a map is laid out as channels_last and not also as NCHW, which wins where it is both.
inline bool is_channels_last(const at::Tensor& map) {
  return map.is_contiguous(at::MemoryFormat::ChannelsLast) && !map.is_contiguous();
}

// An error that names the first RoI whose batch index is none of the images.
void check_batch_index(const Call& call);

// The functions of a device. Forward fills `output` and, for a maximum, `argmax`; both are dense in the call's
// layout. Backward returns one dense gradient for each map in that layout. Neither is called for an empty output.
void forward_cpu(
    const Call& call, at::TensorList features, at::Tensor& output, at::Tensor& argmax);
std::vector<at::Tensor> backward_cpu(
    const Call& call, const at::Tensor& grad, const at::Tensor& argmax);
// Fills the gradients of the boxes, (K, PH * PW, 5 or 6), one part for each bin, and of the offsets, which have the
// shape of the offsets or are undefined. Both are zeros before; the column of the batch index stays so.
void backward_rois_cpu(
    const Call& call, const at::Tensor& grad, const at::Tensor& argmax, at::TensorList features,
    at::Tensor& grad_rois, at::Tensor& grad_offsets);
void forward_cuda(
    const Call& call, at::TensorList features, at::Tensor& output, at::Tensor& argmax);
std::vector<at::Tensor> backward_cuda(
    const Call& call, const at::Tensor& grad, const at::Tensor& argmax);
void backward_rois_cuda(
    const Call& call, const at::Tensor& grad, const at::Tensor& argmax, at::TensorList features,
    at::Tensor& grad_rois, at::Tensor& grad_offsets);

}  // namespace roi_plugins
