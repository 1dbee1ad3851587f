// Where a method reads: boxes -> bins -> samples -> taps and weights, for host and device.
//
// Only this file and rotated.h know it; the kernels see windows of samples and their taps. An upright box is the
// product of two axes, so almost everything here is about one axis. The contract of the op (docs/op-semantics.md)
// has the rules, and names the peers whose order of operations is followed. What becomes of the samples of a maximum
// is in maximum.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace roi_plugins {

enum class Region : int { none, round, floor, bins };

// What a bin reads: a grid of bilinear samples, every cell of a quantised bin, or the whole bilinear surface.
enum class Sampling : int { grid, cells, integral };

// What the arguments of a call say, the same for every RoI.
struct Method {
  Region region;
  Sampling sampling;
  int sampling_ratio;  // samples per bin and axis of a grid; 0: from the size of the RoI
  int min_samples;     // bounds of the grid where sampling_ratio is 0
  int max_samples;     // (no upper bound: INT_MAX)
  bool aligned;
  bool position_sensitive;
};

// Where each sample of a grid lies in its stratum: in the middle, or at random. The random numbers come from a
// counter-based generator, SplitMix64, so forward and backward get the same ones on any device, without stored state.
struct Jitter {
  bool on;
  uint64_t state;

  static constexpr uint64_t kStep = 0x9E3779B97F4A7C15u;

  // For the y or x axis of RoI k.
  ROI_HOST_DEVICE Jitter axis(int64_t k, bool is_x) const {
    return {on, state + ((uint64_t(k) << 32) + (uint64_t(is_x) << 31) + 1) * kStep};
  }
  template <typename T>
  ROI_HOST_DEVICE T at(uint64_t sample) const {
    if (!on) return T(0.5);
    uint64_t z = state + (sample & 0x7fffffffu) * kStep;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return T(z >> 40) * T(1.0 / (1 << 24));
  }
};

// One axis of one RoI on its map, in index coordinates (cell i sits at i).
template <typename T>
struct Axis {
  T start;         // where bin 0 begins
  T bin;           // side of a bin
  T grid;          // samples of a bin, if it has a grid; a huge box would overflow an integer
  int extent;      // cells of the map
  T size;          // side of the RoI
  Jitter jitter;
};

template <typename T>
ROI_HOST_DEVICE bool is_finite(T value) {
  return value - value == T(0);
}

// How far the samples of one bin are moved, in sizes of the RoI.
template <typename T>
struct Offset {
  T y, x;

  ROI_HOST_DEVICE bool is_finite() const {
    return roi_plugins::is_finite(y) && roi_plugins::is_finite(x);
  }
};

// The offset of bin b of RoI k in (K, 2, bins), x first; 0 where there are none.
template <typename T>
ROI_HOST_DEVICE Offset<T> offset_of_bin(const T* offsets, int64_t k, int64_t b, int64_t bins) {
  if (offsets == nullptr) return {T(0), T(0)};
  return {offsets[(2 * k + 1) * bins + b], offsets[2 * k * bins + b]};
}

// The samples of one bin that read the map: begin .. end - 1. Sample i of an integral is the stretch between the
// centres of cells i and i + 1.
template <typename T>
struct Window {
  int64_t begin, end;
  T count;        // an average divides by it, on each axis
  bool before;    // whether samples beyond the map, which are zeros, precede the window in scan order
  bool after;     // whether some follow it
};

// A sample on one axis reads cells low and high, the taps 0 and 1.
template <typename T>
struct Taps {
  int low, high;
  T low_weight, high_weight;

  ROI_HOST_DEVICE int cell(int tap) const { return tap == 0 ? low : high; }
  ROI_HOST_DEVICE T weight(int tap) const { return tap == 0 ? low_weight : high_weight; }
};

// Calls visit(row, column, weight) for the four cells where the taps of two axes meet.
template <typename T, typename Visit>
ROI_HOST_DEVICE void for_each_corner(const Taps<T>& y, const Taps<T>& x, T share, Visit&& visit) {
  visit(y.low, x.low, share * y.low_weight * x.low_weight);
  visit(y.low, x.high, share * y.low_weight * x.high_weight);
  visit(y.high, x.low, share * y.high_weight * x.low_weight);
  visit(y.high, x.high, share * y.high_weight * x.high_weight);
}

