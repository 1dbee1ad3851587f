// The op on the CPU: forward in parallel over RoIs, backward over blocks of channels, so that no two
// threads meet in a cell and the result does not depend on how many there are.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <cmath>

#include "channels.h"
#include "op.h"

namespace roi_plugins {
namespace {

// One axis of one RoI, all bins: the samples of each, or what an average makes of them: one weight a
// cell, since neighbouring samples share cells.
template <typename A>
class AxisTable {
 public:
  struct Bin {
    Window<A> window;
    size_t begin, end;  // of the bin's entries
  };
  void resolve(const Method& method, const Axis<A>& axis, int pooled, bool merge) {
    bins_.clear();
    entries_.clear();
    for (int p = 0; p < pooled; ++p) {
      const Window<A> window = make_window(method, axis, p);
      const size_t begin = entries_.size();
      for (int64_t i = window.begin; i < window.end; ++i) {
        const Taps<A> taps = make_taps(method, axis, p, i);
        if (!merge) {
          entries_.push_back(taps);
          continue;
        }
        add(begin, taps.low, taps.low_weight);
        if (taps.high_weight != A(0)) add(begin, taps.high, taps.high_weight);
      }
      bins_.push_back({window, begin, entries_.size()});
    }
  }

  const Bin& bin(int p) const { return bins_[p]; }
  const Taps<A>& entry(size_t i) const { return entries_[i]; }

 private:
  // Positions are monotone, so a cell that was read before is among the last two.
  void add(size_t begin, int cell, A weight) {
    for (size_t i = entries_.size(); i > begin && i + 2 > entries_.size(); --i) {
      if (entries_[i - 1].low == cell) {
        entries_[i - 1].low_weight += weight;
        return;
      }
    }
    entries_.push_back({cell, cell, weight, A(0)});
  }

  std::vector<Bin> bins_;
  std::vector<Taps<A>> entries_;
};

// What a thread computes for one RoI at a time; kept from RoI to RoI for the memory it holds.
template <typename A>
class Bins {
 public:
  Bins(const Options& options, int64_t channels)
      : options_(options), channels_(channels) {}

  // Calls visit(bin) for every bin, with taps or samples of that bin in place.
  template <typename Visit>
  void for_each(const A* roi, int height, int width, A scale, Visit&& visit) {
    const Method& method = options_.method;
    y_.resolve(
        method, make_axis(method, roi[2], roi[4], scale, options_.pooled_height, height),
        options_.pooled_height, !options_.max);
    x_.resolve(
        method, make_axis(method, roi[1], roi[3], scale, options_.pooled_width, width),
        options_.pooled_width, !options_.max);
    for (int p = 0; p < options_.pooled_height; ++p) {
      for (int q = 0; q < options_.pooled_width; ++q) {
        const auto& y = y_.bin(p);
        const auto& x = x_.bin(q);
        taps.clear();
        samples.clear();
        for (size_t i = y.begin; i < y.end; ++i) {
          for (size_t j = x.begin; j < x.end; ++j) {
            if (options_.max) {
              samples.push_back(sample(y_.entry(i), x_.entry(j), width));
            } else {
              taps.push_back(
                  {cell(y_.entry(i).low, x_.entry(j).low, width),
                   y_.entry(i).low_weight * x_.entry(j).low_weight});
            }
          }
        }
        const A count = y.window.count * x.window.count;
        divisor = count > A(1) ? count : A(1);
        zero_after = first_outside(y.window, x.window);
        visit(int64_t(p) * options_.pooled_width + q);
      }
    }
  }

  std::vector<Tap<A>> taps;
  std::vector<Sample<A>> samples;
  A divisor;
  int64_t zero_after;

 private:
  int64_t cell(int y, int x, int width) const { return (int64_t(y) * width + x) * channels_; }

  Sample<A> sample(const Taps<A>& y, const Taps<A>& x, int width) const {
    Sample<A> result;
    result.count = 0;
    const auto read = [&](int row, A row_weight, int column, A column_weight) {
      if (row_weight == A(0) || column_weight == A(0)) return;
      result.taps[result.count++] = {cell(row, column, width), row_weight * column_weight};
    };
    read(y.low, y.low_weight, x.low, x.low_weight);
    read(y.low, y.low_weight, x.high, x.high_weight);
    read(y.high, y.high_weight, x.low, x.low_weight);
    read(y.high, y.high_weight, x.high, x.high_weight);
    return result;
  }

  const Options& options_;
  const int64_t channels_;
  AxisTable<A> y_, x_;
};

// A call, by the RoI.
template <typename A>
struct Rows {
  const Call& call;

