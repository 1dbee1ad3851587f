// The reductions of RoIs whose bins are not the product of two axes: rotated RoIs, bins with offsets, and bins that
// read channels of their own. The tables list what each bin reads.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "loops.h"
#include "rois.h"
#include "rotated_bins.h"
#include "separable.h"

namespace roi_plugins {

template <typename S>
class BinAverage {
 public:
  using A = accumulation_t<S>;
  using Index = uint8_t;
  static constexpr bool has_argmax = false;

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
      // Their memory is kept, since boxes are many and small.
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
      // For boxes beyond 2^20 cells, rounding may put a sample outside of its bin.
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
        for_each_read(y, x, share, add);
      };
      for_each_sample(box, p, q, visit, [] {});
    }
    void resolve_upright(const Rois<A>& rois, int64_t k) {
      const Options& options = rois.call.options;
      const Axis<A> y_axis = rois.y_axis(k), x_axis = rois.x_axis(k);
      std::vector<Tap<A>> y, x;
      for_each_bin(options, [&](int p, int q) {
        const int b = p * options.pooled_width + q;
        const Offset<A> offset = rois.offset(k, b);
        y.clear();
        x.clear();
        if (offset.is_finite()) {
          append_taps(options.method, moved(y_axis, offset.y), p, y);
          append_taps(options.method, moved(x_axis, offset.x), q, x);
        } else {
          invalid.push_back(b);
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

  // As in separable.h. Where each bin reads channels of its own, the groups of channels lie side by side.
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
      std::fill_n(out + b * channels, channels, S(unread_value<A>(RoiState::invalid)));
    }
  }
  void backward(
      const Tables& tables, A* map, int64_t map_row, int64_t map_stride, Bins<S> grads, Bins<Index>,
      int64_t channels, RowRange within) {
    list(tables, [](const Place<A>&) { return 0; });
    counting_.resize(std::max(counting_.size(), taps_.size() + 1));
    std::iota(counting_.begin(), counting_.end(), 0);
    const int64_t group = tables.groups > 1 ? map_stride / tables.groups : 0;
    const Place<A>* const places = tables.bins.items.data();
    for (int b = 0; b < tables.bins.count(); ++b) {
      // One call for all cells that lie side by side.
      for (int t = tables.bins.begin[b], end; t < tables.bins.begin[b + 1]; t = end) {
        for (end = t + 1; end < tables.bins.begin[b + 1]; ++end) {
          if (places[end].row != places[t].row) break;
          if (places[end].column != places[t].column + end - t) break;
        }
        if (!within.has(places[t].row)) continue;
        add_taps(
            map + places[t].row * map_row + places[t].column * map_stride + b * group, map_stride,
            grads[b], 0, {end - t, counting_.data(), taps_.data() + t}, channels);
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

// For rotated RoIs. All others that have a maximum are products of two axes.
template <typename S, typename Argmax>
class BinMaximum {
 public:
  using A = accumulation_t<S>;
  using Index = Argmax;
  static constexpr bool has_argmax = true;

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
      const Tables& tables, S* out, Index* argmax, const S* map, int64_t map_row,
      int64_t channels) {
    list(tables, map_row / channels, {0, tables.rows().count()});
    maximum_of_samples(
        out, argmax, channels, map, channels,
        {tables.bins.count(), tables.bins.begin.data(), samples_.data(), tables.zero_after.data()},
        channels);
  }
  void backward(
      const Tables& tables, A* map, int64_t map_row, int64_t map_stride, Bins<S> grads,
      Bins<Index> argmax, int64_t channels, RowRange within) {
    list(tables, map_row / map_stride, within);
    S* const row = row_.at_least(channels);
    const int single[2] = {0, 1};
    for (int b = 0; b < tables.bins.count(); ++b) {
      const int begin = tables.bins.begin[b];
      for (int s = begin; s < tables.bins.begin[b + 1]; ++s) {
        if (samples_[s].count == 0) continue;
        take_at_argmax(row, grads[b], argmax[b], s - begin, 1, channels);
        for (int t = 0; t < samples_[s].count; ++t) {
          const Tap<A> tap{0, samples_[s].taps[t].weight};
          add_taps(
              map + samples_[s].taps[t].index * map_stride, 0, row, 0, {1, single, &tap}, channels);
        }
      }
    }
  }

 private:
  void list(const Tables& tables, int64_t row, RowRange within) {
    samples_.clear();
    for (const auto& [y, x] : tables.bins.items) {
      Sample<A> sample{{}, 0};
      for_each_read(y, x, A(1), [&](int i, int j, A weight) {
        if (within.has(i)) sample.taps[sample.count++] = {int(i * row + j), weight};
      });
      samples_.push_back(sample);
    }
  }

  std::vector<Sample<A>> samples_;
  Scratch<S> row_;
};

}  // namespace roi_plugins
