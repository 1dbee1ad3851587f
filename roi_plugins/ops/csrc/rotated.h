// Where a rotated box reads: the samples of a grid in its own frame, or the cells under a rectangle of it.
#pragma once

#include "geometry.h"

namespace roi_plugins {

constexpr double kPi = 3.14159265358979323846;

// A box in the frame whose origin is the centre of the box, and the place of the frame on the map.
template <typename T>
struct RotatedBox {
  Axis<T> y, x;  // of the frame, but the extents are those of the map
  T cos, sin, centre_y, centre_x;

  ROI_HOST_DEVICE T map_y(T v, T u) const { return v * cos - u * sin + centre_y; }
  ROI_HOST_DEVICE T map_x(T v, T u) const { return v * sin + u * cos + centre_x; }
};

// The box of a row (batch_index, cx, cy, w, h, angle), in pixels and in degrees counter-clockwise.
template <typename T>
ROI_HOST_DEVICE RotatedBox<T> make_rotated_box(
    const Method& method, const T* roi, T scale, int pooled_height, int pooled_width, int height,
    int width, const Jitter& y_jitter, const Jitter& x_jitter) {
  const T shift = method.aligned ? T(0.5) : T(0);
  const T angle = T(roi[5] * kPi / 180.0);
  RotatedBox<T> box{
      {T(0), T(0), T(0), height, T(0), y_jitter}, {T(0), T(0), T(0), width, T(0), x_jitter},
      std::cos(angle), std::sin(angle), to_cells(roi[2], scale) - shift,
      to_cells(roi[1], scale) - shift};
  const auto divide_side = [&](Axis<T>& axis, T side, int pooled) {
    T size = to_cells(side, scale);
    if (has_least_size(method) && size < T(1)) size = T(1);
    divide(method, axis, size, pooled);
    axis.start = -size / T(2);
  };
  divide_side(box.y, roi[4], pooled_height);
  divide_side(box.x, roi[3], pooled_width);
  return box;
}

// Narrows low .. high to where |offset + slope * u| <= half.
ROI_HOST_DEVICE void narrow(double& low, double& high, double offset, double slope, double half) {
  if (slope == 0.0) {
    if (std::fabs(offset) > half) high = low - 1.0;
    return;
  }
  const double a = (-half - offset) / slope, b = (half - offset) / slope;
  const double first = a < b ? a : b, last = a < b ? b : a;
  if (first > low) low = first;
  if (last < high) high = last;
}

// Calls visit(y, x, i, j) for each sample of a bin that reads the map, in scan order, with its position and indices.
// Calls outside() at least once where it skips samples. The size of the map bounds the work.
template <typename T, typename Visit, typename Outside>
ROI_HOST_DEVICE void for_each_sample(
    const RotatedBox<T>& box, int p, int q, Visit&& visit, Outside&& outside) {
  const int64_t rows = int64_t(box.y.grid), columns = int64_t(box.x.grid);
  if (rows == 0 || columns == 0) return;
  const T height = T(box.y.extent), width = T(box.x.extent);
  // The map with a spare cell on every side, seen from the box. It only narrows the search; is_on_map decides.
  const double cos = box.cos, sin = box.sin;
  const double half_y = (double(height) + 3) / 2, half_x = (double(width) + 3) / 2;
  const double middle_y = (double(height) - 1) / 2 - box.centre_y;
  const double middle_x = (double(width) - 1) / 2 - box.centre_x;
  const double middle = middle_y * cos + middle_x * sin;
  const double reach = half_y * std::fabs(cos) + half_x * std::fabs(sin);
  // A few samples are compared faster than they are bounded.
  const bool few = box.y.grid * box.x.grid <= T(16);
  int64_t first_row = 0, last_row = rows;
  if (!few) sample_range(box.y, p, middle - reach, middle + reach, first_row, last_row);
  if (first_row > 0) outside();
  for (int64_t i = first_row; i < last_row; ++i) {
    const T v = sample_position(box.y, p, i);
    int64_t first = 0, last = columns;
    if (!few) {
      double low = -1e18, high = 1e18;
      narrow(low, high, v * cos - middle_y, -sin, half_y);
      narrow(low, high, v * sin - middle_x, cos, half_x);
      last = 0;
      if (low <= high) sample_range(box.x, q, low, high, first, last);
    }
    if (first > 0) outside();
    for (int64_t j = first; j < last; ++j) {
      const T u = sample_position(box.x, q, j);
      const T y = box.map_y(v, u), x = box.map_x(v, u);
      if (is_on_map(y, box.y.extent) && is_on_map(x, box.x.extent)) {
        visit(y, x, i, j);
      } else {
        outside();
      }
    }
    if (last < columns) outside();
  }
  if (last_row < rows) outside();
}

// A convex polygon. A rectangle that was cut at the four sides of a square has at most eight corners.
struct Polygon {
  double y[8], x[8];
  int count;