// The same for the cells that are read: one whose weight is zero is not, since 0 * inf is NaN.
template <typename T, typename Visit>
ROI_HOST_DEVICE void for_each_read(const Taps<T>& y, const Taps<T>& x, T share, Visit&& visit) {
  for_each_corner(y, x, share, [&](int row, int column, T weight) {
    if (weight != T(0)) visit(row, column, weight);
  });
}

template <typename T>
ROI_HOST_DEVICE T clamp(T value, T low, T high) {
  return value < low ? low : (value > high ? high : value);
}

// The product of two finite numbers may overflow. Beyond 2^20 cells float32 cannot tell cells apart, so no position
// is claimed there, but sizes, counts and their products have to stay finite.
template <typename T>
ROI_HOST_DEVICE T to_cells(T coordinate, T scale) {
  return clamp(coordinate * scale, T(-1e17), T(1e17));
}

// Divides the side of a RoI into bins, and a bin into the samples of its grid.
template <typename T>
ROI_HOST_DEVICE void divide(const Method& method, Axis<T>& axis, T size, int pooled) {
  axis.size = size;
  axis.bin = size / T(pooled);
  if (method.region == Region::floor) {
    axis.bin = std::floor(axis.bin);
    if (axis.bin < T(1)) axis.bin = T(1);
  }
  if (method.sampling_ratio > 0) {
    axis.grid = T(method.sampling_ratio);
  } else if (size > T(0)) {
    axis.grid = clamp(std::ceil(axis.bin), T(method.min_samples), T(method.max_samples));
  }
}

// Whether a side of less than one cell is enlarged to one cell.
ROI_HOST_DEVICE bool has_least_size(const Method& method) {
  return method.region == Region::none && !method.aligned && method.sampling == Sampling::grid;
}

// The y or x axis of a row (batch_index, x1, y1, x2, y2) in input pixels: `pooled` bins over a map of `extent` cells.
template <typename T>
ROI_HOST_DEVICE Axis<T> make_axis(
    const Method& method, const T* roi, bool is_x, T scale, int pooled, int extent, const Jitter& jitter) {
  const T low = roi[is_x ? 1 : 2], high = roi[is_x ? 3 : 4];
  Axis<T> axis{T(0), T(0), T(0), extent, T(0), jitter};
  const T a = to_cells(low, scale);
  T size;
  switch (method.region) {
    case Region::none:
      axis.start = a - (method.aligned ? T(0.5) : T(0));
      size = to_cells(high, scale) - a;
      if (has_least_size(method) && size < T(1)) size = T(1);
      break;
    case Region::round:
      axis.start = std::round(a);
      size = std::round(to_cells(high, scale)) - axis.start + T(method.position_sensitive ? 0 : 1);
      if (size < T(1)) size = T(1);
      // A grid is in index coordinates, where the edge of a cell lies half a cell before its centre.
      if (method.sampling == Sampling::grid) axis.start -= T(0.5);
      break;
    case Region::floor:
      axis.start = std::floor(a);
      size = std::floor(to_cells(high, scale) - a);
      if (size < T(1)) size = T(1);
      break;
    default:  // bins
      axis.start = a;
      size = to_cells(high + T(1), scale) - a;
  }
  divide(method, axis, size, pooled);
  return axis;
}

// Position of sample i of bin p, from the beginning of the bin and in samples.
template <typename T>
ROI_HOST_DEVICE T sample_in_bin(const Axis<T>& axis, int p, int64_t i) {
  return T(i) + axis.jitter.template at<T>(uint64_t(p) * uint64_t(axis.grid) + uint64_t(i));
}

// Position of sample i of bin p; the order of operations is torchvision's.
template <typename T>
ROI_HOST_DEVICE T sample_position(const Axis<T>& axis, int p, int64_t i) {
  return axis.start + T(p) * axis.bin + sample_in_bin(axis, p, i) * axis.bin / axis.grid;
}

