// The kernels of upright RoIs, whose bins are the product of two axes. A block works on one RoI: its first warp works
// out where the bins read, one thread a bin and axis, into shared memory; then each thread takes a few channels of a
// bin at a time. Neighbouring threads touch neighbouring elements in memory in either layout.
#pragma once

#include <ATen/cuda/detail/IntegerDivider.cuh>

#include <algorithm>
#include <cmath>

#include "cuda/pyramid.h"
#include "cuda/work.h"
#include "geometry.h"
#include "maximum.h"

namespace roi_plugins {

constexpr int kTile = 16;  // most bins of an axis that a block resolves: those of both axes are a warp
constexpr int kTaps = 16;  // taps of a bin on an axis that it keeps; more are worked out where they are read
constexpr int kBlockItems = 1024;  // bins times groups of channels, roughly: resolving has to pay

// The samples of one bin on one axis as pairs of taps. An average is separable, so there is one weight for each cell,
// already divided by the number of samples. A maximum needs the samples themselves.
template <typename A>
struct Bin {
  Window<A> window;
  int64_t pairs;
  alignas(8) int cell[kTaps];
  alignas(8) A weight[kTaps];

  __device__ void resolve(const Method& method, const Axis<A>& axis, int p, bool average) {
    window = make_window(method, axis, p);
    pairs = window.end - window.begin;
    int taps = 0;
    const auto add = [&](int read, A read_weight) {
      if (average) {
        if (read_weight == A(0)) return true;
        const int t = recent_tap(taps, read, [&](int t) { return cell[t]; });
        if (t >= 0) {
          weight[t] += read_weight;
          return true;
        }
      }
      if (taps == kTaps) return false;
      cell[taps] = read;
      weight[taps++] = read_weight;
      return true;
    };
    for (int64_t i = window.begin; i < window.end; ++i) {
      const Taps<A> sample = make_taps(method, axis, p, i);
      // A bin that does not fit has more pairs than are kept, by which pair() knows it.
      if (!add(sample.low, sample.low_weight) || !add(sample.high, sample.high_weight)) return;
    }
    if (!average) return;
    for (int t = 0; t < taps; ++t) weight[t] /= window.count;
    if (taps % 2 == 1) {
      cell[taps] = cell[taps - 1];
      weight[taps++] = A(0);
    }
    pairs = taps / 2;
  }

  __device__ Taps<A> pair(
      const Method& method, const Axis<A>& axis, int p, int64_t i, bool average) const {
    if (pairs <= kTaps / 2) {
      return {cell[2 * i], cell[2 * i + 1], weight[2 * i], weight[2 * i + 1]};
    }
    Taps<A> sample = make_taps(method, axis, p, window.begin + i);
    if (average) {
      sample.low_weight /= window.count;
      sample.high_weight /= window.count;
    }
    return sample;
  }
};

// What the threads of a block share: where the RoI lies, and where its bins read.
template <typename T, typename A>
struct Resolved {
  RoiState state;
  T* map;  // of the image, channel 0
  int64_t channel_stride, row_stride, column_stride;
  int first_row, first_column;  // of the tile
  Axis<A> y, x;
  Bin<A> rows[kTile], columns[kTile];
};

// A bin of the block's RoI and a group of channels.
struct Item {
  int64_t k, group;
  int p, q;
};

// RoIs that read or fill a pyramid, and how they are dealt out: a block takes a tile of the bins of a RoI and a chunk
// of the groups of V channels.
template <typename T, typename A, int V, bool average>
struct Work {
  using Shared = Resolved<T, A>;
  using Divider = at::cuda::detail::IntDivider<unsigned>;

  Pyramid<T, A> pyramid;
  const A* rois;
  const int64_t* levels;
  const int64_t* seed;
  int64_t num_rois, images, channels, num_levels, groups;
  int pooled_height, pooled_width;
  int tile_height, tile_width, tiles_x;
  Method method;
  bool channels_last;
  unsigned chunks, items;
  Divider chunk, bins, row;  // groups of a chunk, bins of a tile and of one of its rows

