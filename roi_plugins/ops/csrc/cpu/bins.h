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

// Adds up what a bin reads of each cell: the samples of a rotated grid share cells in no order.
template <typename A>
class CellSum {
 public:
  // For cells top .. bottom and left .. right, none of them read yet.
  void start(int top, int bottom, int left, int right) {
    top_ = top;
    left_ = left;
    width_ = right - left + 1;
    height_ = bottom - top + 1;
    sums_.assign(size_t(width_) * height_, A(0));
  }
  // Of boxes beyond 2^20 cells rounding may put a sample where the bin is not.
  void add(int row, int column, A weight) {
    const unsigned i = unsigned(row - top_), j = unsigned(column - left_);
    if (i < unsigned(height_) && j < unsigned(width_)) sums_[size_t(i) * width_ + j] += weight;
  }
  // Appends what was read, by row and column.
  void move_to(std::vector<Place<A>>& result) const {
    const size_t size = result.size();
    result.resize(size + sums_.size());
    Place<A>* to = result.data() + size;
    const A* sum = sums_.data();
    for (int row = top_; row < top_ + height_; ++row) {
      for (int column = left_; column < left_ + width_; ++column, ++sum) {
        if (*sum != A(0)) *to++ = {row, column, *sum};
      }
    }
    result.resize(to - result.data());
  }

 private:
  int top_ = 0, left_ = 0, width_ = 0, height_ = 0;
  std::vector<A> sums_;
};

// The cells around what a bin of a rotated box reads: false if there are none.
template <typename A>
bool cells_around(
    const RotatedBox<A>& box, int p, int q, bool samples, int& top, int& bottom, int& left, int& right) {
  const auto bounds = [](A middle, A reach, int extent, int& low, int& high) {
    reach += A(1e-3);  // more than rounding, where cells are told apart
    if (!(middle + reach >= A(-1) && middle - reach <= A(extent))) return false;
    low = int(clamp(middle - reach, A(0), A(extent - 1)));
    high = int(clamp(middle + reach + A(1), A(0), A(extent - 1)));
    return true;
  };
  // Half of a bin, or how far samples in the middles of their strata are from its middle.
  const auto half = [&](const Axis<A>& axis) {
    const bool between = samples && !axis.jitter.on && axis.grid > A(0);
    return std::fabs(axis.bin) * (between ? A(0.5) - A(0.5) / axis.grid : A(0.5));
  };
  const A v = (bin_edge(box.y, p) + bin_edge(box.y, p + 1)) / A(2), half_v = half(box.y);
  const A u = (bin_edge(box.x, q) + bin_edge(box.x, q + 1)) / A(2), half_u = half(box.x);
  const A cos = std::fabs(box.cos), sin = std::fabs(box.sin);
  return bounds(box.map_y(v, u), half_v * cos + half_u * sin, box.y.extent, top, bottom) &&
      bounds(box.map_x(v, u), half_v * sin + half_u * cos, box.x.extent, left, right);
}

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
      rows_.take(bins.items, &Place<A>::row);
      columns_.take(bins.items, &Place<A>::column);
    }
    const CellRange& rows() const { return rows_; }
    const CellRange& columns() const { return columns_; }
    bool is_empty() const { return bins.items.empty() && invalid.empty(); }

   private:
    void resolve_rotated(const Rois<A>& rois, int64_t k) {
      const Options& options = rois.call.options;
      const RotatedBox<A> box = rois.rotated_box(k);
      const bool integral = options.method.sampling == Sampling::integral;
      bins.items.reserve(12 * options.bins());  // what 2x2 samples read, roughly
      CellSum<A> sum;
      const auto add = [&](int row, int column, A weight) { sum.add(row, column, weight); };
      for_each_bin(options, [&](int p, int q) {
        int top, bottom, left, right;
        if (!cells_around(box, p, q, !integral, top, bottom, left, right)) return;
        sum.start(top, bottom, left, right);
        if (integral) {
          for_each_cell(box, p, q, add);
        } else {
          const A share = A(1) / (box.y.grid * box.x.grid);
          const auto read = [&](A at_y, A at_x, int64_t, int64_t) {
            const Taps<A> y = bilinear_taps(at_y, box.y.extent);
            const Taps<A> x = bilinear_taps(at_x, box.x.extent);
            add(y.low, x.low, share * y.low_weight * x.low_weight);
            add(y.low, x.high, share * y.low_weight * x.high_weight);
            add(y.high, x.low, share * y.high_weight * x.low_weight);
            add(y.high, x.high, share * y.high_weight * x.high_weight);
          };
          for_each_sample(box, p, q, read, [] {});
        }
        sum.move_to(bins.items);
      });
    }
    void resolve_upright(const Rois<A>& rois, int64_t k) {
      const Options& options = rois.call.options;
      const Axis<A> y_axis = rois.y_axis(k), x_axis = rois.x_axis(k);
      std::vector<Tap<A>> y, x;
      for_each_bin(options, [&](int p, int q) {
        const Offset<A> offset = rois.offset(k, p, q);
        if (!offset.is_finite()) {
          invalid.push_back(p * options.pooled_width + q);
          return;
        }
        y.clear();
        x.clear();
        append_taps(options.method, moved(y_axis, offset.y), p, y);
        append_taps(options.method, moved(x_axis, offset.x), q, x);
        for (const Tap<A>& a : y) {
          for (const Tap<A>& b : x) bins.items.push_back({a.index, b.index, a.weight * b.weight});
        }
      });
    }
    template <typename Work>
    void for_each_bin(const Options& options, Work&& work) {
      for (int p = 0; p < options.pooled_height; ++p) {
        for (int q = 0; q < options.pooled_width; ++q) {
          work(p, q);
          bins.close();
        }
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
