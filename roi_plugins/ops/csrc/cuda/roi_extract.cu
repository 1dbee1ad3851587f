// The op on CUDA devices (docs/kernels.md). A block works on one RoI: its first warp resolves where the bins
// read, one thread a bin and axis, into shared memory; then each thread takes a few channels of a bin at a
// time. Neighbouring threads touch neighbouring elements in memory, whichever the layout.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/cuda/detail/IntegerDivider.cuh>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "cuda/bins.h"
#include "cuda/pyramid.h"
#include "cuda/work.h"

namespace roi_plugins {
namespace {

constexpr int kTile = 16;  // most bins of an axis that a block resolves: those of both axes are a warp
constexpr int kTaps = 16;  // taps of a bin on an axis that it keeps; more are worked out where they are read
constexpr int kBlockItems = 1024;  // bins times groups of channels, roughly: resolving has to pay

// The samples of one bin on one axis as pairs of taps. An average is separable, so its samples share one
// weight a cell, already divided by their number; a maximum needs the samples themselves.
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
        // Positions are monotone, so a cell that was read before is among the last two.
        for (int t = taps - 1; t >= 0 && t >= taps - 2; --t) {
          if (cell[t] == read) {
            weight[t] += read_weight;
            return true;
          }
        }
      }
      if (taps == kTaps) return false;
      cell[taps] = read;
      weight[taps++] = read_weight;
      return true;
    };
    for (int64_t i = window.begin; i < window.end; ++i) {
      const Taps<A> sample = make_taps(method, axis, p, i);
      // A sample brings two taps at most, so what does not fit has more pairs than are kept.
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

// RoIs that read or fill a pyramid, and how they are shared out: a block takes a tile of the bins of a RoI
// and a chunk of the groups of V channels.
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
        tile_width(even_part(pooled_width, kTile)), tiles_x((pooled_width - 1) / tile_width + 1), method(call.options.method),
        channels_last(call.channels_last), bins(tile_height * tile_width), row(tile_width) {
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
          method, roi[is_row ? 2 : 1], roi[is_row ? 4 : 3], pyramid.scale[level], pooled,
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

// The four cells where a pair of taps on the rows and one on the columns meet. A weight of zero is not
// to be read.
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
      const bool low_row = c < 2, low_column = c % 2 == 0;
      cell[c] = map + (low_row ? row.low : row.high) * row_stride +
          (low_column ? column.low : column.high) * column_stride;
      const A row_weight = low_row ? row.low_weight : row.high_weight;
      const A column_weight = low_column ? column.low_weight : column.high_weight;
      reads[c] = row_weight != A(0) && column_weight != A(0);
      weight[c] = row_weight * column_weight;
    }
  }
};

// Adds to `sum` what a pair of taps on either axis reads. All loads are issued before the first is used.
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
      for (int v = 0; v < V; ++v) sum[v] = shared.state == RoiState::invalid ? A(NAN) : A(0);
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
  Index* winner;

  MaximumForward(
      const Call& call, at::TensorList features, at::Tensor& output, at::Tensor& winner)
      : Base(call, features), output(output.data_ptr<S>()), winner(winner.data_ptr<Index>()) {}

  __device__ void run(const typename Base::Shared& shared, int64_t k, unsigned part) const {
    this->for_each_item(k, part, [&](const Item& item) {
      const Channels<V, packed> channels(item.group, this->groups, this->channels);
      A best[V];
      Pack<Index, V> best_index;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        best[v] = shared.state == RoiState::invalid ? A(NAN) : A(0);
        best_index.values[v] = Index(-1);
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
            const bool first = sample == 0 && zero_after != 0;
            const bool zero_follows = sample + 1 == zero_after;
#pragma unroll
            for (int v = 0; v < V; ++v) {
              // NaN takes the place, and only another one takes it from it.
              if (first || value[v] > best[v] || value[v] != value[v]) {
                best[v] = value[v];
                best_index.values[v] = Index(sample);
              }
              if (zero_follows && A(0) > best[v]) {
                best[v] = 0;
                best_index.values[v] = Index(-1);
              }
            }
          }
        }
      }
      Pack<S, V> result;