  Work(const Call& call, at::TensorList maps)
      : pyramid(call, maps), rois(call.rois.const_data_ptr<A>()),
        levels(call.levels.const_data_ptr<int64_t>()), seed(seed_of(call)),
        num_rois(call.num_rois()),
        images(call.images()), channels(call.channels()), num_levels(call.num_levels()),
        groups((channels + V - 1) / V), pooled_height(call.options.pooled_height),
        pooled_width(call.options.pooled_width), tile_height(even_part(pooled_height, kTile)),
        tile_width(even_part(pooled_width, kTile)), tiles_x((pooled_width - 1) / tile_width + 1),
        method(call.options.method), channels_last(call.channels_last), bins(tile_height * tile_width),
        row(tile_width) {
    unsigned width = 8;
    while (2 * width * bins.divisor <= kBlockItems) width *= 2;
    width = unsigned(std::min<int64_t>(width, groups));
    chunk = Divider(width);
    chunks = unsigned((groups - 1) / width + 1);
    items = bins.divisor * width;
  }

  int64_t parts() const {  // blocks a RoI
    return int64_t(chunks) * tiles_x * ((pooled_height - 1) / tile_height + 1);
  }

  __device__ int first_row(unsigned part) const {
    return int(part / chunks / tiles_x) * tile_height;
  }
  __device__ int first_column(unsigned part) const {
    return int(part / chunks % tiles_x) * tile_width;
  }

  __device__ void prepare(Shared& shared, int64_t k, unsigned part) const {
    for (int t = threadIdx.x; t < 2 * kTile; t += blockDim.x) {
      const A* const roi = rois + 5 * k;
      const int64_t level = levels[k];
      const RoiState state = roi_state(roi, 5, images, level, num_levels);
      if (t == 0) shared.state = state;
      if (state != RoiState::read) continue;
      const int64_t* const stride = pyramid.stride[level];
      if (t == 0) {
        shared.map = pyramid.data[level] + int64_t(roi[0]) * stride[0];
        shared.channel_stride = stride[1];
        shared.row_stride = stride[2];
        shared.column_stride = stride[3];
        shared.first_row = first_row(part);
        shared.first_column = first_column(part);
      }
      const bool is_row = t < kTile;
      const int i = t % kTile;
      const int pooled = is_row ? pooled_height : pooled_width;
      const Axis<A> axis = make_axis(
          method, roi, !is_row, pyramid.scale[level], pooled,
          is_row ? pyramid.height[level] : pyramid.width[level],
          jitter_from(seed).axis(k, !is_row));
      if (i == 0) (is_row ? shared.y : shared.x) = axis;
      const int p = (is_row ? first_row(part) : first_column(part)) + i;
      if (i < (is_row ? tile_height : tile_width) && p < pooled) {
        (is_row ? shared.rows : shared.columns)[i].resolve(method, axis, p, average);
      }
    }
  }

  // Calls visit(item) for each item of the calling thread.
  template <typename Visit>
  __device__ void for_each_item(int64_t k, unsigned part, Visit&& visit) const {
    const int p = first_row(part), q = first_column(part);
    const int64_t group = int64_t(part % chunks) * chunk.divisor;
    for (unsigned i = threadIdx.x; i < items; i += blockDim.x) {
      const auto outer = channels_last ? chunk.divmod(i) : bins.divmod(i);
      const auto bin = row.divmod(channels_last ? outer.div : outer.mod);
      const Item item{
          k, group + (channels_last ? outer.mod : outer.div), p + int(bin.div), q + int(bin.mod)};
      if (item.group < groups && item.p < pooled_height && item.q < pooled_width) visit(item);
    }
  }

  // Where an item's first channel lies in the output, and how far it is to the next channel.
  __device__ int64_t output_offset(const Item& item, int64_t channel) const {
    const int64_t height = pooled_height, width = pooled_width;
    return channels_last
        ? ((item.k * height + item.p) * width + item.q) * channels + channel
        : ((item.k * channels + channel) * height + item.p) * width + item.q;
  }
  __device__ int64_t output_stride() const {
    return channels_last ? 1 : int64_t(pooled_height) * pooled_width;
  }

  __device__ const Bin<A>& row_bin(const Shared& shared, const Item& item) const {
    return shared.rows[item.p - shared.first_row];
  }
  __device__ const Bin<A>& column_bin(const Shared& shared, const Item& item) const {
    return shared.columns[item.q - shared.first_column];
  }
  __device__ Taps<A> row_pair(const Shared& shared, const Item& item, int64_t i) const {
    return row_bin(shared, item).pair(method, shared.y, item.p, i, average);
  }
  __device__ Taps<A> column_pair(const Shared& shared, const Item& item, int64_t j) const {
    return column_bin(shared, item).pair(method, shared.x, item.q, j, average);
  }
};

// The corners of for_each_read as pointers, so that all loads can be issued before the first value is used.
template <typename T, typename A>
struct Corners {
  T* cell[4];
  A weight[4];
  bool reads[4];

