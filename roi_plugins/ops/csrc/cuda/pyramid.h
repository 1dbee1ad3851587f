// What the kernels share: maps and groups of channels.
#pragma once

#include <ATen/ATen.h>

#include "accumulate.h"
#include "cuda/launch.h"
#include "cuda/atomics.h"
#include "op.h"

namespace roi_plugins {

template <typename S> constexpr int kVector = 16 / sizeof(S);  // channels of a thread

// A pyramid of maps in any layout, small enough to be an argument of a kernel.
template <typename T, typename A>
struct Pyramid {
  T* data[kMaxLevels];
  int64_t stride[kMaxLevels][4];
  int height[kMaxLevels], width[kMaxLevels];
  A scale[kMaxLevels];

  Pyramid(const Call& call, at::TensorList maps) {
    for (int64_t l = 0; l < call.num_levels(); ++l) {
      data[l] = static_cast<T*>(maps[l].data_ptr());
      for (int d = 0; d < 4; ++d) stride[l][d] = maps[l].stride(d);
      height[l] = int(call.height(l));
      width[l] = int(call.width(l));
      scale[l] = A(call.options.scales[l]);
    }
  }
};

// The kernels read a level for each RoI.
inline Call with_levels(Call call) {
  if (!call.levels.defined()) {
    call.levels = at::zeros({call.num_rois()}, call.rois.options().dtype(at::kLong));
  }
  return call;
}

// The seed is read on the device, so that the host does not wait.
__device__ inline Jitter jitter_from(const int64_t* seed) {
  return {seed != nullptr, seed != nullptr ? uint64_t(*seed) : 0};
}
inline const int64_t* seed_of(const Call& call) {
  return call.seed.defined() ? call.seed.const_data_ptr<int64_t>() : nullptr;
}

// Elements of neighbouring channels, moved as one.
template <typename T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
  T values[V];
};

// The channels of a thread: V side by side if `packed`. Otherwise they are as far apart as there are groups, so that
// neighbouring threads take neighbouring elements in either layout, for any number of channels.
template <int V, bool packed>
struct Channels {
  int64_t first, step, end;

  __device__ Channels(int64_t group, int64_t groups, int64_t channels)
      : first(packed ? group * V : group), step(packed ? 1 : groups), end(channels) {}

  __device__ bool has(int v) const { return packed || first + v * step < end; }

  // `from` and `to` point at the first channel.
  template <typename T>
  __device__ void load(const T* from, int64_t stride, Pack<T, V>& pack) const {
    if constexpr (packed) {
      pack = *reinterpret_cast<const Pack<T, V>*>(from);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (has(v)) pack.values[v] = from[v * step * stride];
      }
    }
  }

  template <typename T>
  __device__ void store(T* to, int64_t stride, const Pack<T, V>& pack) const {
    if constexpr (packed) {
      *reinterpret_cast<Pack<T, V>*>(to) = pack;
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (has(v)) to[v * step * stride] = pack.values[v];
      }
    }
  }
};

// Adds a cell that a bin reads to its sums: `cell` is the group's first channel, `stride` how far it is to the next.
template <typename S, typename A, int V, bool packed>
__device__ void gather(
    const S* cell, int64_t stride, A weight, const Channels<V, packed>& channels, A (&sum)[V]) {
  Pack<S, V> value{};
  channels.load(cell, stride, value);
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] = fma(weight, static_cast<A>(value.values[v]), sum[v]);
}

// Adds the gradient of a bin to a cell, likewise.
template <typename Sum, typename S, int V, bool packed>
__device__ void spread(
    const Sum& sum, typename Sum::type* cell, accumulation_t<S> weight, const Pack<S, V>& value,
    const Channels<V, packed>& channels, int64_t stride) {
  const auto part = [&](int v) { return weight * static_cast<accumulation_t<S>>(value.values[v]); };
  if constexpr (packed) {
#pragma unroll
    for (int v = 0; v < V; v += 4) {
      add_four(cell + v, part(v), part(v + 1), part(v + 2), part(v + 3));
    }
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (channels.has(v)) sum.add(cell + v * channels.step * stride, part(v));
    }
  }
}

}  // namespace roi_plugins
