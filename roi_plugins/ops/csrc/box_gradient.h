// What one bin passes on to the box that it belongs to, and to its offset, for host and device.
//
// The features come in only as products with the gradient of the bin, summed over its channels: dot(sample, row,
// column), where of a maximum those channels count that `sample` of the bin's window won. The rest is how the
// weights of the taps change with the numbers of a RoI.
#pragma once

#include "rotated.h"

namespace roi_plugins {

// Where a sample is between the low side of its RoI, 0, and the high side, 1.
template <typename T>
ROI_HOST_DEVICE T sample_in_roi(const Axis<T>& axis, int p, int pooled, int64_t i) {
  return (T(p) + sample_in_bin(axis, p, i) / axis.grid) / T(pooled);
}

// Whether the size of a side follows the box: one that is enlarged to a cell does not.
template <typename T>
ROI_HOST_DEVICE bool has_own_size(const Method& method, const Axis<T>& axis) {
  return !(has_least_size(method) && axis.size <= T(1));
}

// How the weights of the two taps of a sample on one axis change with the box's low and high side (1 / pixels)
// and with the offset of the bin.
template <typename T>
struct Slopes {
  T low[2], high[2], offset[2];
};

template <typename T>
ROI_HOST_DEVICE Slopes<T> grid_slopes(
    const Method& method, const Axis<T>& axis, int p, int pooled, int64_t i, T scale, T offset) {
  if (!has_slope(sample_position(axis, p, i), axis.extent)) return {};
  const T at = sample_in_roi(axis, p, pooled, i) + offset;
  const T high = has_own_size(method, axis) ? scale * at : T(0);
  const T low = scale - high;
  return {{-low, low}, {-high, high}, {-axis.size, axis.size}};
}

// The mean over a bin gains and loses at its two edges, and shrinks as the bin grows.
template <typename T>
ROI_HOST_DEVICE Slopes<T> integral_slopes(
    const Axis<T>& axis, int p, int pooled, int64_t i, T scale) {
  const T begin = bin_edge(axis, p), end = bin_edge(axis, p + 1), size = end - begin;
  const Taps<T> taps = integral_taps(axis, p, i);
  const T weight[2] = {taps.low_weight, taps.high_weight};
  const bool on_map[2] = {i >= 0, i + 1 < axis.extent};
  // The surface at an edge, from the stretch that the bin covers of it: an edge on a cell is in one of two.
  const auto at_edge = [&](T edge, int tap, bool is_end) {
    const T within = edge - T(i);
    const bool inside = is_end ? within > T(0) && within <= T(1) : within >= T(0) && within < T(1);
    if (!on_map[tap] || !inside) return T(0);
    return tap == 0 ? T(1) - within : within;
  };
  const T first = T(p) / T(pooled), last = T(p + 1) / T(pooled);
  Slopes<T> slopes{};
  for (int tap = 0; tap < 2; ++tap) {
    const T by_begin = (weight[tap] / size - at_edge(begin, tap, false)) / size;
    const T by_end = (at_edge(end, tap, true) - weight[tap] / size) / size;
    slopes.low[tap] = scale * (by_begin * (T(1) - first) + by_end * (T(1) - last));
    slopes.high[tap] = scale * (by_begin * first + by_end * last);
  }
  return slopes;
}

// Adds to `box` (x1, y1, x2, y2) and, if not null, to `offset_grad` (x, y).
template <typename T, typename Dot>
ROI_HOST_DEVICE void upright_bin_gradient(
    const Method& method, bool average, const Axis<T>& y, const Axis<T>& x, int p, int q,
    int pooled_height, int pooled_width, T scale, Offset<T> offset, Dot&& dot, T* box,
    T* offset_grad) {
  const Window<T> rows = make_window(method, y, p), columns = make_window(method, x, q);
  const bool integral = method.sampling == Sampling::integral;
  // What an average divides by; the slopes of an integral are divided already, but not its weights.
  const T count = average ? T(1) / (rows.count * columns.count) : T(1);
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const Taps<T> row = make_taps(method, y, p, i);
    const Slopes<T> by_y = integral
        ? integral_slopes(y, p, pooled_height, i, scale)
        : grid_slopes(method, y, p, pooled_height, i, scale, offset.y);
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      const Taps<T> column = make_taps(method, x, q, j);
      const Slopes<T> by_x = integral
          ? integral_slopes(x, q, pooled_width, j, scale)
          : grid_slopes(method, x, q, pooled_width, j, scale, offset.x);
      const int64_t sample = (i - rows.begin) * (columns.end - columns.begin) + j - columns.begin;
      for (int a = 0; a < 2; ++a) {
        for (int b = 0; b < 2; ++b) {
          // Divided, since 1 / count may be infinite: an integral's count is the size of its bin.
          T weight_y = a == 0 ? row.low_weight : row.high_weight;
          T weight_x = b == 0 ? column.low_weight : column.high_weight;
          weight_y = integral ? weight_y / rows.count : weight_y * count;
          weight_x = integral ? weight_x / columns.count : weight_x * count;
          const bool moves_x = by_x.low[b] != T(0) || by_x.high[b] != T(0) || by_x.offset[b] != T(0);
          const bool moves_y = by_y.low[a] != T(0) || by_y.high[a] != T(0) || by_y.offset[a] != T(0);
          // What has no weight is not to be read: 0 * inf is NaN.
          if (!(moves_x && weight_y != T(0)) && !(moves_y && weight_x != T(0))) continue;
          const T product = dot(sample, a == 0 ? row.low : row.high, b == 0 ? column.low : column.high);
          box[0] += by_x.low[b] * weight_y * product;
          box[1] += by_y.low[a] * weight_x * product;
          box[2] += by_x.high[b] * weight_y * product;
          box[3] += by_y.high[a] * weight_x * product;
          if (offset_grad != nullptr) {
            offset_grad[0] += by_x.offset[b] * weight_y * product;
            offset_grad[1] += by_y.offset[a] * weight_x * product;
          }
        }
      }
    }
  }
}

