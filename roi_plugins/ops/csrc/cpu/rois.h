// What a call says of each of its maps and RoIs.
#pragma once

#include "../accumulate.h"
#include "../op.h"
#include "../rotated.h"

namespace roi_plugins {

// A map as the kernels read it. Where each bin reads channels of its own, they are brought side by side: (channel,
// bin) becomes (bin, channel).
inline at::Tensor readable(const Call& call, const at::Tensor& map, at::MemoryFormat format) {
  if (call.groups() == 1) return map.contiguous(format);
  return map.unflatten(1, {call.output_channels(), call.groups()})
      .transpose(1, 2)
      .flatten(1, 2)
      .contiguous(format);
}

template <typename A>
struct Rois {
  const Call& call;
  const Jitter jitter;
  const int64_t* const levels;

  explicit Rois(const Call& call)
      : call(call),
        jitter{call.seed.defined(),
               call.seed.defined() ? uint64_t(*call.seed.const_data_ptr<int64_t>()) : 0},
        levels(call.levels.defined() ? call.levels.const_data_ptr<int64_t>() : nullptr) {}

  const A* row(int64_t k) const { return call.rois.const_data_ptr<A>() + call.rois.size(1) * k; }
  int64_t image(int64_t k) const { return int64_t(row(k)[0]); }
  int64_t level(int64_t k) const { return levels == nullptr ? 0 : levels[k]; }
  // Equal for RoIs that read the same image of the same map.
  int64_t map_and_image(int64_t k) const { return level(k) * call.images() + image(k); }
  int height(int64_t k) const { return int(call.height(level(k))); }
  int width(int64_t k) const { return int(call.width(level(k))); }
  A scale(int64_t k) const { return A(call.options.scales[level(k)]); }
  RoiState state(int64_t k) const {
    return roi_state(
        row(k), int(call.rois.size(1)), call.images(), level(k), call.num_levels());
  }
  Axis<A> y_axis(int64_t k) const {
    return make_axis(
        call.options.method, row(k), false, scale(k), call.options.pooled_height, height(k),
        jitter.axis(k, false));
  }
  Axis<A> x_axis(int64_t k) const {
    return make_axis(
        call.options.method, row(k), true, scale(k), call.options.pooled_width, width(k),
        jitter.axis(k, true));
  }
  RotatedBox<A> rotated_box(int64_t k) const {
    const Options& options = call.options;
    return make_rotated_box(
        options.method, row(k), scale(k), options.pooled_height, options.pooled_width, height(k),
        width(k), jitter.axis(k, false), jitter.axis(k, true));
  }
  Offset<A> offset(int64_t k, int64_t b) const {
    const A* const offsets = call.offsets.defined() ? call.offsets.const_data_ptr<A>() : nullptr;
    return offset_of_bin(offsets, k, b, call.options.bins());
  }
  // Where the RoI's image begins in its map, which is dense in either layout.
  int64_t image_offset(int64_t k) const {
    return image(k) * height(k) * width(k) * call.channels();
  }
};

}  // namespace roi_plugins