  ROI_HOST_DEVICE void add(double at_y, double at_x) {
    if (count == 8) return;  // of a sliver, whose sides rounding has bent
    y[count] = at_y;
    x[count++] = at_x;
  }
  // Keeps what lies at or above `bound` on an axis; at or below it where `above` is false.
  ROI_HOST_DEVICE Polygon cut(bool is_x, bool above, double bound) const {
    Polygon rest{{}, {}, 0};
    for (int i = 0; i < count; ++i) {
      const int next = i + 1 < count ? i + 1 : 0;
      const double here = (is_x ? x : y)[i], there = (is_x ? x : y)[next];
      const bool keeps = above ? here >= bound : here <= bound;
      if (keeps) rest.add(y[i], x[i]);
      if (keeps == (above ? there >= bound : there <= bound)) continue;
      const double t = (bound - here) / (there - here);
      const double other = is_x ? y[i] + t * (y[next] - y[i]) : x[i] + t * (x[next] - x[i]);
      if (is_x) {
        rest.add(other, bound);
      } else {
        rest.add(bound, other);
      }
    }
    return rest;
  }
  // The cells' span on an axis, on a map of `extent` cells and a zero around it: squares first .. last - 1.
  ROI_HOST_DEVICE void span(bool is_x, int extent, int64_t& first, int64_t& last) const {
    double low = 1e300, high = -1e300;
    for (int i = 0; i < count; ++i) {
      const double at = (is_x ? x : y)[i];
      if (at < low) low = at;
      if (at > high) high = at;
    }
    first = int64_t(std::floor(clamp(low, -1.0, double(extent))));
    last = int64_t(std::ceil(clamp(high, -1.0, double(extent))));
    if (count == 0) last = first;
  }
};

// Calls visit(row, column, weight) for the cells that have a weight in the mean of the bilinear surface over a bin; a
// cell may come several times. The map is extended by zeros. Between four cells the surface is a polynomial of degree
// two, so its values at the middles of a triangle's sides give the exact integral over the triangle.
template <typename T, typename Visit>
ROI_HOST_DEVICE void for_each_cell(const RotatedBox<T>& box, int p, int q, Visit&& visit) {
  const T v[2] = {bin_edge(box.y, p), bin_edge(box.y, p + 1)};
  const T u[2] = {bin_edge(box.x, q), bin_edge(box.x, q + 1)};
  if (!(v[0] < v[1] && u[0] < u[1])) return;
  const double area = (double(v[1]) - double(v[0])) * (double(u[1]) - double(u[0]));
  Polygon bin{{}, {}, 0};
  for (int corner = 0; corner < 4; ++corner) {
    const double b = v[corner / 2], a = u[corner == 1 || corner == 2];
    bin.add(
        b * box.cos - a * box.sin + box.centre_y, b * box.sin + a * box.cos + box.centre_x);
  }
  int64_t first_row, last_row, first, last;
  bin.span(false, box.y.extent, first_row, last_row);
  for (int64_t i = first_row; i < last_row; ++i) {
    const Polygon row = bin.cut(false, true, double(i)).cut(false, false, double(i + 1));
    row.span(true, box.x.extent, first, last);
    for (int64_t j = first; j < last; ++j) {
      const Polygon part = row.cut(true, true, double(j)).cut(true, false, double(j + 1));
      double weight[2][2] = {};
      for (int t = 2; t < part.count; ++t) {
        const int corner[3] = {0, t - 1, t};
        const double third =
            std::fabs(
                (part.y[t - 1] - part.y[0]) * (part.x[t] - part.x[0]) -
                (part.y[t] - part.y[0]) * (part.x[t - 1] - part.x[0])) / 6;
        for (int side = 0; side < 3; ++side) {
          const int from = corner[side], to = corner[(side + 1) % 3];
          const double y = (part.y[from] + part.y[to]) / 2 - double(i);
          const double x = (part.x[from] + part.x[to]) / 2 - double(j);
          weight[0][0] += third * (1 - y) * (1 - x);
          weight[0][1] += third * (1 - y) * x;
          weight[1][0] += third * y * (1 - x);
          weight[1][1] += third * y * x;
        }
      }
      for (int a = 0; a < 2; ++a) {
        for (int b = 0; b < 2; ++b) {
          const int64_t cell_y = i + a, cell_x = j + b;
          if (cell_y < 0 || cell_y >= box.y.extent || cell_x < 0 || cell_x >= box.x.extent) continue;
          const T share = T(weight[a][b] / area);
          if (share > T(0)) visit(int(cell_y), int(cell_x), share);
        }
      }
    }
  }
}

}  // namespace roi_plugins