// Adds to `box` (cx, cy, w, h, angle in degrees). Of grids only.
template <typename T, typename Dot>
ROI_HOST_DEVICE void rotated_bin_gradient(
    const Method& method, bool average, const RotatedBox<T>& box, int p, int q, int pooled_height,
    int pooled_width, T scale, Dot&& dot, T* gradient) {
  const T count = average ? T(1) / (box.y.grid * box.x.grid) : T(1);
  int64_t sample = 0;
  const auto by_side = [&](const Axis<T>& axis, int bin, int pooled, int64_t i) {
    if (!has_own_size(method, axis)) return T(0);
    return scale * (sample_in_roi(axis, bin, pooled, i) - T(0.5));
  };
  const auto read = [&](T y, T x, int64_t i, int64_t j) {
    const Taps<T> row = bilinear_taps(y, box.y.extent), column = bilinear_taps(x, box.x.extent);
    T by_y = T(0), by_x = T(0);
    for (int a = 0; a < 2; ++a) {
      for (int b = 0; b < 2; ++b) {
        const T weight_y = a == 0 ? row.low_weight : row.high_weight;
        const T weight_x = b == 0 ? column.low_weight : column.high_weight;
        const bool moves_y = has_slope(y, box.y.extent) && weight_x != T(0);
        const bool moves_x = has_slope(x, box.x.extent) && weight_y != T(0);
        if (!moves_y && !moves_x) continue;
        const T product =
            count * dot(sample, a == 0 ? row.low : row.high, b == 0 ? column.low : column.high);
        if (moves_y) by_y += (a == 0 ? -weight_x : weight_x) * product;
        if (moves_x) by_x += (b == 0 ? -weight_y : weight_y) * product;
      }
    }
    ++sample;
    const T v = sample_position(box.y, p, i), u = sample_position(box.x, q, j);
    const T by_v = by_y * box.cos + by_x * box.sin, by_u = by_x * box.cos - by_y * box.sin;
    gradient[0] += scale * by_x;
    gradient[1] += scale * by_y;
    gradient[2] += by_side(box.x, q, pooled_width, j) * by_u;
    gradient[3] += by_side(box.y, p, pooled_height, i) * by_v;
    gradient[4] += T(kDegree) * (by_u * v - by_v * u);
  };
  for_each_sample(box, p, q, read, [] {});
}

}  // namespace roi_plugins
