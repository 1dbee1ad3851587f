// The reductions of upright RoIs. An upright box is the product of its axes, and so are its samples and their
// weights: a table for each axis, made once for all channels, says what is read.
#pragma once

#include <algorithm>
#include <vector>

#include "../geometry.h"
#include "loops.h"
#include "memory.h"
#include "rois.h"

namespace roi_plugins {

// The cells of an axis from the first to the last that is read, and which of them are.
class CellRange {
 public:
  CellRange() = default;
  // All of first .. last.
  CellRange(int first, int last) : first_(first), reads_(last - first + 1, 1) {}
  void add(int cell) {
    if (reads_.empty()) first_ = cell;
    if (cell < first_) {
      reads_.insert(reads_.begin(), first_ - cell, 0);
      first_ = cell;
    }
    if (cell >= first_ + count()) reads_.resize(cell - first_ + 1, 0);
    reads_[cell - first_] = 1;
  }
  // Fills an empty range with the cells of `things`, and makes those relative to the first one.
  template <typename T>
  void take(std::vector<T>& things, int T::*cell) {
    if (things.empty()) return;
    const auto by_cell = [&](const T& a, const T& b) { return a.*cell < b.*cell; };
    const auto ends = std::minmax_element(things.begin(), things.end(), by_cell);
    first_ = (*ends.first).*cell;
    reads_.assign((*ends.second).*cell - first_ + 1, 0);
    for (T& thing : things) reads_[thing.*cell -= first_] = 1;
  }
  void add(const CellRange& other) {
    for (int i = 0; i < other.count(); ++i) {
      if (other.reads(i)) add(other.first() + i);
    }
  }
  int first() const { return first_; }
  int count() const { return int(reads_.size()); }
  bool reads(int i) const { return reads_[i]; }  // the i-th from the first

  // Calls work(begin, end) for the runs of cells that are read.
  template <typename Work>
  void for_runs(Work&& work) const {
    for (int begin = 0, end; begin < count(); begin = end + 1) {
      for (end = begin; end < count() && reads_[end]; ++end) {}
      if (begin < end) work(begin, end);
    }
  }

 private:
  int first_ = 0;
  std::vector<char> reads_;
};

// A list of T for each of several things: those of thing i are items[begin[i]] .. items[begin[i + 1] - 1].
template <typename T>
struct Lists {
  std::vector<int> begin{0};
  std::vector<T> items;

  int count() const { return int(begin.size()) - 1; }
  void reserve(int count, int most) {
    begin.reserve(count + 1);
    items.reserve(count * most);
  }
  void close() { begin.push_back(int(items.size())); }
};

template <typename A>
TapLists<A> view(const Lists<Tap<A>>& lists) {
  return {lists.count(), lists.begin.data(), lists.items.data()};
}
template <typename A>
TapLists<A> view(const Lists<Tap<A>>& lists, int first, int last) {
  return {last - first, lists.begin.data() + first, lists.items.data()};
}
template <typename A>
TapLists<A> view(const Lists<Tap<A>>& lists, int i) {
  return view(lists, i, i + 1);
}

// Inverts lists: for each of `count` indices, which lists have it. The memory of `result` is reused.
template <typename A>
void invert(const Lists<Tap<A>>& lists, int count, Lists<Tap<A>>& result) {
  result.begin.assign(count + 1, 0);
  for (const Tap<A>& tap : lists.items) ++result.begin[tap.index];
  int end = 0;
  for (int i = 0; i <= count; ++i) end = result.begin[i] += end;
  result.items.resize(lists.items.size());
  // Backwards, so that every begin ends up where its list begins.
  for (int i = lists.count() - 1; i >= 0; --i) {
    for (int t = lists.begin[i + 1] - 1; t >= lists.begin[i]; --t) {
      result.items[--result.begin[lists.items[t].index]] = {i, lists.items[t].weight};
    }
  }
}

// Bins of a RoI; the channels of a bin lie side by side.
template <typename T>
struct Bins {
  const T* data;
  int64_t stride;  // from bin to bin

  const T* operator[](int64_t bin) const { return data + bin * stride; }
};

// Rows of a map, counted from the first one that a RoI reads.
struct RowRange {
  int begin, end;

