// The gradient that one bin passes on to its box and to its offset, for host and device.
//
// The features only appear in products with the gradient of the bin, summed over channels: dot(sample, row, column).
// In a maximum, the sum is over the channels that `sample` of the bin's window won. The rest says how the weights of
// the taps change with the coordinates of a RoI.
#pragma once

#include "rotated.h"

namespace roi_plugins {

// Where a sample is between the low side of its RoI, 0, and the high side, 1.
template <typename T>
ROI_HOST_DEVICE T sample_in_roi(const Axis<T>& axis, int p, int pooled, int64_t i) {
  return (T(p) + sample_in_bin(axis, p, i) / axis.grid) / T(pooled);
}

// Whether the size of a side follows the box. A side that is enlarged to one cell does not.
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
  // The weight of a tap in the surface at an edge, as far as this stretch goes. An edge on a cell is in one of its
  // two stretches, the one that the bin covers.
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
  // An average divides by it. The slopes of an integral are divided already, its weights are not.
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
          // The count of an integral is the size of its bin, and 1 / count may be infinite.
          const T weight_y = integral ? row.weight(a) / rows.count : row.weight(a) * count;
          const T weight_x = integral ? column.weight(b) / columns.count : column.weight(b) * count;
          const bool moves_x = by_x.low[b] != T(0) || by_x.high[b] != T(0) || by_x.offset[b] != T(0);
          const bool moves_y = by_y.low[a] != T(0) || by_y.high[a] != T(0) || by_y.offset[a] != T(0);
          // A cell without weight is not read, as in for_each_read.
          if (!(moves_x && weight_y != T(0)) && !(moves_y && weight_x != T(0))) continue;
          const T product = dot(sample, row.cell(a), column.cell(b));
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

// Adds to `gradient` (cx, cy, w, h, angle in degrees). For grids only.
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
        const T weight_y = row.weight(a), weight_x = column.weight(b);
        const bool moves_y = has_slope(y, box.y.extent) && weight_x != T(0);
        const bool moves_x = has_slope(x, box.x.extent) && weight_y != T(0);
        if (!moves_y && !moves_x) continue;
        const T product = count * dot(sample, row.cell(a), column.cell(b));
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
    gradient[4] += T(kPi / 180.0) * (by_u * v - by_v * u);
  };
  for_each_sample(box, p, q, read, [] {});
}

// Adds the gradient of bin b of RoI k to `box`, which is its row without the batch index, and stores the gradient of
// the bin's offset in `grad_offsets`, (K, 2, bins), unless that is null. `rois` says where RoIs lie: Rois of
// cpu/rois.h, Bins of cuda/per_bin.h.
template <typename T, typename Rois, typename Dot>
ROI_HOST_DEVICE void bin_gradient(
    const Method& method, bool average, bool rotated, const Rois& rois, int64_t k, int64_t b, int pooled_height,
    int pooled_width, T scale, Dot&& dot, T* box, T* grad_offsets) {
  const int p = int(b / pooled_width), q = int(b % pooled_width);
  if (rotated) {
    rotated_bin_gradient(
        method, average, rois.rotated_box(k), p, q, pooled_height, pooled_width, scale, dot, box);
    return;
  }
  const Offset<T> offset = rois.offset(k, b);
  if (!offset.is_finite()) return;
  T by_offset[2] = {};
  upright_bin_gradient(
      method, average, moved(rois.y_axis(k), offset.y), moved(rois.x_axis(k), offset.x), p, q, pooled_height,
      pooled_width, scale, offset, dot, box, by_offset);
  if (grad_offsets == nullptr) return;
  const int64_t bins = int64_t(pooled_height) * pooled_width;
  grad_offsets[2 * k * bins + b] = by_offset[0];
  grad_offsets[(2 * k + 1) * bins + b] = by_offset[1];
}

}  // namespace roi_plugins