  const A* roi(int64_t k) const { return call.rois.const_data_ptr<A>() + 5 * k; }
  int64_t level(int64_t k) const { return call.levels.const_data_ptr<int64_t>()[k]; }
  RoiState state(int64_t k) const {
    return roi_state(roi(k), call.images(), level(k), call.num_levels());
  }
  // Offset of the RoI's image in its map, which is dense NHWC.
  int64_t image_offset(int64_t k) const {
    const int64_t l = level(k);
    return int64_t(roi(k)[0]) * call.height(l) * call.width(l) * call.channels();
  }
  template <typename Visit>
  void for_each_bin(int64_t k, Bins<A>& bins, Visit&& visit) const {
    const int64_t l = level(k);
    bins.for_each(
        roi(k), int(call.height(l)), int(call.width(l)), A(call.options.scales[l]), visit);
  }
};

// to[j][i] = from[i][j], in tiles that stay in the first-level cache. The strides are of the rows.
template <typename From, typename To>
void transpose(
    const From* from, int64_t from_stride, To* to, int64_t to_stride, int64_t rows,
    int64_t columns) {
  constexpr int64_t kTile = 16;
  for (int64_t i0 = 0; i0 < rows; i0 += kTile) {
    const int64_t i1 = std::min(i0 + kTile, rows);
    for (int64_t j0 = 0; j0 < columns; j0 += kTile) {
      const int64_t j1 = std::min(j0 + kTile, columns);
      for (int64_t j = j0; j < j1; ++j) {
        for (int64_t i = i0; i < i1; ++i) to[j * to_stride + i] = To(from[i * from_stride + j]);
      }
    }
  }
}

constexpr int64_t kCells = 512;  // of a map that a thread transposes at a time

// A map as dense NHWC. PyTorch's own conversion takes several times as long.
template <typename S>
at::Tensor as_channels_last(const at::Tensor& map) {
  if (map.is_contiguous(at::MemoryFormat::ChannelsLast)) return map;
  const at::Tensor dense = map.contiguous();
  const at::Tensor result =
      at::empty(map.sizes(), map.options().memory_format(at::MemoryFormat::ChannelsLast));
  const int64_t channels = map.size(1), cells = map.size(2) * map.size(3);
  const int64_t chunks = (cells + kCells - 1) / kCells;
  const S* const from = dense.const_data_ptr<S>();
  S* const to = result.data_ptr<S>();
  at::parallel_for(0, map.size(0) * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t image = t / chunks * channels * cells, cell = t % chunks * kCells;
      transpose(
          from + image + cell, cells, to + image + cell * channels, channels, channels,
          std::min(kCells, cells - cell));
    }
  });
  return result;
}

// Sums, dense NHWC, as a gradient of the type and in the layout that are wanted.
template <typename S>
at::Tensor as_gradient(const at::Tensor& sum, at::ScalarType type, bool channels_last) {
  using A = accumulation_t<S>;
  if (channels_last || sum.is_contiguous()) return sum.to(type);
  const at::Tensor result = at::empty(sum.sizes(), sum.options().dtype(type));
  const int64_t channels = sum.size(1), cells = sum.size(2) * sum.size(3);
  const int64_t chunks = (cells + kCells - 1) / kCells;
  const A* const from = sum.const_data_ptr<A>();
  S* const to = result.data_ptr<S>();
  at::parallel_for(0, sum.size(0) * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t image = t / chunks * channels * cells, cell = t % chunks * kCells;
      transpose(
          from + image + cell * channels, channels, to + image + cell, cells,
          std::min(kCells, cells - cell), channels);
    }
  });
  return result;
}

template <typename S, typename Index>
void forward(
    const Call& call, at::TensorList features, at::Tensor& output, at::Tensor& winner) {
  using A = accumulation_t<S>;
  std::vector<at::Tensor> maps;
  for (const at::Tensor& map : features) maps.push_back(as_channels_last<S>(map));
  const Rows<A> rois{call};
  const Options& options = call.options;
  const bool channels_last = call.channels_last;
  const int64_t channels = call.channels(), bin_count = options.bins();
  const int64_t block = channels * bin_count;
  S* const out_data = output.data_ptr<S>();
  Index* const winner_data = options.max ? winner.data_ptr<Index>() : nullptr;
  at::parallel_for(0, output.size(0), 1, [&](int64_t begin, int64_t end) {
    Bins<A> bins(options, channels);
    std::vector<S> out_rows(channels_last ? 0 : block);
    std::vector<Index> winner_rows(channels_last || !options.max ? 0 : block);
    for (int64_t k = begin; k < end; ++k) {
      S* const to = out_data + k * block;
      Index* const winner_to = options.max ? winner_data + k * block : nullptr;
      const RoiState state = rois.state(k);
      if (state != RoiState::read) {
        std::fill_n(to, block, state == RoiState::zero ? S(0) : S(std::nanf("")));
        if (options.max) std::fill_n(winner_to, block, Index(-1));
        continue;
      }
      S* const rows = channels_last ? to : out_rows.data();
      Index* const winners = channels_last ? winner_to : winner_rows.data();
      const at::Tensor& level = maps[rois.level(k)];
      const S* const map = level.const_data_ptr<S>() + rois.image_offset(k);
      rois.for_each_bin(k, bins, [&](int64_t bin) {
        S* const row = rows + bin * channels;
        if (options.max) {
          maximum_of_samples(
              row, winners + bin * channels, map, bins.samples.data(),
              int64_t(bins.samples.size()), bins.zero_after, channels);
        } else {
          average_taps(
              row, map, bins.taps.data(), int64_t(bins.taps.size()), bins.divisor, channels);
        }
      });
      if (!channels_last) {
        transpose(rows, channels, to, bin_count, bin_count, channels);
        if (options.max) transpose(winners, channels, winner_to, bin_count, bin_count, channels);
      }
    }
  });
}