  bool has(int row) const { return begin <= row && row < end; }
};

// Adds rows of samples to the cells that they were read from: first along x, then along y.
// Cells are relative to the first one of the RoI.
template <typename A>
class Spread {
 public:
  void start(const CellRange& cells, const Lists<Tap<A>>& columns, int64_t channels) {
    cells_ = &cells;
    invert(columns, cells.count(), columns_);
    channels_ = channels;
    row_ = scratch_.at_least(cells.count() * channels);
    while (weights_.count() < cells.count()) {
      weights_.items.push_back({weights_.count(), A(0)});
      weights_.close();
    }
  }
  // `map` is the RoI's first cell; strides are from row to row and from cell to cell. Values lie side by side.
  template <typename S>
  void add(
      A* map, int64_t row_stride, int64_t stride, const S* values, const TapLists<A>& rows, RowRange within) {
    sum_taps(row_, channels_, values, channels_, view(columns_), channels_);
    for (int t = rows.begin[0]; t < rows.begin[1]; ++t) {
      if (!within.has(rows.taps[t].index)) continue;
      for (int j = 0; j < cells_->count(); ++j) weights_.items[j].weight = rows.taps[t].weight;
      A* const to = map + rows.taps[t].index * row_stride;
      cells_->for_runs([&](int begin, int end) {
        add_taps(
            to + begin * stride, stride, row_ + begin * channels_, channels_,
            {end - begin, weights_.begin.data(), weights_.items.data()}, channels_);
      });
    }
  }

 private:
  const CellRange* cells_ = nullptr;
  Lists<Tap<A>> columns_;
  Scratch<A> scratch_;
  A* row_ = nullptr;
  Lists<Tap<A>> weights_;  // one for each column, of the row at hand
  int64_t channels_ = 0;
};

// Appends the cells of an axis that a bin reads, with their weights in an average.
template <typename A>
void append_taps(const Method& method, const Axis<A>& axis, int p, std::vector<Tap<A>>& taps) {
  const size_t first = taps.size();
  const auto add = [&](int cell, A weight) {
    if (weight == A(0)) return;
    const Tap<A>* const of_bin = taps.data() + first;
    const int count = int(taps.size() - first);
    const int t = recent_tap(count, cell, [&](int t) { return of_bin[t].index; });
    if (t >= 0) {
      taps[first + t].weight += weight;
    } else {
      taps.push_back({cell, weight});
    }
  };
  const Window<A> window = make_window(method, axis, p);
  for (int64_t i = window.begin; i < window.end; ++i) {
    const Taps<A> sample = make_taps(method, axis, p, i);
    add(sample.low, sample.low_weight);
    add(sample.high, sample.high_weight);
  }
  for (size_t t = first; t < taps.size(); ++t) taps[t].weight /= window.count;
}

// Where a RoI reads on both axes.
template <typename AxisTable>
struct AxisTables {
  AxisTable y, x;

  template <typename A>
  void resolve(const Rois<A>& rois, int64_t k) {
    const Options& options = rois.call.options;
    y.resolve(options.method, rois.y_axis(k), options.pooled_height);
    x.resolve(options.method, rois.x_axis(k), options.pooled_width);
  }
  const CellRange& rows() const { return y.cells; }
  const CellRange& columns() const { return x.cells; }
  bool is_empty() const { return rows().count() == 0 || columns().count() == 0; }
};

// In an average a bin has one weight for each cell, the product of the cell's weights on the two axes.
template <typename S>
class Average {
 public:
  using A = accumulation_t<S>;
  using Index = uint8_t;
  static constexpr bool has_argmax = false;

  struct AxisTable {
    CellRange cells;
    Lists<Tap<A>> taps;  // of each bin

    void resolve(const Method& method, const Axis<A>& axis, int pooled) {
      taps.reserve(pooled, 4);
      for (int p = 0; p < pooled; ++p) {
        append_taps(method, axis, p, taps.items);
        taps.close();
      }
      cells.take(taps.items, &Tap<A>::index);
    }
  };

  using Tables = AxisTables<AxisTable>;

  // Bins lie side by side, and so do cells. `map` is the RoI's first cell, `map_row` the stride of its rows.
  void forward(
      const Tables& tables, S* out, Index*, const S* map, int64_t map_row, int64_t channels) {
    const AxisTable &y = tables.y, &x = tables.x;
    A* const row = row_.at_least(x.cells.count() * channels);
    for (int p = 0; p < y.taps.count(); ++p, out += x.taps.count() * channels) {
      x.cells.for_runs([&](int begin, int end) {
        sum_taps(
            row + begin * channels, 0, map + begin * channels, map_row, view(y.taps, p),
            (end - begin) * channels);
      });
      sum_taps(out, channels, row, channels, view(x.taps), channels);
    }
  }
  void backward(
      const Tables& tables, A* map, int64_t map_row, int64_t map_stride, Bins<S> grads, Bins<Index>,
      int64_t channels, RowRange within) {
    const AxisTable &y = tables.y, &x = tables.x;
    invert(y.taps, y.cells.count(), rows_);
    invert(x.taps, x.cells.count(), columns_);
    const int bins = x.taps.count();
    A* const row = row_.at_least(bins * channels);
    for (int i = within.begin; i < within.end; ++i) {
      if (!y.cells.reads(i)) continue;
      for (int q = 0; q < bins; ++q) {
        sum_taps(row + q * channels, 0, grads[q], bins * grads.stride, view(rows_, i), channels);
      }
      x.cells.for_runs([&](int begin, int end) {
        add_taps(
            map + i * map_row + begin * map_stride, map_stride, row, channels,
            view(columns_, begin, end), channels);
      });
    }
  }