#pragma unroll
      for (int v = 0; v < V; ++v) result.values[v] = S(best[v]);
      const int64_t offset = this->output_offset(item, channels.first);
      channels.store(output + offset, this->output_stride(), result);
      channels.store(winner + offset, this->output_stride(), best_index);
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

// Each channel has a winner of its own, so there is nothing to add as a vector.
template <typename S, typename Index, typename Sum>
struct MaximumBackward : Work<typename Sum::type, accumulation_t<S>, kVector<S>, false> {
  using A = accumulation_t<S>;
  static constexpr int V = kVector<S>;
  using Base = Work<typename Sum::type, A, V, false>;
  const S* grad;
  const Index* winner;
  Sum sum;

  MaximumBackward(
      const Call& call, at::TensorList sums, const at::Tensor& grad, const at::Tensor& winner,
      const Sum& sum)
      : Base(call, sums), grad(grad.const_data_ptr<S>()),
        winner(winner.const_data_ptr<Index>()), sum(sum) {}

  __device__ void run(const typename Base::Shared& shared, int64_t k, unsigned part) const {
    if (shared.state != RoiState::read) return;
    this->for_each_item(k, part, [&](const Item& item) {
      const Channels<V, false> channels(item.group, this->groups, this->channels);
      const int64_t offset = this->output_offset(item, channels.first);
      Pack<S, V> value;
      Pack<Index, V> index;
      channels.load(grad + offset, this->output_stride(), value);
      channels.load(winner + offset, this->output_stride(), index);
      const int64_t width = this->column_bin(shared, item).pairs;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (!channels.has(v) || index.values[v] == Index(-1)) continue;
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

template <typename S>
__global__ void from_fixed_point(
    const int64_t* sums, S* grads, int64_t count, const double* scale) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  const double inverse = 1 / *scale;  // exact, of a power of two
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    grads[i] = S(static_cast<accumulation_t<S>>(double(sums[i]) * inverse));
  }
}

at::Tensor unfilled_map(const Call& call, int64_t level, at::ScalarType type) {
  return uninitialized(
      {call.images(), call.channels(), call.height(level), call.width(level)}, type,
      call.rois.device(), call.format());
}

std::vector<at::Tensor> zeroed_maps(const Call& call, at::ScalarType type) {
  std::vector<at::Tensor> maps;
  for (int64_t l = 0; l < call.num_levels(); ++l) maps.push_back(unfilled_map(call, l, type).zero_());
  return maps;
}

// Whether V neighbouring channels lie side by side, and every such group on a boundary of 16 bytes.
bool packs(int V, const at::Tensor& tensor) {
  return tensor.size(1) % V == 0 && tensor.stride(0) % V == 0 && tensor.stride(1) == 1 &&
      tensor.stride(2) % V == 0 && tensor.stride(3) % V == 0 &&
      reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}
bool packs(int V, at::TensorList tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [&](const at::Tensor& tensor) {
    return packs(V, tensor);
  });
}

template <typename S, typename Index>
void launch_forward(
    const Call& call, at::TensorList features, at::Tensor& output, at::Tensor& winner) {
  const bool packed = packs(kVector<S>, features) && packs(kVector<S>, output);
  if (call.has_single_bins()) {
    const bool side_by_side = packed && call.groups() == 1;
    if (call.options.max) {
      launch_bins(BinMaximumForward<S, Index>(call, features, output, winner));
    } else if (side_by_side) {
      launch_bins(BinAverageForward<S, true>(call, features, output));
    } else {
      launch_bins(BinAverageForward<S, false>(call, features, output));
    }
  } else if (call.options.max) {
    if (packed) {
      launch_work(MaximumForward<S, Index, true>(call, features, output, winner));
    } else {
      launch_work(MaximumForward<S, Index, false>(call, features, output, winner));
    }
  } else if (packed) {
    launch_work(AverageForward<S, true>(call, features, output));
  } else {
    launch_work(AverageForward<S, false>(call, features, output));
  }
}

template <typename S, typename Index, typename Sum>
void launch_backward(
    const Call& call, const at::Tensor& grad, const at::Tensor& winner,
    const std::vector<at::Tensor>& sums, const Sum& sum) {
  if (call.has_single_bins()) {
    if (call.options.max) {
      launch_bins(BinMaximumBackward<S, Index, Sum>(call, sums, grad, winner, sum));
    } else {
      launch_bins(BinAverageBackward<S, Sum>(call, sums, grad, sum));
    }
    return;
  }
  if (call.options.max) {
    launch_work(MaximumBackward<S, Index, Sum>(call, sums, grad, winner, sum));
    return;
  }
  if constexpr (std::is_same_v<Sum, FloatingSum<float>>) {
    if (has_vector_atomics() && packs(kVector<S>, sums) && packs(kVector<S>, grad)) {
      launch_work(AverageBackward<S, Sum, true>(call, sums, grad, sum));
      return;
    }
  }
  launch_work(AverageBackward<S, Sum, false>(call, sums, grad, sum));
}

// The largest power of two by which no sum of a cell overflows 62 bits: each output element adds at most
// its own gradient to a cell. NaN, and so are all gradients, where one of them is not finite.
at::Tensor fixed_point_scale(const at::Tensor& grad) {
  const at::Tensor largest =
      at::linalg_vector_norm(grad, std::numeric_limits<double>::infinity()).to(at::kDouble);
  const double outputs = double(grad.numel()) / double(std::max<int64_t>(grad.size(1), 1));
  // Logarithms are added: the product itself may overflow.
  const at::Tensor bits = at::ceil(at::log2(largest)) + std::ceil(std::log2(outputs));
  // A gradient of zeros needs no room; 2^512 and its inverse are finite.
  const at::Tensor scale = at::exp2(61 - at::clamp(bits, -451));
  return at::where(
      at::isfinite(largest), scale,
      at::full_like(scale, std::numeric_limits<double>::quiet_NaN()));
}

#define ROI_DISPATCH_TYPES(type, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "roi_extract", [&] { \
    if (call.options.winner_type() == at::kByte) { \
      using index_t = uint8_t; \
      __VA_ARGS__ \
    } else { \
      using index_t = int32_t; \
      __VA_ARGS__ \
    } \
  })

}  // namespace