  __device__ Corners(
      T* map, int64_t row_stride, int64_t column_stride, const Taps<A>& row,
      const Taps<A>& column) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int i = c / 2, j = c % 2;
      cell[c] = map + row.cell(i) * row_stride + column.cell(j) * column_stride;
      reads[c] = row.weight(i) != A(0) && column.weight(j) != A(0);
      weight[c] = row.weight(i) * column.weight(j);
    }
  }
};

// Adds what the corners read to `sum`.
template <typename S, typename A, int V, bool packed>
__device__ void interpolate(
    const Corners<const S, A>& corners, int64_t stride, const Channels<V, packed>& channels,
    A (&sum)[V]) {
  Pack<S, V> read[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (corners.reads[c]) channels.load(corners.cell[c], stride, read[c]);
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (!corners.reads[c]) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      sum[v] = fma(corners.weight[c], static_cast<A>(read[c].values[v]), sum[v]);
    }
  }
}

template <typename S, bool packed>
struct AverageForward : Work<const S, accumulation_t<S>, kVector<S>, true> {
  using A = accumulation_t<S>;
  static constexpr int V = kVector<S>;
  using Base = Work<const S, A, V, true>;
  S* output;

  AverageForward(const Call& call, at::TensorList features, at::Tensor& output)
      : Base(call, features), output(output.data_ptr<S>()) {}

  __device__ void run(const typename Base::Shared& shared, int64_t k, unsigned part) const {
    this->for_each_item(k, part, [&](const Item& item) {
      const Channels<V, packed> channels(item.group, this->groups, this->channels);
      A sum[V];
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] = unread_value<A>(shared.state);
      if (shared.state == RoiState::read) {
        const S* const map = in_global_memory(shared.map) + channels.first * shared.channel_stride;
        const int64_t height = this->row_bin(shared, item).pairs;
        const int64_t width = this->column_bin(shared, item).pairs;
        for (int64_t i = 0; i < height; ++i) {
          const Taps<A> row = this->row_pair(shared, item, i);
          for (int64_t j = 0; j < width; ++j) {
            const Corners<const S, A> corners(
                map, shared.row_stride, shared.column_stride, row,
                this->column_pair(shared, item, j));
            interpolate(corners, shared.channel_stride, channels, sum);
          }
        }
      }
      Pack<S, V> result;
#pragma unroll
      for (int v = 0; v < V; ++v) result.values[v] = S(sum[v]);
      channels.store(
          output + this->output_offset(item, channels.first), this->output_stride(), result);
    });
  }
};

template <typename S, typename Index, bool packed>
struct MaximumForward : Work<const S, accumulation_t<S>, kVector<S>, false> {
  using A = accumulation_t<S>;
  static constexpr int V = kVector<S>;
  using Base = Work<const S, A, V, false>;
  S* output;
  Index* argmax;

  MaximumForward(
      const Call& call, at::TensorList features, at::Tensor& output, at::Tensor& argmax)
      : Base(call, features), output(output.data_ptr<S>()), argmax(argmax.data_ptr<Index>()) {}

  __device__ void run(const typename Base::Shared& shared, int64_t k, unsigned part) const {
    this->for_each_item(k, part, [&](const Item& item) {
      const Channels<V, packed> channels(item.group, this->groups, this->channels);
      A best[V];
      Pack<Index, V> best_index;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        best[v] = unread_value<A>(shared.state);
        best_index.values[v] = Index(kNoSample);
      }
      if (shared.state == RoiState::read) {
        const S* const map = in_global_memory(shared.map) + channels.first * shared.channel_stride;
        const Bin<A>& y = this->row_bin(shared, item);
        const Bin<A>& x = this->column_bin(shared, item);
        const int64_t zero_after = first_outside(y.window, x.window);
        int64_t sample = 0;
        for (int64_t i = 0; i < y.pairs; ++i) {
          const Taps<A> row = this->row_pair(shared, item, i);
          for (int64_t j = 0; j < x.pairs; ++j, ++sample) {
            const Corners<const S, A> corners(
                map, shared.row_stride, shared.column_stride, row,
                this->column_pair(shared, item, j));
            A value[V] = {};
            interpolate(corners, shared.channel_stride, channels, value);
            const bool first = is_first(sample, zero_after);
            const bool zero_follows = sample + 1 == zero_after;
#pragma unroll
            for (int v = 0; v < V; ++v) {
              compete(first, value[v], Index(sample), best[v], best_index.values[v]);
              if (zero_follows) compete_zero(best[v], best_index.values[v]);
            }
          }
        }
      }
      Pack<S, V> result;
#pragma unroll
      for (int v = 0; v < V; ++v) result.values[v] = S(best[v]);
      const int64_t offset = this->output_offset(item, channels.first);
      channels.store(output + offset, this->output_stride(), result);
      channels.store(argmax + offset, this->output_stride(), best_index);
    });
  }
};