template <typename S, typename Index>
void backward(
    const Call& call, const at::Tensor& grad, const at::Tensor& winner,
    std::vector<at::Tensor>& sums) {
  using A = accumulation_t<S>;
  constexpr int64_t kUnit = 16;  // channels that stay together: a cache line of float32
  const Rows<A> rois{call};
  const Options& options = call.options;
  const bool channels_last = call.channels_last;
  const int64_t channels = call.channels(), bin_count = options.bins();
  const int64_t block = channels * bin_count;
  const S* const grad_data = grad.const_data_ptr<S>();
  const Index* const winner_data = options.max ? winner.const_data_ptr<Index>() : nullptr;
  const int64_t units = (channels + kUnit - 1) / kUnit;
  at::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kUnit, count = std::min(end * kUnit, channels) - first;
    Bins<A> bins(options, channels);
    std::vector<S> grad_rows(channels_last ? 0 : count * bin_count);
    std::vector<Index> winner_rows(channels_last || !options.max ? 0 : count * bin_count);
    const int64_t stride = channels_last ? channels : count;
    for (int64_t k = 0; k < grad.size(0); ++k) {
      if (rois.state(k) != RoiState::read) continue;
      const S* rows = grad_data + k * block + first;
      const Index* winners = options.max ? winner_data + k * block + first : nullptr;
      if (!channels_last) {
        const int64_t from = k * block + first * bin_count;
        transpose(grad_data + from, bin_count, grad_rows.data(), count, count, bin_count);
        rows = grad_rows.data();
        if (options.max) {
          transpose(winner_data + from, bin_count, winner_rows.data(), count, count, bin_count);
          winners = winner_rows.data();
        }
      }
      at::Tensor& level = sums[rois.level(k)];
      A* const map = level.data_ptr<A>() + rois.image_offset(k) + first;
      rois.for_each_bin(k, bins, [&](int64_t bin) {
        if (options.max) {
          scatter_winners(
              map, rows + bin * stride, winners + bin * stride, bins.samples.data(),
              int64_t(bins.samples.size()), count);
        } else {
          scatter_taps(
              map, rows + bin * stride, bins.taps.data(), int64_t(bins.taps.size()), bins.divisor,
              count);
        }
      });
    }
  });
  for (at::Tensor& sum : sums) sum = as_gradient<S>(sum, grad.scalar_type(), channels_last);
}

#define ROI_DISPATCH_TYPES(type, function, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "roi_extract", [&] { \
    if (call.options.winner_type() == at::kByte) { \
      function<scalar_t, uint8_t>(__VA_ARGS__); \
    } else { \
      function<scalar_t, int32_t>(__VA_ARGS__); \
    } \
  })

}  // namespace

void forward_cpu(
    const Call& call, at::TensorList features, at::Tensor& output, at::Tensor& winner) {
  ROI_DISPATCH_TYPES(output.scalar_type(), forward, call, features, output, winner);
}

std::vector<at::Tensor> backward_cpu(
    const Call& call, const at::Tensor& grad, const at::Tensor& winner) {
  const at::ScalarType type = grad.scalar_type();
  std::vector<at::Tensor> sums;
  for (int64_t l = 0; l < call.num_levels(); ++l) {
    // Not at::zeros, which knows no memory format.
    const auto dense = grad.options().dtype(accumulation_type(type));
    sums.push_back(at::empty(
        {call.images(), call.channels(), call.height(l), call.width(l)},
        dense.memory_format(at::MemoryFormat::ChannelsLast)).zero_());
  }
  ROI_DISPATCH_TYPES(type, backward, call, grad, winner, sums);
  return sums;
}

}  // namespace roi_plugins