void forward_cuda(
    const Call& call, at::TensorList features, at::Tensor& output, at::Tensor& winner) {
  const DeviceGuard guard(output.device());
  ROI_DISPATCH_TYPES(output.scalar_type(), {
    launch_forward<scalar_t, index_t>(call, features, output, winner);
  });
}

std::vector<at::Tensor> backward_cuda(
    const Call& call, const at::Tensor& grad, const at::Tensor& winner) {
  const DeviceGuard guard(grad.device());
  const at::ScalarType type = grad.scalar_type();
  if (!at::globalContext().deterministicAlgorithms()) {
    auto sums = zeroed_maps(call, accumulation_type(type));
    ROI_DISPATCH_TYPES(type, {
      launch_backward<scalar_t, index_t>(
          call, grad, winner, sums, FloatingSum<accumulation_t<scalar_t>>{});
    });
    for (at::Tensor& sum : sums) sum = sum.to(type);
    return sums;
  }
  const at::Tensor scale = fixed_point_scale(grad);
  const auto sums = zeroed_maps(call, at::kLong);
  std::vector<at::Tensor> grads;
  ROI_DISPATCH_TYPES(type, {
    launch_backward<scalar_t, index_t>(
        call, grad, winner, sums,
        FixedPointSum<accumulation_t<scalar_t>>{scale.const_data_ptr<double>()});
    for (int64_t l = 0; l < call.num_levels(); ++l) {
      const int64_t count = sums[l].numel();
      grads.push_back(unfilled_map(call, l, type));
      launch(
          from_fixed_point<scalar_t>, grid_of_elements(count), sums[l].const_data_ptr<int64_t>(),
          grads.back().data_ptr<scalar_t>(), count, scale.const_data_ptr<double>());
    }
  });
  return grads;
}

}  // namespace roi_plugins
