// A call, by the RoI.
#pragma once

#include <limits>

#include "../accumulate.h"
#include "../op.h"

namespace roi_plugins {

template <typename A>
struct Rois {
  const Call& call;

  const A* row(int64_t k) const { return call.rois.const_data_ptr<A>() + 5 * k; }
  int64_t image(int64_t k) const { return int64_t(row(k)[0]); }
  int64_t level(int64_t k) const { return call.levels.const_data_ptr<int64_t>()[k]; }
  // RoIs of equal numbers read the same image of the same map.
  int64_t map_and_image(int64_t k) const { return level(k) * call.images() + image(k); }
  int height(int64_t k) const { return int(call.height(level(k))); }
  int width(int64_t k) const { return int(call.width(level(k))); }
  RoiState state(int64_t k) const {
    return roi_state(row(k), call.images(), level(k), call.num_levels());
  }
  // What every element of a RoI that reads nothing is.
  template <typename S>
  S fill(int64_t k) const {
    return state(k) == RoiState::invalid ? S(std::numeric_limits<float>::quiet_NaN()) : S(0);
  }
  Axis<A> y_axis(int64_t k) const {
    return axis(k, row(k)[2], row(k)[4], call.options.pooled_height, height(k));
  }
  Axis<A> x_axis(int64_t k) const {
    return axis(k, row(k)[1], row(k)[3], call.options.pooled_width, width(k));
  }
  // Offset of the RoI's image in its map, which is dense in either layout.
  int64_t image_offset(int64_t k) const {
    return image(k) * height(k) * width(k) * call.channels();
  }

 private:
  Axis<A> axis(int64_t k, A low, A high, int pooled, int extent) const {
    return make_axis(
        call.options.method, low, high, A(call.options.scales[level(k)]), pooled, extent);
  }
};

}  // namespace roi_plugins
