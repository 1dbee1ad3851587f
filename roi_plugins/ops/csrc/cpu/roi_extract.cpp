// The op on the CPU: forward in parallel over RoIs, backward over blocks of channels, so that no two
// threads meet in a cell and the result does not depend on how many there are.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

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

// The dense NHWC memory of each map, and the state of each RoI.
template <typename A>
struct Problem {
  const Options& options;
  at::Tensor rois, levels;
  int64_t images, channels;
  std::vector<int> heights, widths;

  Problem(
      const Options& options, const at::Tensor& rois_, const std::optional<at::Tensor>& levels_,
      at::ScalarType type, at::IntArrayRef shapes)
      : options(options), rois(coordinates(rois_, type)), levels(level_index(levels_, rois_)),
        images(shapes[0]), channels(shapes[1]) {
    for (size_t l = 0; l < options.scales.size(); ++l) {
      heights.push_back(int(shapes[2 + 2 * l]));
      widths.push_back(int(shapes[3 + 2 * l]));
    }
    check_batch_index(rois, images);
  }

  const A* roi(int64_t k) const { return rois.template const_data_ptr<A>() + 5 * k; }
  int64_t level(int64_t k) const { return levels.template const_data_ptr<int64_t>()[k]; }
  RoiState state(int64_t k) const {
    return roi_state(roi(k), images, level(k), int64_t(heights.size()));
  }
  // Offset of the RoI's image in its map.
  int64_t image_offset(int64_t k) const {
    const int64_t l = level(k);
    return int64_t(roi(k)[0]) * heights[l] * widths[l] * channels;
  }
  template <typename Visit>
  void for_each_bin(int64_t k, Bins<A>& bins, Visit&& visit) const {
    const int64_t l = level(k);
    bins.for_each(roi(k), heights[l], widths[l], A(options.scales[l]), visit);
  }
};

std::vector<int64_t> shapes_of(at::TensorList features) {
  std::vector<int64_t> shapes{features[0].size(0), features[0].size(1)};
  for (const at::Tensor& map : features) {
    shapes.push_back(map.size(2));
    shapes.push_back(map.size(3));
  }
  return shapes;
}

// Rows of `channels` for each bin, into the (channels, bins) block of an NCHW output, or back.
template <typename From, typename To>
void transpose(const From* from, To* to, int64_t rows, int64_t columns, int64_t row_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[j * rows + i] = from[i * row_stride + j];
  }
}

template <typename S, typename Index>
void forward(
    const Problem<accumulation_t<S>>& problem, at::TensorList maps, at::Tensor& output,
    at::Tensor& winner, bool channels_last) {
  using A = accumulation_t<S>;
  const Options& options = problem.options;
  const int64_t channels = problem.channels, bin_count = options.bins();
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
      const RoiState state = problem.state(k);
      if (state != RoiState::read) {
        std::fill_n(to, block, state == RoiState::zero ? S(0) : S(std::nanf("")));
        if (options.max) std::fill_n(winner_to, block, Index(-1));
        continue;
      }
      S* const rows = channels_last ? to : out_rows.data();
      Index* const winners = channels_last ? winner_to : winner_rows.data();
      const at::Tensor& level = maps[problem.level(k)];
      const S* const map = level.const_data_ptr<S>() + problem.image_offset(k);
      problem.for_each_bin(k, bins, [&](int64_t bin) {
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
        transpose(rows, to, bin_count, channels, channels);
        if (options.max) transpose(winners, winner_to, bin_count, channels, channels);
      }
    }
  });
}

