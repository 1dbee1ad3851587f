// What the bins of a rotated box read, as a list of cells and weights for each bin. per_bin.h uses the lists.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "../rotated.h"
#include "separable.h"

namespace roi_plugins {

// A cell of the map and its weight; CellSums::take makes the cell relative to the first one of the RoI.
template <typename A>
struct Place {
  int row, column;
  A weight;
};

// Cells top .. bottom of a map and left .. right.
struct Cells {
  int top, bottom, left, right;

  static Cells none() {
    return {std::numeric_limits<int>::max(), -1, std::numeric_limits<int>::max(), -1};
  }
  bool is_empty() const { return bottom < top; }
  int width() const { return right - left + 1; }
  size_t count() const { return is_empty() ? 0 : size_t(width()) * (bottom - top + 1); }
  bool has(int row, int column) const {
    return row >= top && row <= bottom && column >= left && column <= right;
  }
  void add(const Cells& other) {
    top = std::min(top, other.top);
    bottom = std::max(bottom, other.bottom);
    left = std::min(left, other.left);
    right = std::max(right, other.right);
  }
};

// Adds up what each bin of a rotated box reads of each cell, since the samples share cells in no order. It serves one
// box after another. start_box also clears what a box left that ran out of memory.
template <typename A>
class CellSums {
 public:
  void start_box(const RotatedBox<A>& box) {
    map_ = {0, box.y.extent - 1, 0, box.x.extent - 1};
    count_ = 0;
    begin_.assign(1, 0);
    all_ = Cells::none();
  }
  // The next bin reads only cells among these. It may add to one beyond the map, with a weight of 0.
  void start_bin(const Cells& cells) {
    reserve(cells.count());
    if (sums_.size() < cells.count()) sums_.resize(cells.count());
    cells_ = cells;
    all_.add(cells);
  }
  void add(int row, int column, A weight) { at(row, column) += weight; }
  // A sample at the fraction y of the way from `row` to the next one, and x from `column` to the next one.
  void add(int row, int column, A y, A x, A weight) {
    for_each_corner(between(row, y), between(column, x), weight, [&](int i, int j, A share) {
      at(i, j) += share;
    });
  }
  // For a bin whose samples are so far apart that adding up costs more than it saves.
  void start_sparse_bin(const Cells& cells, size_t samples) {
    reserve(4 * samples);
    cells_ = Cells::none();
    all_.add(cells);
  }
  void list(int row, int column, A y, A x, A weight) {
    for_each_read(between(row, y), between(column, x), weight, [&](int i, int j, A share) {
      places_[count_++] = {i, j, share};
    });
  }
  const Cells& cells() const { return cells_; }
  void close_bin() {
    Place<A>* to = places_.data() + count_;
    int row = cells_.top, column = cells_.left;
    for (size_t i = 0; i < cells_.count(); ++i) {
      // No branches: no processor can predict which cells are read.
      *to = {row, column, sums_[i]};
      to += sums_[i] > A(0);
      sums_[i] = A(0);
      const bool ends = column == cells_.right;
      row += ends;
      column = ends ? cells_.left : column + 1;
    }
    count_ = to - places_.data();
    begin_.push_back(int(count_));
  }
  // The lists of all bins. Rows and columns are counted from the first of `rows` and `columns`.
  void take(Lists<Place<A>>& bins, CellRange& rows, CellRange& columns) {
    bins.begin.swap(begin_);
    bins.items.assign(places_.begin(), places_.begin() + count_);
    if (all_.is_empty()) return;
    rows = CellRange(all_.top, std::min(all_.bottom, map_.bottom));
    columns = CellRange(all_.left, std::min(all_.right, map_.right));
    for (Place<A>& place : bins.items) {
      place.row -= all_.top;
      place.column -= all_.left;
    }
  }

 private:
  // The taps at a cell and the next one, which lies beyond the map only where it weighs nothing.
  static Taps<A> between(int cell, A fraction) {
    return {cell, cell + 1, A(1) - fraction, fraction};
  }
  void reserve(size_t more) {
    if (places_.size() < count_ + more) places_.resize(std::max(2 * places_.size(), count_ + more));
  }
  A& at(int row, int column) {
    return sums_[size_t(row - cells_.top) * cells_.width() + (column - cells_.left)];
  }

  Cells map_ = Cells::none(), all_ = Cells::none(), cells_ = Cells::none();
  std::vector<A> sums_;  // zeros between bins
  std::vector<Place<A>> places_;
  size_t count_ = 0;
  std::vector<int> begin_{0};
};

// The samples of a rotated box that has few of them in a bin, made in loops that compilers vectorise.
template <typename A>
class FewSamples {
 public:
  static bool suit(const RotatedBox<A>& box) {
    // A box of grid 0 on one axis may have any number of samples on the other.
    return std::min(box.y.grid, box.x.grid) >= A(1) && box.y.grid * box.x.grid <= A(16);
  }