// A range of samples of bin p that holds all those from position `low` to `high`, and one more on either side. It
// bounds the work for a huge box.
template <typename T>
ROI_HOST_DEVICE void sample_range(
    const Axis<T>& axis, int p, double low, double high, int64_t& begin, int64_t& end) {
  const int64_t grid = int64_t(axis.grid);
  begin = 0;
  end = grid;
  const double step = double(axis.bin) / double(axis.grid);
  if (grid == 0 || step == 0.0) return;
  const double origin = double(axis.start) + double(T(p) * axis.bin);
  const double left = (low - origin) / step - 0.5;
  const double right = (high - origin) / step - 0.5;
  const double first = left < right ? left : right;
  const double last = left < right ? right : left;
  begin = int64_t(clamp(std::ceil(first) - 1.0, 0.0, double(grid)));
  end = int64_t(clamp(std::floor(last) + 2.0, 0.0, double(grid)));
  if (end < begin) end = begin;
}

// The axis of a bin that is moved by `offset`, no further than to_cells lets a box be.
template <typename T>
ROI_HOST_DEVICE Axis<T> moved(Axis<T> axis, T offset) {
  axis.start += clamp(offset * axis.size, T(-1e17), T(1e17));
  return axis;
}

// Whether a sample reads the map: it may lie up to a cell beyond the outermost ones. Without a branch, which would
// keep loops from becoming vectors.
template <typename T>
ROI_HOST_DEVICE bool is_on_map(T position, int extent) {
  return (position >= T(-1)) & (position <= T(extent));
}

template <typename T>
ROI_HOST_DEVICE Window<T> cell_window(const Method& method, const Axis<T>& axis, int p) {
  T begin, end;
  if (method.region == Region::round) {
    begin = std::floor(T(p) * axis.bin) + axis.start;
    end = std::ceil(T(p + 1) * axis.bin) + axis.start;
  } else if (method.region == Region::floor) {
    begin = axis.start + T(p) * axis.bin;
    end = begin + axis.bin;
  } else {
    begin = std::floor(T(p) * axis.bin + axis.start);
    end = axis.bin > T(0) ? std::ceil(T(p + 1) * axis.bin + axis.start) : begin;
  }
  // R-FCN's layer clips to the last cell, and so never reads it.
  const int limit = method.position_sensitive ? axis.extent - 1 : axis.extent;
  const T extent = T(limit);
  int64_t first = int64_t(clamp(begin, T(0), extent));
  int64_t last = int64_t(clamp(end, T(0), extent));
  // Beyond 2^24 cells float32 rounds the extent itself, perhaps up.
  if (first > limit) first = limit;
  if (last > limit) last = limit;
  if (last < first) last = first;
  return {first, last, T(last - first), false, false};
}

template <typename T>
ROI_HOST_DEVICE Window<T> grid_window(const Axis<T>& axis, int p) {
  // Positions rise or fall with i, so the samples on the map are contiguous. They are estimated first, and is_on_map
  // decides. Where float32 gives many samples one position, only the estimate bounds the work.
  int64_t begin, end;
  sample_range(axis, p, -1.0, double(axis.extent), begin, end);
  while (begin < end && !is_on_map(sample_position(axis, p, begin), axis.extent)) ++begin;
  while (begin < end && !is_on_map(sample_position(axis, p, end - 1), axis.extent)) --end;
  return {begin, end, axis.grid, begin > 0 || begin == end, end < int64_t(axis.grid)};
}

// The position where bin p begins and the one before it ends.
template <typename T>
ROI_HOST_DEVICE T bin_edge(const Axis<T>& axis, int p) {
  return axis.start + T(p) * axis.bin;
}

// The map is extended by zeros: the surface falls to 0 from the outermost cells to where the next ones would be.
template <typename T>
ROI_HOST_DEVICE Window<T> integral_window(const Axis<T>& axis, int p) {
  const T low = bin_edge(axis, p), high = bin_edge(axis, p + 1);
  if (!(low < high)) return {0, 0, T(0), false, false};
  const T extent = T(axis.extent);
  int64_t first = int64_t(std::floor(clamp(low, T(-1), extent)));
  int64_t last = int64_t(std::ceil(clamp(high, T(-1), extent)));
  if (first > axis.extent) first = axis.extent;  // as for cells
  if (last > axis.extent) last = axis.extent;
  return {first, last, high - low, false, false};
}

template <typename T>
ROI_HOST_DEVICE Window<T> make_window(const Method& method, const Axis<T>& axis, int p) {
  if (method.sampling == Sampling::cells) return cell_window(method, axis, p);
  if (method.sampling == Sampling::integral) return integral_window(axis, p);
  return grid_window(axis, p);
}