template <typename S, typename Index>
void backward(
    const Problem<accumulation_t<S>>& problem, const at::Tensor& grad, const at::Tensor& winner,
    std::vector<at::Tensor>& sums, bool channels_last) {
  using A = accumulation_t<S>;
  constexpr int64_t kUnit = 16;  // channels that stay together: a cache line of float32
  const Options& options = problem.options;
  const int64_t channels = problem.channels, bin_count = options.bins();
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
      if (problem.state(k) != RoiState::read) continue;
      const S* rows = grad_data + k * block + first;
      const Index* winners = options.max ? winner_data + k * block + first : nullptr;
      if (!channels_last) {
        const int64_t from = k * block + first * bin_count;
        transpose(grad_data + from, grad_rows.data(), count, bin_count, bin_count);
        rows = grad_rows.data();
        if (options.max) {
          transpose(winner_data + from, winner_rows.data(), count, bin_count, bin_count);
          winners = winner_rows.data();
        }
      }
      at::Tensor& level = sums[problem.level(k)];
      A* const map = level.data_ptr<A>() + problem.image_offset(k) + first;
      problem.for_each_bin(k, bins, [&](int64_t bin) {
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
}

#define ROI_DISPATCH_TYPES(type, options, function, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "roi_extract", [&] { \
    const Problem<accumulation_t<scalar_t>> problem(options, rois, levels, type, shapes); \
    if (options.winner_type() == at::kByte) { \
      function<scalar_t, uint8_t>(problem, __VA_ARGS__); \
    } else { \
      function<scalar_t, int32_t>(problem, __VA_ARGS__); \
    } \
  })

std::tuple<at::Tensor, at::Tensor> roi_extract(
    at::TensorList features, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    at::ArrayRef<double> spatial_scale, at::IntArrayRef output_size, c10::string_view region,
    std::optional<int64_t> sampling_ratio, c10::string_view reduction, bool aligned,
    int64_t min_samples, std::optional<int64_t> max_samples) {
  const Options options(
      spatial_scale, output_size, region, sampling_ratio, reduction, aligned, min_samples,
      max_samples);
  check_inputs(features, rois, levels, options);
  const bool channels_last = is_channels_last(features[0]);
  const auto shapes = shapes_of(features);
  const at::ScalarType type = features[0].scalar_type();
  const std::vector<int64_t> size{
      rois.size(0), shapes[1], options.pooled_height, options.pooled_width};
  const auto format = memory_format(channels_last);
  at::Tensor output = at::empty(size, features[0].options().memory_format(format));
  at::Tensor winner = at::empty({0}, rois.options().dtype(options.winner_type()));
  if (options.max) winner = at::empty(size, winner.options().memory_format(format));
  if (output.numel() == 0) return {output, winner};
  std::vector<at::Tensor> maps;
  for (const at::Tensor& map : features) {
    maps.push_back(map.contiguous(at::MemoryFormat::ChannelsLast));
  }
  ROI_DISPATCH_TYPES(type, options, forward, maps, output, winner, channels_last);
  return {output, winner};
}

std::vector<at::Tensor> roi_extract_backward(
    const at::Tensor& grad, const at::Tensor& winner, const at::Tensor& rois,
    const std::optional<at::Tensor>& levels, at::IntArrayRef shapes, bool channels_last,
    at::ArrayRef<double> spatial_scale, at::IntArrayRef output_size, c10::string_view region,
    std::optional<int64_t> sampling_ratio, c10::string_view reduction, bool aligned,
    int64_t min_samples, std::optional<int64_t> max_samples) {
  const Options options(
      spatial_scale, output_size, region, sampling_ratio, reduction, aligned, min_samples,
      max_samples);
  check_shapes(shapes, rois, options);
  const at::ScalarType type = grad.scalar_type();
  const auto format = memory_format(channels_last);
  std::vector<at::Tensor> sums;
  for (size_t l = 0; l < options.scales.size(); ++l) {
    // Not at::zeros, which knows no memory format.
    const auto dense = grad.options().dtype(accumulation_type(type));
    sums.push_back(at::empty(
        {shapes[0], shapes[1], shapes[2 + 2 * l], shapes[3 + 2 * l]},
        dense.memory_format(at::MemoryFormat::ChannelsLast)).zero_());
  }
  if (grad.numel() > 0) {
    const at::Tensor dense = grad.contiguous(format);
    const at::Tensor winners = options.max ? winner.contiguous(format) : winner;
    ROI_DISPATCH_TYPES(type, options, backward, dense, winners, sums, channels_last);
  }
  for (at::Tensor& sum : sums) {
    sum = sum.to(type).contiguous(format);
  }
  return sums;
}

}  // namespace

TORCH_LIBRARY_IMPL(roi_plugins, CPU, m) {
  m.impl("roi_extract", &roi_extract);
  m.impl("roi_extract_backward", &roi_extract_backward);
}

}  // namespace roi_plugins