  void start(const RotatedBox<A>& box, int pooled_height, int pooled_width) {
    rows_ = int(box.y.grid);
    columns_ = int(box.x.grid);
    width_ = columns_ * pooled_width;
    const int height = rows_ * pooled_height;
    u_.resize(width_);
    for (int j = 0; j < width_; ++j) u_[j] = sample_position(box.x, j / columns_, j % columns_);
    for (std::vector<int>* cell : {&row_, &column_}) cell->resize(size_t(height) * width_);
    for (std::vector<A>* part : {&y_, &x_, &weight_}) part->resize(size_t(height) * width_);
    for (int i = 0; i < height; ++i) {
      resolve(box, sample_position(box.y, i / rows_, i % rows_), size_t(i) * width_);
    }
  }
  void read(int p, int q, CellSums<A>& sums) const {
    Cells cells = Cells::none();
    for_each(p, q, [&](size_t s) {
      cells.add({row_[s], row_[s] + 1, column_[s], column_[s] + 1});
    });
    if (cells.count() <= size_t(16) * rows_ * columns_) {
      sums.start_bin(cells);
      for_each(p, q, [&](size_t s) { sums.add(row_[s], column_[s], y_[s], x_[s], weight_[s]); });
    } else {
      sums.start_sparse_bin(cells, size_t(rows_) * columns_);
      for_each(p, q, [&](size_t s) { sums.list(row_[s], column_[s], y_[s], x_[s], weight_[s]); });
    }
  }

 private:
  // Calls work(s) for the samples of a bin that read the map.
  template <typename Work>
  void for_each(int p, int q, Work&& work) const {
    for (int i = p * rows_; i < (p + 1) * rows_; ++i) {
      const size_t first = size_t(i) * width_ + q * columns_;
      for (size_t s = first; s < first + columns_; ++s) {
        if (weight_[s] != A(0)) work(s);
      }
    }
  }
  // Stores a row of samples from `offset` on.
  void resolve(const RotatedBox<A>& given, A v, size_t offset) {
    const RotatedBox<A> box = given;  // a copy that no write can change, or the loop would not be vectorised
    const A share = A(1) / (box.y.grid * box.x.grid);
    const int height = box.y.extent, width = box.x.extent;
    const A* const u = u_.data();
    int* const row = row_.data() + offset;
    int* const column = column_.data() + offset;
    A* const y = y_.data() + offset;
    A* const x = x_.data() + offset;
    A* const weight = weight_.data() + offset;
#pragma GCC ivdep
    for (int j = 0; j < width_; ++j) {
      const A at_y = box.map_y(v, u[j]), at_x = box.map_x(v, u[j]);
      weight[j] = is_on_map(at_y, height) & is_on_map(at_x, width) ? share : A(0);
      // A sample far beyond the map would overflow the int of a cell.
      const SplitPosition<A> on_y = split_position(std::min(at_y, A(height)), height);
      const SplitPosition<A> on_x = split_position(std::min(at_x, A(width)), width);
      row[j] = on_y.cell;
      column[j] = on_x.cell;
      y[j] = on_y.fraction;
      x[j] = on_x.fraction;
    }
  }

  int rows_ = 0, columns_ = 0, width_ = 0;
  std::vector<A> u_;
  std::vector<int> row_, column_;
  std::vector<A> y_, x_, weight_;
};

// Bounds of the cells that the bins of a rotated box read.
template <typename A>
class BinCells {
 public:
  BinCells(const RotatedBox<A>& box, bool samples) : box_(box) {
    // Half of a bin. Samples in the middle of their strata do not reach that far.
    const auto half = [&](const Axis<A>& axis) {
      const bool between = samples && !axis.jitter.on && axis.grid > A(0);
      return std::fabs(axis.bin) * (between ? A(0.5) - A(0.5) / axis.grid : A(0.5));
    };
    const A cos = std::fabs(box.cos), sin = std::fabs(box.sin), rounding = A(1e-3);
    reach_y_ = half(box.y) * cos + half(box.x) * sin + rounding;
    reach_x_ = half(box.y) * sin + half(box.x) * cos + rounding;
  }
  Cells of_bin(int p, int q) const {
    const A v = (bin_edge(box_.y, p) + bin_edge(box_.y, p + 1)) / A(2);
    const A u = (bin_edge(box_.x, q) + bin_edge(box_.x, q + 1)) / A(2);
    Cells cells;
    const bool reads = bound(box_.map_y(v, u), reach_y_, box_.y.extent, cells.top, cells.bottom) &&
        bound(box_.map_x(v, u), reach_x_, box_.x.extent, cells.left, cells.right);
    return reads ? cells : Cells::none();
  }

 private:
  static bool bound(A middle, A reach, int extent, int& low, int& high) {
    if (!(middle + reach >= A(-1) && middle - reach <= A(extent))) return false;
    low = int(clamp(middle - reach, A(0), A(extent - 1)));
    high = int(clamp(middle + reach + A(1), A(0), A(extent - 1)));
    return true;
  }

  const RotatedBox<A>& box_;
  A reach_y_, reach_x_;
};

}  // namespace roi_plugins
