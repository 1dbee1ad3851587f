// The kernels of RoIs whose bins are not the product of two axes: rotated RoIs, bins with offsets, and bins that read
// channels of their own. A thread works on a group of channels of one bin, and works out itself where the bin reads.
#pragma once

#include <type_traits>

#include "cuda/pyramid.h"
#include "maximum.h"
#include "rotated.h"

namespace roi_plugins {

template <typename T, typename A>
struct Bins {
  Pyramid<T, A> pyramid;
  const A* rois;
  const int64_t* levels;
  const A* offsets;  // or nullptr
  const int64_t* seed;
  int64_t num_rois, images, channels, num_levels;
  int roi_dim, pooled_height, pooled_width, map_channels;  // map channels for each of the output
  Method method;
  bool channels_last;

  // Without a bound the compiler takes a few registers more at times, and only half of the warps fit. Sums of double
  // need more than two blocks leave.
  static constexpr int kResidentBlocks = sizeof(A) == sizeof(float) ? 2 : 1;

  Bins(const Call& call, at::TensorList maps)
      : pyramid(call, maps), rois(call.rois.const_data_ptr<A>()),
        levels(call.levels.const_data_ptr<int64_t>()),
        offsets(call.offsets.defined() ? call.offsets.const_data_ptr<A>() : nullptr),
        seed(seed_of(call)), num_rois(call.num_rois()), images(call.images()),
        channels(call.output_channels()), num_levels(call.num_levels()),
        roi_dim(int(call.rois.size(1))), pooled_height(call.options.pooled_height),
        pooled_width(call.options.pooled_width), map_channels(int(call.groups())),
        method(call.options.method), channels_last(call.channels_last) {}

  __device__ int64_t bins() const { return int64_t(pooled_height) * pooled_width; }
  __device__ RoiState state(int64_t k) const {
    return roi_state(rois + k * roi_dim, roi_dim, images, levels[k], num_levels);
  }
  // Channel 0 of what bin b reads.
  __device__ T* map(int64_t k, int64_t b) const {
    const int64_t level = levels[k];
    const int64_t first = map_channels > 1 ? b : 0;
    return pyramid.data[level] + int64_t(rois[k * roi_dim]) * pyramid.stride[level][0] +
        first * pyramid.stride[level][1];
  }
  __device__ int64_t channel_stride(int64_t k) const {
    return pyramid.stride[levels[k]][1] * map_channels;
  }
  __device__ int64_t cell(int64_t k, int row, int column) const {
    const int64_t* const stride = pyramid.stride[levels[k]];
    return row * stride[2] + column * stride[3];
  }

  __device__ RotatedBox<A> rotated_box(int64_t k) const {
    const int64_t level = levels[k];
    const Jitter jitter = jitter_from(seed);
    return make_rotated_box(
        method, rois + k * roi_dim, pyramid.scale[level], pooled_height, pooled_width,
        pyramid.height[level], pyramid.width[level], jitter.axis(k, false), jitter.axis(k, true));
  }
  __device__ Axis<A> y_axis(int64_t k) const { return axis(k, false); }
  __device__ Axis<A> x_axis(int64_t k) const { return axis(k, true); }
  __device__ Axis<A> axis(int64_t k, bool is_x) const {
    const int64_t level = levels[k];
    return make_axis(
        method, rois + k * roi_dim, is_x, pyramid.scale[level], is_x ? pooled_width : pooled_height,
        is_x ? pyramid.width[level] : pyramid.height[level], jitter_from(seed).axis(k, is_x));
  }
  __device__ Offset<A> offset(int64_t k, int64_t b) const {
    return offset_of_bin(offsets, k, b, bins());
  }

  // Calls visit(row, column, weight) for the cells that bin b reads in an average; a cell may come several times.
  // False if the bin's offset is not finite.
  template <typename Visit>
  __device__ bool for_each_tap(int64_t k, int64_t b, Visit&& visit) const {
    const int p = int(b / pooled_width), q = int(b % pooled_width);
    if (roi_dim == 6) {
      const RotatedBox<A> box = rotated_box(k);
      if (method.sampling == Sampling::integral) {
        for_each_cell(box, p, q, visit);
        return true;
      }
      const A share = A(1) / (box.y.grid * box.x.grid);
      const auto read = [&](A y, A x, int64_t, int64_t) {
        for_each_read(bilinear_taps(y, box.y.extent), bilinear_taps(x, box.x.extent), share, visit);
      };
      for_each_sample(box, p, q, read, [] {});
      return true;
    }
    const Offset<A> by = offset(k, b);
    if (!by.is_finite()) return false;
    const Axis<A> y = moved(y_axis(k), by.y), x = moved(x_axis(k), by.x);
    const Window<A> rows = make_window(method, y, p), columns = make_window(method, x, q);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const Taps<A> row = make_taps(method, y, p, i);
      for (int64_t j = columns.begin; j < columns.end; ++j) {
        for_each_read(row, make_taps(method, x, q, j), A(1) / (rows.count * columns.count), visit);
      }
    }
    return true;
  }
};