 private:
  Scratch<A> row_;
  Lists<Tap<A>> rows_, columns_;  // of each cell, which bins read it
};

// A maximum compares sample by sample; Argmax is the type of its index.
template <typename S, typename Argmax>
class Maximum {
 public:
  using A = accumulation_t<S>;
  using Index = Argmax;
  static constexpr bool has_argmax = true;

  struct AxisTable {
    CellRange cells;
    Lists<Tap<A>> taps;              // of each sample
    std::vector<int> begin{0};       // of each bin's samples
    std::vector<Window<A>> windows;  // of each bin

    void resolve(const Method& method, const Axis<A>& axis, int pooled) {
      for (int p = 0; p < pooled; ++p) {
        windows.push_back(make_window(method, axis, p));
        for (int64_t i = windows[p].begin; i < windows[p].end; ++i) {
          const Taps<A> sample = make_taps(method, axis, p, i);
          add(sample.low, sample.low_weight);
          add(sample.high, sample.high_weight);
          taps.close();
        }
        begin.push_back(taps.count());
      }
      for (Tap<A>& tap : taps.items) tap.index -= cells.first();
    }
    int samples(int p) const { return begin[p + 1] - begin[p]; }

   private:
    void add(int cell, A weight) {
      if (weight == A(0)) return;
      cells.add(cell);
      taps.items.push_back({cell, weight});
    }
  };

  using Tables = AxisTables<AxisTable>;

  void forward(
      const Tables& tables, S* out, Index* argmax, const S* map, int64_t map_row,
      int64_t channels) {
    const AxisTable &y = tables.y, &x = tables.x;
    const int64_t row = map_row / channels;
    const int bins = int(x.windows.size());
    for (size_t p = 0; p < y.windows.size(); ++p, out += bins * channels, argmax += bins * channels) {
      samples_.resize(size_t(y.samples(p)) * x.taps.count());
      begin_.assign(1, 0);
      zero_after_.clear();
      Sample<A>* to = samples_.data();
      for (int q = 0; q < bins; ++q) {
        for (int i = y.begin[p]; i < y.begin[p + 1]; ++i) {
          for (int j = x.begin[q]; j < x.begin[q + 1]; ++j, ++to) {
            to->count = 0;
            for (int s = y.taps.begin[i]; s < y.taps.begin[i + 1]; ++s) {
              for (int t = x.taps.begin[j]; t < x.taps.begin[j + 1]; ++t) {
                const Tap<A>&a = y.taps.items[s], &b = x.taps.items[t];
                to->taps[to->count++] = {int(a.index * row + b.index), a.weight * b.weight};
              }
            }
          }
        }
        begin_.push_back(int(to - samples_.data()));
        zero_after_.push_back(first_outside(y.windows[p], x.windows[q]));
      }
      maximum_of_samples(
          out, argmax, channels, map, channels,
          {bins, begin_.data(), samples_.data(), zero_after_.data()}, channels);
    }
  }

  // Each sample takes the gradient of the channels that it won, and passes it on like an average of one sample.
  void backward(
      const Tables& tables, A* map, int64_t map_row, int64_t map_stride, Bins<S> grads,
      Bins<Index> argmax, int64_t channels, RowRange within) {
    const AxisTable &y = tables.y, &x = tables.x;
    spread_.start(x.cells, x.taps, channels);
    S* const row = row_.at_least(x.taps.count() * channels);
    const int64_t bins = int64_t(x.windows.size());
    for (size_t p = 0; p < y.windows.size(); ++p) {
      for (int i = 0; i < y.samples(p); ++i) {
        const TapLists<A> taps = view(y.taps, y.begin[p] + i);
        const auto* const reached = std::find_if(
            taps.taps + taps.begin[0], taps.taps + taps.begin[1],
            [&](const Tap<A>& tap) { return within.has(tap.index); });
        if (reached == taps.taps + taps.begin[1]) continue;
        for (int64_t q = 0; q < bins; ++q) {
          const int64_t bin = p * bins + q;
          take_at_argmax(
              row + x.begin[q] * channels, grads[bin], argmax[bin], i * x.samples(q),
              x.samples(q), channels);
        }
        spread_.add(map, map_row, map_stride, row, taps, within);
      }
    }
  }

 private:
  std::vector<Sample<A>> samples_;  // of a row of bins
  std::vector<int> begin_;
  std::vector<int64_t> zero_after_;
  Scratch<S> row_;
  Spread<A> spread_;
};

}  // namespace roi_plugins
