// Where a method reads: boxes -> bins -> samples -> taps and weights, for host and device.
//
// This is the only place that knows it; the kernels see windows of samples and their taps. An upright
// box is the product of two axes, so everything here is about one axis. The rules, and the peers whose
// order of operations is followed, are in the contract of the op (docs/op-semantics.md).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__CUDACC__)
#define ROI_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ROI_HOST_DEVICE inline
#endif

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
};

// One axis of one RoI on its map, in index coordinates (cell i sits at i).
template <typename T>
struct Axis {
  T start;         // where bin 0 begins
  T bin;           // side of a bin
  T grid;          // samples a bin, of a grid; counted in floating point, a wild box overflows integers
  int extent;      // cells of the map
};

// The samples of one bin that read the map: begin .. end - 1. Those of an integral are the stretches between
// neighbouring cells: stretch i lies between the centres of cells i and i + 1.
template <typename T>
struct Window {
  int64_t begin, end;
  T count;        // what an average divides by, on this axis
  bool before;    // samples beyond the map, hence zeros, precede the window in scan order
  bool after;     // ... or follow it
};

// A sample on one axis reads cells low and high. A weight of zero is not to be read: 0 * inf is NaN.
template <typename T>
struct Taps {
  int low, high;
  T low_weight, high_weight;
};

template <typename T>
ROI_HOST_DEVICE T clamp(T value, T low, T high) {
  return value < low ? low : (value > high ? high : value);
}

// Products of finite coordinates may overflow. Beyond 2^20 cells float32 has no cells left and no
// position is claimed, but sizes, counts and products of them have to stay finite.
template <typename T>
ROI_HOST_DEVICE T to_cells(T coordinate, T scale) {
  return clamp(coordinate * scale, T(-1e17), T(1e17));
}

// The axis of a RoI from `low` to `high` (input pixels) in `pooled` bins over a map of `extent` cells.
template <typename T>
ROI_HOST_DEVICE Axis<T> make_axis(
    const Method& method, T low, T high, T scale, int pooled, int extent) {
  Axis<T> axis{T(0), T(0), T(0), extent};
  const T a = to_cells(low, scale);
  T size;
  switch (method.region) {
    case Region::none:
      axis.start = a - (method.aligned ? T(0.5) : T(0));
      size = to_cells(high, scale) - a;
      if (!method.aligned && method.sampling == Sampling::grid && size < T(1)) size = T(1);
      break;
    case Region::round:
      axis.start = std::round(a);
      size = std::round(to_cells(high, scale)) - axis.start + T(1);
      if (size < T(1)) size = T(1);
      // Interpolation knows that a cell's edge lies half a cell before its centre.
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
  return axis;
}

// Position of sample i of bin p; the order of operations is torchvision's.
template <typename T>
ROI_HOST_DEVICE T sample_position(const Axis<T>& axis, int p, int64_t i) {
  return axis.start + T(p) * axis.bin + (T(i) + T(0.5)) * axis.bin / axis.grid;
}

template <typename T>
ROI_HOST_DEVICE bool reads_map(const Axis<T>& axis, int p, int64_t i) {
  const T position = sample_position(axis, p, i);
  return position >= T(-1) && position <= T(axis.extent);
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
  const T extent = T(axis.extent);
  int64_t first = int64_t(clamp(begin, T(0), extent));
  int64_t last = int64_t(clamp(end, T(0), extent));
  // Beyond 2^24 cells float32 rounds the extent itself, perhaps up.
  if (first > axis.extent) first = axis.extent;
  if (last > axis.extent) last = axis.extent;
  if (last < first) last = first;
  return {first, last, T(last - first), false, false};
}

template <typename T>
ROI_HOST_DEVICE Window<T> grid_window(const Axis<T>& axis, int p) {
  const int64_t grid = int64_t(axis.grid);
  int64_t begin = 0, end = grid;
  const double step = double(axis.bin) / double(axis.grid);
  if (grid > 0 && step != 0.0) {
    // Positions are monotone in i, so those on the map are contiguous. They are estimated, one to
    // spare on either side, and the very comparison that defines them decides; the estimate alone
    // bounds the work where float32 maps many i to one position.
    const double origin = double(axis.start) + double(T(p) * axis.bin);
    const double left = (-1.0 - origin) / step - 0.5;
    const double right = (double(axis.extent) - origin) / step - 0.5;
    const double first = left < right ? left : right;
    const double last = left < right ? right : left;
    begin = int64_t(clamp(std::ceil(first) - 1.0, 0.0, double(grid)));
    end = int64_t(clamp(std::floor(last) + 2.0, 0.0, double(grid)));
  }
  if (end < begin) end = begin;
  while (begin < end && !reads_map(axis, p, begin)) ++begin;
  while (begin < end && !reads_map(axis, p, end - 1)) --end;
  return {begin, end, axis.grid, begin > 0 || begin == end, end < grid};
}

// Where bin p begins, as a position; the one before ends there.
template <typename T>
ROI_HOST_DEVICE T bin_edge(const Axis<T>& axis, int p) {
  return axis.start + T(p) * axis.bin;
}

// The map is extended by zeros: its surface falls to 0 from the outermost cells to where the next would be.
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

// On a stretch the surface is linear: its integral is the length of what the bin covers times the value
// in the middle of it.
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

// Cells and weights of sample i of bin p, which lies in the bin's window.
template <typename T>
ROI_HOST_DEVICE Taps<T> make_taps(const Method& method, const Axis<T>& axis, int p, int64_t i) {
  if (method.sampling == Sampling::cells) return {int(i), int(i), T(1), T(0)};
  if (method.sampling == Sampling::integral) return integral_taps(axis, p, i);
  T position = sample_position(axis, p, i);
  if (position < T(0)) position = T(0);
  const int low = int(position);
  if (low >= axis.extent - 1) return {axis.extent - 1, axis.extent - 1, T(1), T(0)};
  const T high_weight = position - T(low);
  return {low, low + 1, T(1) - high_weight, high_weight};
}

// After how many samples of a bin's windows the first zero from beyond the map competes in a maximum;
// -1: none does. Later zeros only tie with it.
template <typename T>
ROI_HOST_DEVICE int64_t first_outside(const Window<T>& y, const Window<T>& x) {
  const int64_t width = x.end - x.begin, height = y.end - y.begin;
  if (y.before || x.before) return 0;
  if (x.after) return width;
  return y.after ? width * height : -1;
}

// What is to be done with a row (batch_index, x1, y1, x2, y2) of rois.
enum class RoiState { read, zero, invalid };

template <typename T>
ROI_HOST_DEVICE bool batch_index_is_valid(T index, int64_t images) {
  return index >= T(0) && index < T(images) && std::floor(index) == index;
}

// A level outside the pyramid means zeros; a bad number means NaN whatever the level, never silence.
template <typename T>
ROI_HOST_DEVICE RoiState roi_state(const T* roi, int64_t images, int64_t level, int64_t levels) {
  bool finite = true;
  for (int i = 1; i < 5; ++i) finite = finite && roi[i] - roi[i] == T(0);
  if (!finite || !batch_index_is_valid(roi[0], images)) return RoiState::invalid;
  return level >= 0 && level < levels ? RoiState::read : RoiState::zero;
}

}  // namespace roi_plugins