template <typename S, typename Sum, bool packed>
struct AverageBackward : Work<typename Sum::type, accumulation_t<S>, kVector<S>, true> {
  using A = accumulation_t<S>;
  static constexpr int V = kVector<S>;
  using Base = Work<typename Sum::type, A, V, true>;
  const S* grad;
  Sum sum;

  AverageBackward(
      const Call& call, at::TensorList sums, const at::Tensor& grad, const Sum& sum)
      : Base(call, sums), grad(grad.const_data_ptr<S>()), sum(sum) {}

  __device__ void run(const typename Base::Shared& shared, int64_t k, unsigned part) const {
    if (shared.state != RoiState::read) return;
    this->for_each_item(k, part, [&](const Item& item) {
      const Channels<V, packed> channels(item.group, this->groups, this->channels);
      Pack<S, V> value;
      channels.load(
          grad + this->output_offset(item, channels.first), this->output_stride(), value);
      auto* const map = in_global_memory(shared.map) + channels.first * shared.channel_stride;
      const int64_t height = this->row_bin(shared, item).pairs;
      const int64_t width = this->column_bin(shared, item).pairs;
      for (int64_t i = 0; i < height; ++i) {
        const Taps<A> row = this->row_pair(shared, item, i);
        for (int64_t j = 0; j < width; ++j) {
          const Corners<typename Sum::type, A> corners(
              map, shared.row_stride, shared.column_stride, row,
              this->column_pair(shared, item, j));
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            if (!corners.reads[c]) continue;
            spread(
                sum, corners.cell[c], corners.weight[c], value, channels, shared.channel_stride);
          }
        }
      }
    });
  }
};

// Each channel has an argmax of its own, so vector atomics cannot be used.
template <typename S, typename Index, typename Sum>
struct MaximumBackward : Work<typename Sum::type, accumulation_t<S>, kVector<S>, false> {
  using A = accumulation_t<S>;
  static constexpr int V = kVector<S>;
  using Base = Work<typename Sum::type, A, V, false>;
  const S* grad;
  const Index* argmax;
  Sum sum;

  MaximumBackward(
      const Call& call, at::TensorList sums, const at::Tensor& grad, const at::Tensor& argmax,
      const Sum& sum)
      : Base(call, sums), grad(grad.const_data_ptr<S>()),
        argmax(argmax.const_data_ptr<Index>()), sum(sum) {}

  __device__ void run(const typename Base::Shared& shared, int64_t k, unsigned part) const {
    if (shared.state != RoiState::read) return;
    this->for_each_item(k, part, [&](const Item& item) {
      const Channels<V, false> channels(item.group, this->groups, this->channels);
      const int64_t offset = this->output_offset(item, channels.first);
      Pack<S, V> value;
      Pack<Index, V> index;
      channels.load(grad + offset, this->output_stride(), value);
      channels.load(argmax + offset, this->output_stride(), index);
      const int64_t width = this->column_bin(shared, item).pairs;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (!channels.has(v) || index.values[v] == Index(kNoSample)) continue;
        const int64_t channel = channels.first + v * channels.step;
        const unsigned sample = unsigned(index.values[v]);
        const Corners<typename Sum::type, A> corners(
            in_global_memory(shared.map) + channel * shared.channel_stride, shared.row_stride,
            shared.column_stride, this->row_pair(shared, item, sample / unsigned(width)),
            this->column_pair(shared, item, sample % unsigned(width)));
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          if (corners.reads[c]) {
            sum.add(corners.cell[c], corners.weight[c] * static_cast<A>(value.values[v]));
          }
        }
      }
    });
  }
};

}  // namespace roi_plugins
