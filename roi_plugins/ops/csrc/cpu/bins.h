// The reductions of RoIs whose bins are more than the product of two axes: rotated ones, bins that are moved one by
// one, bins that read channels of their own. The tables list what each bin reads.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "loops.h"
#include "reductions.h"
#include "rois.h"

namespace roi_plugins {

// A cell of the map, later counted from the RoI's first.
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

// What the bins of a rotated box read of each cell: its samples share cells in no order, so that they are added up.
// Made for one box after another; of a box that was given up, for want of memory, nothing is left.
template <typename A>
class CellSums {
 public:
  void start_box(const RotatedBox<A>& box) {
    map_ = {0, box.y.extent - 1, 0, box.x.extent - 1};
    count_ = 0;
    begin_.assign(1, 0);
    all_ = Cells::none();
  }
  // The next bin reads some of these cells, if any; what it adds beyond the map weighs 0.
  void start_bin(const Cells& cells) {
    reserve(cells.count());
    if (sums_.size() < cells.count()) sums_.resize(cells.count());
    cells_ = cells;
    all_.add(cells);
  }
  void add(int row, int column, A weight) { at(row, column) += weight; }
  // A sample: y from `row` to the next, x from `column` to the next.
  void add(int row, int column, A y, A x, A weight) {
    A* const upper = &at(row, column);
    A* const lower = upper + cells_.width();
    const A upper_weight = weight * (A(1) - y), lower_weight = weight * y;
    upper[0] += upper_weight * (A(1) - x);
    upper[1] += upper_weight * x;
    lower[0] += lower_weight * (A(1) - x);
    lower[1] += lower_weight * x;
  }
  // A bin whose samples are so far apart that it is not worth a search for what they share.
  void start_sparse_bin(const Cells& cells, size_t samples) {
    reserve(4 * samples);
    cells_ = Cells::none();
    all_.add(cells);
  }
  void list(int row, int column, A y, A x, A weight) {
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        const A share = weight * (i ? y : A(1) - y) * (j ? x : A(1) - x);
        if (share > A(0)) places_[count_++] = {row + i, column + j, share};
      }
    }
  }
  const Cells& cells() const { return cells_; }
  void close_bin() {
    Place<A>* to = places_.data() + count_;
    int row = cells_.top, column = cells_.left;
    for (size_t i = 0; i < cells_.count(); ++i) {
      // No branches: which cells are read is anybody's guess.
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
  // The lists of all bins, by row and column, counted from the first of `rows` and `columns`.
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

// The samples of a rotated box that has few in a bin, all of them in loops that compilers turn into vectors.
template <typename A>
class FewSamples {
 public:
  static bool suit(const RotatedBox<A>& box) {
    // Of a box without height the width may be anything.
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
  // A row of samples, from `offset` on. What bilinear_taps says, without branches; the cell behind the last weighs 0.
  void resolve(const RotatedBox<A>& given, A v, size_t offset) {
    const RotatedBox<A> box = given;  // which no write can change, as vectors need it
    const A share = A(1) / (box.y.grid * box.x.grid);
    const A height = A(box.y.extent), width = A(box.x.extent);
    const int last_row = box.y.extent - 1, last_column = box.x.extent - 1;
    const A* const u = u_.data();
    int* const row = row_.data() + offset;
    int* const column = column_.data() + offset;
    A* const y = y_.data() + offset;
    A* const x = x_.data() + offset;
    A* const weight = weight_.data() + offset;
#pragma GCC ivdep
    for (int j = 0; j < width_; ++j) {
      const A at_y = box.map_y(v, u[j]), at_x = box.map_x(v, u[j]);
      const bool reads = (at_y >= A(-1)) & (at_y <= height) & (at_x >= A(-1)) & (at_x <= width);
      weight[j] = reads ? share : A(0);
      const A on_y = clamp(at_y, A(0), A(last_row)), on_x = clamp(at_x, A(0), A(last_column));
      const int low_y = std::min(int(on_y), last_row), low_x = std::min(int(on_x), last_column);
      row[j] = low_y;
      column[j] = low_x;
      y[j] = low_y == last_row ? A(0) : on_y - A(low_y);
      x[j] = low_x == last_column ? A(0) : on_x - A(low_x);
    }
  }

  int rows_ = 0, columns_ = 0, width_ = 0;
  std::vector<A> u_;
  std::vector<int> row_, column_;
  std::vector<A> y_, x_, weight_;
};

// The cells around what the bins of a rotated box read.
template <typename A>
class BinCells {
 public:
  BinCells(const RotatedBox<A>& box, bool samples) : box_(box) {
    // Half of a bin, or how far samples in the middles of their strata are from its middle.
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

template <typename S>
class BinAverage {
 public:
  using A = accumulation_t<S>;
  using Index = uint8_t;
  static constexpr bool has_winner = false;

  class Tables {
   public:
    Lists<Place<A>> bins;
    std::vector<int> invalid;  // bins that were moved to nowhere
    int groups = 1;

    void resolve(const Rois<A>& rois, int64_t k) {
      groups = int(rois.call.groups());
      if (rois.call.rotated()) {
        resolve_rotated(rois, k);
      } else {
        resolve_upright(rois, k);
      }
    }
    const CellRange& rows() const { return rows_; }
    const CellRange& columns() const { return columns_; }
    bool is_empty() const { return bins.items.empty() && invalid.empty(); }

   private:
    void resolve_rotated(const Rois<A>& rois, int64_t k) {
      const Options& options = rois.call.options;
      const RotatedBox<A> box = rois.rotated_box(k);
      // Kept, since boxes are many and small.
      static thread_local CellSums<A> sums;
      static thread_local FewSamples<A> samples;
      sums.start_box(box);
      const bool integral = options.method.sampling == Sampling::integral;
      if (!integral && FewSamples<A>::suit(box)) {
        samples.start(box, options.pooled_height, options.pooled_width);
        for_each_bin(options, [&](int p, int q) {
          samples.read(p, q, sums);
          sums.close_bin();
        });
      } else {
        const BinCells<A> around(box, !integral);
        for_each_bin(options, [&](int p, int q) {
          sums.start_bin(around.of_bin(p, q));
          if (!sums.cells().is_empty()) read(box, integral, p, q, sums);
          sums.close_bin();
        });
      }
      sums.take(bins, rows_, columns_);
    }
    static void read(const RotatedBox<A>& box, bool integral, int p, int q, CellSums<A>& sums) {
      // Of boxes beyond 2^20 cells rounding may put a sample where the bin is not.
      const auto add = [&](int row, int column, A weight) {
        if (sums.cells().has(row, column)) sums.add(row, column, weight);
      };
      if (integral) {
        for_each_cell(box, p, q, add);
        return;
      }
      const A share = A(1) / (box.y.grid * box.x.grid);
      const auto visit = [&](A at_y, A at_x, int64_t, int64_t) {
        const Taps<A> y = bilinear_taps(at_y, box.y.extent);
        const Taps<A> x = bilinear_taps(at_x, box.x.extent);
        add(y.low, x.low, share * y.low_weight * x.low_weight);
        add(y.low, x.high, share * y.low_weight * x.high_weight);
        add(y.high, x.low, share * y.high_weight * x.low_weight);
        add(y.high, x.high, share * y.high_weight * x.high_weight);
      };
      for_each_sample(box, p, q, visit, [] {});
    }
    void resolve_upright(const Rois<A>& rois, int64_t k) {
      const Options& options = rois.call.options;
      const Axis<A> y_axis = rois.y_axis(k), x_axis = rois.x_axis(k);
      std::vector<Tap<A>> y, x;
      for_each_bin(options, [&](int p, int q) {
        const Offset<A> offset = rois.offset(k, p, q);
        y.clear();
        x.clear();
        if (offset.is_finite()) {
          append_taps(options.method, moved(y_axis, offset.y), p, y);
          append_taps(options.method, moved(x_axis, offset.x), q, x);
        } else {
          invalid.push_back(p * options.pooled_width + q);
        }
        for (const Tap<A>& a : y) {
          for (const Tap<A>& b : x) bins.items.push_back({a.index, b.index, a.weight * b.weight});
        }
        bins.close();
      });
      rows_.take(bins.items, &Place<A>::row);
      columns_.take(bins.items, &Place<A>::column);
    }
    template <typename Work>
    static void for_each_bin(const Options& options, Work&& work) {
      for (int p = 0; p < options.pooled_height; ++p) {
        for (int q = 0; q < options.pooled_width; ++q) work(p, q);
      }
    }

    CellRange rows_, columns_;
  };

  // As for other reductions; the channels of the groups, of which each bin has its own, lie side by side.
  void forward(
      const Tables& tables, S* out, Index*, const S* map, int64_t map_row, int64_t channels) {
    const int64_t stride = channels * tables.groups, row = map_row / stride;
    list(tables, [&](const Place<A>& place) { return int(place.row * row + place.column); });
    const TapLists<A> lists{tables.bins.count(), tables.bins.begin.data(), taps_.data()};
    if (tables.groups == 1) {
      sum_taps(out, channels, map, stride, lists, channels);
    } else {
      for (int b = 0; b < lists.count; ++b) {
        sum_taps(
            out + b * channels, channels, map + b * channels, stride,
            {1, lists.begin + b, lists.taps}, channels);
      }
    }
    for (const int b : tables.invalid) {
      std::fill_n(out + b * channels, channels, S(std::numeric_limits<float>::quiet_NaN()));
    }
  }
  void backward(
      const Tables& tables, A* map, int64_t map_row, int64_t map_stride, const S* grad,
      const Index*, int64_t channels) {
    list(tables, [](const Place<A>&) { return 0; });
    counting_.resize(std::max(counting_.size(), taps_.size() + 1));
    std::iota(counting_.begin(), counting_.end(), 0);
    const int64_t group = tables.groups > 1 ? map_stride / tables.groups : 0;
    const Place<A>* const places = tables.bins.items.data();
    for (int b = 0; b < tables.bins.count(); ++b) {
      // Cells side by side go together.
      for (int t = tables.bins.begin[b], end; t < tables.bins.begin[b + 1]; t = end) {
        for (end = t + 1; end < tables.bins.begin[b + 1]; ++end) {
          if (places[end].row != places[t].row) break;
          if (places[end].column != places[t].column + end - t) break;
        }
        add_taps(
            map + places[t].row * map_row + places[t].column * map_stride + b * group, map_stride,
            grad + b * channels, 0, {end - t, counting_.data(), taps_.data() + t}, channels);
      }
    }
  }

 private:
  template <typename Indexing>
  void list(const Tables& tables, Indexing&& indexing) {
    taps_.resize(tables.bins.items.size());
    for (size_t t = 0; t < taps_.size(); ++t) {
      taps_[t] = {indexing(tables.bins.items[t]), tables.bins.items[t].weight};
    }
  }

  std::vector<Tap<A>> taps_;
  std::vector<int> counting_;  // 0, 1, 2, ...
};

// Of rotated RoIs: all others that have a maximum are products of their axes.
template <typename S, typename Winner>
class BinMaximum {
 public:
  using A = accumulation_t<S>;
  using Index = Winner;
  static constexpr bool has_winner = true;

  class Tables {
   public:
    struct Read {
      Taps<A> y, x;
    };
    Lists<Read> bins;
    std::vector<int64_t> zero_after;

    void resolve(const Rois<A>& rois, int64_t k) {
      const Options& options = rois.call.options;
      const RotatedBox<A> box = rois.rotated_box(k);
      for (int p = 0; p < options.pooled_height; ++p) {
        for (int q = 0; q < options.pooled_width; ++q) {
          const int64_t first = bins.items.size();
          zero_after.push_back(-1);
          const auto read = [&](A y, A x, int64_t, int64_t) {
            bins.items.push_back({bilinear_taps(y, box.y.extent), bilinear_taps(x, box.x.extent)});
          };
          const auto outside = [&] {
            if (zero_after.back() < 0) zero_after.back() = int64_t(bins.items.size()) - first;
          };
          for_each_sample(box, p, q, read, outside);
          bins.close();
        }
      }
      for (Read& read : bins.items) {
        for (Taps<A>* taps : {&read.y, &read.x}) {
          CellRange& cells = taps == &read.y ? rows_ : columns_;
          if (taps->low_weight != A(0)) cells.add(taps->low);
          if (taps->high_weight != A(0)) cells.add(taps->high);
        }
      }
      for (Read& read : bins.items) {
        read.y.low -= rows_.first();
        read.y.high -= rows_.first();
        read.x.low -= columns_.first();
        read.x.high -= columns_.first();
      }
    }
    const CellRange& rows() const { return rows_; }
    const CellRange& columns() const { return columns_; }
    bool is_empty() const { return bins.items.empty(); }

   private:
    CellRange rows_, columns_;
  };

  void forward(
      const Tables& tables, S* out, Index* winner, const S* map, int64_t map_row,
      int64_t channels) {
    list(tables, map_row / channels);
    maximum_of_samples(
        out, winner, channels, map, channels,
        {tables.bins.count(), tables.bins.begin.data(), samples_.data(), tables.zero_after.data()},
        channels);
  }
  void backward(
      const Tables& tables, A* map, int64_t map_row, int64_t map_stride, const S* grad,
      const Index* winner, int64_t channels) {
    list(tables, map_row / map_stride);
    S* const row = row_.at_least(channels);
    const int single[2] = {0, 1};
    for (int b = 0; b < tables.bins.count(); ++b, grad += channels, winner += channels) {
      const int begin = tables.bins.begin[b];
      for (int s = begin; s < tables.bins.begin[b + 1]; ++s) {
        take_winners(row, grad, winner, s - begin, 1, channels);
        for (int t = 0; t < samples_[s].count; ++t) {
          const Tap<A> tap{0, samples_[s].taps[t].weight};
          add_taps(
              map + samples_[s].taps[t].index * map_stride, 0, row, 0, {1, single, &tap}, channels);
        }
      }
    }
  }

 private:
  void list(const Tables& tables, int64_t row) {
    samples_.clear();
    for (const auto& [y, x] : tables.bins.items) {
      Sample<A> sample{{}, 0};
      const auto add = [&](int i, int j, A weight) {
        if (weight != A(0)) sample.taps[sample.count++] = {int(i * row + j), weight};
      };
      add(y.low, x.low, y.low_weight * x.low_weight);
      add(y.low, x.high, y.low_weight * x.high_weight);
      add(y.high, x.low, y.high_weight * x.low_weight);
      add(y.high, x.high, y.high_weight * x.high_weight);
      samples_.push_back(sample);
    }
  }

  std::vector<Sample<A>> samples_;
  Scratch<S> row_;
};

}  // namespace roi_plugins