// Deals out groups of V channels of the bins to threads, so that neighbours take neighbouring elements of the output.
template <typename T, typename S, int V, bool packed>
struct BinsOfChannels : Bins<T, accumulation_t<S>> {
  using Base = Bins<T, accumulation_t<S>>;
  int64_t groups;

  BinsOfChannels(const Call& call, at::TensorList maps)
      : Base(call, maps), groups((call.output_channels() + V - 1) / V) {}

  int64_t size() const { return this->num_rois * this->pooled_height * this->pooled_width * groups; }

  // Calls visit(k, b, channels, offset, stride) for item i: `offset` of its first channel in the output.
  template <typename Visit>
  __device__ void visit_item(int64_t i, Visit&& visit) const {
    const int64_t bins = this->bins(), k = i / (bins * groups), rest = i % (bins * groups);
    const bool last = this->channels_last;
    const int64_t b = last ? rest / groups : rest % bins;
    const Channels<V, packed> channels(last ? rest % groups : rest / bins, groups, this->channels);
    const int64_t offset = last ? (k * bins + b) * this->channels + channels.first
                                : (k * this->channels + channels.first) * bins + b;
    visit(k, b, channels, offset, last ? int64_t(1) : bins);
  }
};

template <typename S, bool packed>
struct BinAverageForward : BinsOfChannels<const S, S, kVector<S>, packed> {
  using A = accumulation_t<S>;
  static constexpr int V = kVector<S>;
  S* output;

  BinAverageForward(const Call& call, at::TensorList features, at::Tensor& output)
      : BinsOfChannels<const S, S, V, packed>(call, features), output(output.data_ptr<S>()) {}

  __device__ void run(int64_t item) const {
    this->visit_item(item, [&](int64_t k, int64_t b, const auto& channels, int64_t offset, int64_t stride) {
      const RoiState state = this->state(k);
      A sum[V] = {};
      bool valid = state != RoiState::invalid;
      if (state == RoiState::read) {
        const int64_t channel = this->channel_stride(k);
        const S* const map = this->map(k, b) + channels.first * channel;
        valid = this->for_each_tap(k, b, [&](int row, int column, A weight) {
          gather(map + this->cell(k, row, column), channel, weight, channels, sum);
        });
      }
      Pack<S, V> result;
#pragma unroll
      for (int v = 0; v < V; ++v) result.values[v] = S(valid ? sum[v] : unread_value<A>(RoiState::invalid));
      channels.store(output + offset, stride, result);
    });
  }
};

template <typename S, typename Sum>
struct BinAverageBackward : BinsOfChannels<typename Sum::type, S, kVector<S>, false> {
  using A = accumulation_t<S>;
  static constexpr int V = kVector<S>;
  const S* grad;
  Sum sum;

  BinAverageBackward(
      const Call& call, at::TensorList sums, const at::Tensor& grad, const Sum& sum)
      : BinsOfChannels<typename Sum::type, S, V, false>(call, sums),
        grad(grad.const_data_ptr<S>()), sum(sum) {}

  __device__ void run(int64_t item) const {
    this->visit_item(item, [&](int64_t k, int64_t b, const auto& channels, int64_t offset, int64_t stride) {
      if (this->state(k) != RoiState::read) return;
      Pack<S, V> value{};
      channels.load(grad + offset, stride, value);
      const int64_t channel = this->channel_stride(k);
      auto* const map = this->map(k, b) + channels.first * channel;
      this->for_each_tap(k, b, [&](int row, int column, A weight) {
        spread(sum, map + this->cell(k, row, column), weight, value, channels, channel);
      });
    });
  }
};

// For rotated RoIs. The argmax counts the samples on the map.
template <typename S, typename Index>
struct BinMaximumForward : BinsOfChannels<const S, S, kVector<S>, false> {
  using A = accumulation_t<S>;
  static constexpr int V = kVector<S>;
  S* output;
  Index* argmax;