// The surface is linear on a stretch, so its integral is the length of the part that the bin covers times the value
// in the middle of that part.
template <typename T>
ROI_HOST_DEVICE Taps<T> integral_taps(const Axis<T>& axis, int p, int64_t i) {
  const T low = clamp(bin_edge(axis, p) - T(i), T(0), T(1));
  const T high = clamp(bin_edge(axis, p + 1) - T(i), T(0), T(1));
  const T length = high - low, middle = (low + high) * T(0.5);
  const bool has_low = i >= 0, has_high = i + 1 < axis.extent;
  return {
      int(has_low ? i : 0), int(has_high ? i + 1 : axis.extent - 1),
      has_low ? length * (T(1) - middle) : T(0), has_high ? length * middle : T(0)};
}

// A position on the map as the cell at or before it, and the fraction of the way to the next cell.
template <typename T>
struct SplitPosition {
  int cell;
  T fraction;
};
// Positions beyond the outermost cells are clamped to them.
template <typename T>
ROI_HOST_DEVICE SplitPosition<T> split_position(T position, int extent) {
  if (position < T(0)) position = T(0);
  const int cell = int(position);
  if (cell >= extent - 1) return {extent - 1, T(0)};
  return {cell, position - T(cell)};
}

// Cells and weights at a position on the map.
template <typename T>
ROI_HOST_DEVICE Taps<T> bilinear_taps(T position, int extent) {
  const SplitPosition<T> at = split_position(position, extent);
  const int next = at.cell + 1 < extent ? at.cell + 1 : at.cell;
  return {at.cell, next, T(1) - at.fraction, at.fraction};
}

// Whether the surface has a slope at a position: it has none where positions are clamped to the outermost cells.
template <typename T>
ROI_HOST_DEVICE bool has_slope(T position, int extent) {
  return position >= T(0) && position < T(extent - 1);
}

// Cells and weights of sample i of bin p, which lies in the bin's window.
template <typename T>
ROI_HOST_DEVICE Taps<T> make_taps(const Method& method, const Axis<T>& axis, int p, int64_t i) {
  if (method.sampling == Sampling::cells) return {int(i), int(i), T(1), T(0)};
  if (method.sampling == Sampling::integral) return integral_taps(axis, p, i);
  return bilinear_taps(sample_position(axis, p, i), axis.extent);
}

// Which of the `count` taps of a bin so far is at `cell`; -1 if none is. An average adds up the weights that its
// samples have at one cell. Where positions rise, a cell that was read before is among the last two taps. Where they
// fall, it may be listed twice, which gives the same sum.
template <typename CellOf>
ROI_HOST_DEVICE int recent_tap(int count, int cell, CellOf&& cell_of) {
  for (int t = count - 1; t >= 0 && t >= count - 2; --t) {
    if (cell_of(t) == cell) return t;
  }
  return -1;
}

// After how many samples of a bin's windows the first zero from beyond the map competes in a maximum: `zero_after` of
// maximum.h.
template <typename T>
ROI_HOST_DEVICE int64_t first_outside(const Window<T>& y, const Window<T>& x) {
  const int64_t width = x.end - x.begin, height = y.end - y.begin;
  if (y.before || x.before) return 0;
  if (x.after) return width;
  return y.after ? width * height : -1;
}

// What to do with a row of rois: (batch_index, x1, y1, x2, y2), or (batch_index, cx, cy, w, h, angle) if rotated.
enum class RoiState { read, zero, invalid };

template <typename T>
ROI_HOST_DEVICE bool batch_index_is_valid(T index, int64_t images) {
  return index >= T(0) && index < T(images) && std::floor(index) == index;
}

// A level outside the pyramid means zeros. A bad number means NaN whatever the level, so that it shows in the loss.
template <typename T>
ROI_HOST_DEVICE RoiState roi_state(
    const T* roi, int roi_dim, int64_t images, int64_t level, int64_t levels) {
  bool finite = true;
  for (int i = 1; i < roi_dim; ++i) finite = finite && is_finite(roi[i]);
  if (!finite || !batch_index_is_valid(roi[0], images)) return RoiState::invalid;
  return level >= 0 && level < levels ? RoiState::read : RoiState::zero;
}

// The output of a bin that reads nothing.
template <typename T>
ROI_HOST_DEVICE T unread_value(RoiState state) {
  return state == RoiState::invalid ? T(NAN) : T(0);
}

}  // namespace roi_plugins
