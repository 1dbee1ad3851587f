// What a reduction makes of the samples of a RoI: tables for each axis, made once, and from them the taps of
// all bins, whose cells are numbered as the map or the window at hand has them.
#pragma once

#include <algorithm>
#include <climits>
#include <vector>

#include "../geometry.h"
#include "loops.h"

namespace roi_plugins {

// The cells of an axis from the first to the last that is read.
class CellRange {
 public:
  void clear() {
    first_ = INT_MAX;
    reads_.clear();
  }
  void add(int cell) {
    if (reads_.empty()) first_ = cell;
    if (cell < first_) {
      reads_.insert(reads_.begin(), first_ - cell, 0);
      first_ = cell;
    }
    if (cell >= first_ + count()) reads_.resize(cell - first_ + 1, 0);
    reads_[cell - first_] = 1;
  }
  int first() const { return first_; }
  int count() const { return int(reads_.size()); }
  bool reads(int i) const { return reads_[i]; }  // the i-th from the first

 private:
  int first_ = INT_MAX;
  std::vector<char> reads_;
};

// An average is separable: a bin's weight of a cell is the product of its weights on both axes.
template <typename S>
class Average {
 public:
  using A = accumulation_t<S>;
  using Index = uint8_t;
  static constexpr bool has_winner = false;

  // For each bin one weight a cell, however many samples share it.
  struct AxisTable {
    CellRange cells;
    std::vector<int> begin;
    std::vector<Tap<A>> taps;

    void resolve(const Method& method, const Axis<A>& axis, int pooled) {
      cells.clear();
      taps.clear();
      begin.assign(1, 0);
      for (int p = 0; p < pooled; ++p) {
        const Window<A> window = make_window(method, axis, p);
        for (int64_t i = window.begin; i < window.end; ++i) {
          const Taps<A> sample = make_taps(method, axis, p, i);
          add(sample.low, sample.low_weight);
          if (sample.high_weight != A(0)) add(sample.high, sample.high_weight);
        }
        for (size_t t = begin.back(); t < taps.size(); ++t) taps[t].weight /= window.count;
        begin.push_back(int(taps.size()));
      }
    }

   private:
    // Positions are monotone, so a cell that the bin has read before is among its last two.
    void add(int cell, A weight) {
      for (size_t t = taps.size(); t > size_t(begin.back()) && t + 2 > taps.size(); --t) {
        if (taps[t - 1].cell == cell) {
          taps[t - 1].weight += weight;
          return;
        }
      }
      cells.add(cell);
      taps.push_back({cell, weight});
    }
  };

  // `first` is the number of the cell (0, 0) of the map, `row` the cells of a row.
  void combine(const AxisTable& y, const AxisTable& x, int64_t first, int64_t row) {
    taps_.resize(y.taps.size() * x.taps.size());
    begin_.assign(1, 0);
    Tap<A>* tap = taps_.data();
    for (size_t p = 0; p + 1 < y.begin.size(); ++p) {
      for (size_t q = 0; q + 1 < x.begin.size(); ++q) {
        for (int i = y.begin[p]; i < y.begin[p + 1]; ++i) {
          const int cell = int(first + y.taps[i].cell * row);
          for (int j = x.begin[q]; j < x.begin[q + 1]; ++j) {
            *tap++ = {cell + x.taps[j].cell, y.taps[i].weight * x.taps[j].weight};
          }
        }
        begin_.push_back(int(tap - taps_.data()));
      }
    }
  }

  void forward(
      S* out, Index*, int64_t out_stride, const S* map, int64_t map_stride,
      int64_t channels) const {
    sum_taps(out, out_stride, map, map_stride, bins(), channels);
  }
  void backward(
      A* map, int64_t map_stride, const S* grad, const Index*, int64_t grad_stride,
      int64_t channels) const {
    scatter_taps(map, map_stride, grad, grad_stride, bins(), channels);
  }

 private:
  BinTaps<A> bins() const { return {int(begin_.size()) - 1, begin_.data(), taps_.data()}; }

  std::vector<int> begin_;
  std::vector<Tap<A>> taps_;
};

// A maximum compares sample by sample; Winner is the type of its index.
template <typename S, typename Winner>
class Maximum {
 public:
  using A = accumulation_t<S>;
  using Index = Winner;
  static constexpr bool has_winner = true;

  struct AxisTable {
    CellRange cells;
    std::vector<Window<A>> windows;
    std::vector<int> begin;
    std::vector<Taps<A>> taps;

    void resolve(const Method& method, const Axis<A>& axis, int pooled) {
      cells.clear();
      windows.clear();
      taps.clear();
      begin.assign(1, 0);
      for (int p = 0; p < pooled; ++p) {
        windows.push_back(make_window(method, axis, p));
        for (int64_t i = windows[p].begin; i < windows[p].end; ++i) {
          taps.push_back(make_taps(method, axis, p, i));
          cells.add(taps.back().low);
          if (taps.back().high_weight != A(0)) cells.add(taps.back().high);
        }
        begin.push_back(int(taps.size()));
      }
    }
  };

  void combine(const AxisTable& y, const AxisTable& x, int64_t first, int64_t row) {
    samples_.resize(y.taps.size() * x.taps.size());
    begin_.assign(1, 0);
    zero_after_.clear();
    Sample<A>* to = samples_.data();
    for (size_t p = 0; p < y.windows.size(); ++p) {
      for (size_t q = 0; q < x.windows.size(); ++q) {
        for (int i = y.begin[p]; i < y.begin[p + 1]; ++i) {
          for (int j = x.begin[q]; j < x.begin[q + 1]; ++j) {
            *to++ = sample(y.taps[i], x.taps[j], first, row);
          }
        }
        begin_.push_back(int(to - samples_.data()));
        zero_after_.push_back(first_outside(y.windows[p], x.windows[q]));
      }
    }
  }

  void forward(
      S* out, Index* winner, int64_t out_stride, const S* map, int64_t map_stride,
      int64_t channels) const {
    maximum_of_samples(out, winner, out_stride, map, map_stride, bins(), channels);
  }
  void backward(
      A* map, int64_t map_stride, const S* grad, const Index* winner, int64_t grad_stride,
      int64_t channels) const {
    scatter_winners(map, map_stride, grad, winner, grad_stride, bins(), channels);
  }

 private:
  static Sample<A> sample(const Taps<A>& y, const Taps<A>& x, int64_t first, int64_t row) {
    Sample<A> result;
    result.count = 0;
    const auto read = [&](int i, A row_weight, int j, A column_weight) {
      if (row_weight == A(0) || column_weight == A(0)) return;
      result.taps[result.count++] = {int(first + i * row + j), row_weight * column_weight};
    };
    read(y.low, y.low_weight, x.low, x.low_weight);
    read(y.low, y.low_weight, x.high, x.high_weight);
    read(y.high, y.high_weight, x.low, x.low_weight);
    read(y.high, y.high_weight, x.high, x.high_weight);
    return result;
  }
  BinSamples<A> bins() const {
    return {int(zero_after_.size()), begin_.data(), samples_.data(), zero_after_.data()};
  }

  std::vector<int> begin_;
  std::vector<Sample<A>> samples_;
  std::vector<int64_t> zero_after_;
};

}  // namespace roi_plugins
