// Stands in for csrc/cuda/launch.h where there is no GPU: the same kernels, thread after thread, on the
// host. It finds wrong arithmetic and wrong indices; races and speed it cannot show.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __grid_constant__

struct Index2d {
  unsigned x, y;
};
static thread_local Index2d gridDim, blockDim, blockIdx, threadIdx;

template <typename T>
void atomicAdd(T* cell, T value) {
  *cell += value;
}
struct float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline void atomicAdd(float4* cells, float4 value) {
  TORCH_CHECK(reinterpret_cast<uintptr_t>(cells) % 16 == 0, "a vector that is not aligned");
  cells->x += value.x;
  cells->y += value.y;
  cells->z += value.z;
  cells->w += value.w;
}
inline long long __double2ll_rn(double value) { return std::llrint(value); }
template <typename T>
T __ldg(const T* cell) {
  return *cell;
}
using std::fma;

namespace roi_plugins {

struct DeviceGuard {
  explicit DeviceGuard(at::Device) {}
};

// Few threads, so that each has to stride over the elements.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t, Arguments... arguments) {
  gridDim.x = 3;
  blockDim.x = 5;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel(arguments...);
  }
}

// All threads of a block come to the end of one phase before the next begins. What the block before has
// left in shared memory is not to be relied on.
template <typename Work>
void launch_work(const Work& work) {
  static typename Work::Shared shared;
  gridDim = {work.parts(), 3};
  blockDim.x = 5;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
      for (int64_t k = blockIdx.y; k < work.num_rois; k += gridDim.y) {
        std::memset(static_cast<void*>(&shared), 0x7f, sizeof shared);
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) {
          work.prepare(shared, k, blockIdx.x);
        }
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) {
          work.run(shared, k, blockIdx.x);
        }
      }
    }
  }
}

template <typename T>
T* in_global_memory(T* pointer) {
  return pointer;
}

inline bool has_vector_atomics() { return true; }

}  // namespace roi_plugins