  BinMaximumForward(
      const Call& call, at::TensorList features, at::Tensor& output, at::Tensor& argmax)
      : BinsOfChannels<const S, S, V, false>(call, features), output(output.data_ptr<S>()),
        argmax(argmax.data_ptr<Index>()) {}

  __device__ void run(int64_t item) const {
    this->visit_item(item, [&](int64_t k, int64_t b, const auto& channels, int64_t offset, int64_t stride) {
      const RoiState state = this->state(k);
      Pack<S, V> result;
      Pack<Index, V> index;
      A best[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        best[v] = unread_value<A>(state);
        index.values[v] = Index(kNoSample);
      }
      if (state == RoiState::read) {
        const int p = int(b / this->pooled_width), q = int(b % this->pooled_width);
        const RotatedBox<A> box = this->rotated_box(k);
        const int64_t channel = this->channel_stride(k);
        const S* const map = this->map(k, b) + channels.first * channel;
        int64_t sample = 0, zero_after = -1;
        const auto read = [&](A at_y, A at_x, int64_t, int64_t) {
          const Taps<A> y = bilinear_taps(at_y, box.y.extent);
          const Taps<A> x = bilinear_taps(at_x, box.x.extent);
          A sum[V] = {};
          for_each_read(y, x, A(1), [&](int row, int column, A weight) {
            gather(map + this->cell(k, row, column), channel, weight, channels, sum);
          });
          const bool first = is_first(sample, zero_after);
#pragma unroll
          for (int v = 0; v < V; ++v) {
            compete(first, sum[v], Index(sample), best[v], index.values[v]);
          }
          ++sample;
        };
        const auto outside = [&] {
          if (zero_after >= 0) return;
          zero_after = sample;
#pragma unroll
          for (int v = 0; v < V; ++v) compete_zero(best[v], index.values[v]);
        };
        for_each_sample(box, p, q, read, outside);
      }
#pragma unroll
      for (int v = 0; v < V; ++v) result.values[v] = S(best[v]);
      channels.store(output + offset, stride, result);
      channels.store(argmax + offset, stride, index);
    });
  }
};

template <typename S, typename Index, typename Sum>
struct BinMaximumBackward : BinsOfChannels<typename Sum::type, S, kVector<S>, false> {
  using A = accumulation_t<S>;
  static constexpr int V = kVector<S>;
  const S* grad;
  const Index* argmax;
  Sum sum;

  BinMaximumBackward(
      const Call& call, at::TensorList sums, const at::Tensor& grad, const at::Tensor& argmax,
      const Sum& sum)
      : BinsOfChannels<typename Sum::type, S, V, false>(call, sums),
        grad(grad.const_data_ptr<S>()), argmax(argmax.const_data_ptr<Index>()), sum(sum) {}

  __device__ void run(int64_t item) const {
    this->visit_item(item, [&](int64_t k, int64_t b, const auto& channels, int64_t offset, int64_t stride) {
      if (this->state(k) != RoiState::read) return;
      Pack<S, V> value{};
      Pack<Index, V> index{};
      channels.load(grad + offset, stride, value);
      channels.load(argmax + offset, stride, index);
      const int p = int(b / this->pooled_width), q = int(b % this->pooled_width);
      const RotatedBox<A> box = this->rotated_box(k);
      const int64_t channel = this->channel_stride(k);
      auto* const map = this->map(k, b) + channels.first * channel;
      Index sample = 0;
      const auto read = [&](A at_y, A at_x, int64_t, int64_t) {
        const Taps<A> y = bilinear_taps(at_y, box.y.extent);
        const Taps<A> x = bilinear_taps(at_x, box.x.extent);
        const Index here = sample++;
        bool any = false;
#pragma unroll
        for (int v = 0; v < V; ++v) any = any || (channels.has(v) && index.values[v] == here);
        if (!any) return;
        for_each_read(y, x, A(1), [&](int row, int column, A weight) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            if (!channels.has(v) || index.values[v] != here) continue;
            sum.add(
                map + this->cell(k, row, column) + v * channels.step * channel,
                weight * static_cast<A>(value.values[v]));
          }
        });
      };
      for_each_sample(box, p, q, read, [] {});
    });
  }
};

// `work` is a grid constant, as in work.h.
template <typename Work>
__global__ void __launch_bounds__(kItemThreads, Work::kResidentBlocks) bins_kernel(
    const __grid_constant__ Work work, int64_t items) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < items; i += step) work.run(i);
}

template <typename Work>
void launch_bins(const Work& work) {
  launch(bins_kernel<Work>, grid_of_elements(work.size()), work, work.size());
}

}  // namespace roi_plugins
