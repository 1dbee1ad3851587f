// Stands in for csrc/cuda/launch.h where there is no GPU: the same kernels on the host, an OS thread for each CUDA
// thread, several blocks at once, real barriers and real atomics. Shows wrong arithmetic and wrong indices, and under
// a sanitizer races and bad memory; not speed.
#pragma once

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <pthread.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "cuda/grid.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)

struct Index2d {
  unsigned x, y;
};
inline thread_local Index2d gridDim, blockDim, blockIdx, threadIdx;

struct Block {
  pthread_barrier_t barrier;
  alignas(16) unsigned char shared[roi_plugins::kMaxSharedBytes];
};
inline thread_local Block* this_block;

// `MISSING_BARRIER` is 0 or 1: every other barrier, from the first or the second on, is passed without waiting. So a
// test shows that one that is missing in the source would be found.
inline void __syncthreads() {
  static const char* const missing = std::getenv("MISSING_BARRIER");
  static thread_local unsigned count = 0;
  if (missing != nullptr && count++ % 2 == unsigned(std::atoi(missing))) return;
  pthread_barrier_wait(&this_block->barrier);
}

template <typename T>
void atomicAdd(T* cell, T value) {
  std::atomic_ref<T>(*cell).fetch_add(value, std::memory_order_relaxed);
}
struct float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline void atomicAdd(float4* cells, float4 value) {
  TORCH_CHECK(reinterpret_cast<uintptr_t>(cells) % 16 == 0, "a vector that is not aligned");
  atomicAdd(&cells->x, value.x);
  atomicAdd(&cells->y, value.y);
  atomicAdd(&cells->z, value.z);
  atomicAdd(&cells->w, value.w);
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

constexpr unsigned kHostThreads = 40;  // of a block: more than a warp, fewer than any kernel asks for
constexpr unsigned kHostBlocks = 2;    // at once
constexpr int64_t kHostGrid = 3;       // blocks of an axis over which kernels stride

// Checks the grid that a card would get, and runs a smaller one, so that each block has to stride.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), Grid grid, Arguments... arguments) {
  static_assert((sizeof(Parameters) + ...) <= kMaxArgumentBytes);
  if (grid.is_empty()) return;
  TORCH_CHECK(
      grid.x > 0 && grid.x <= kMaxGridX && grid.y > 0 && grid.y <= kMaxGridY && grid.threads > 0 &&
          grid.threads <= kMaxThreads,
      "no card takes a grid of ", grid.x, " x ", grid.y, " blocks of ", grid.threads, " threads");
  const Index2d size{
      unsigned(grid.strides_x ? std::min(grid.x, kHostGrid) : grid.x),
      unsigned(std::min(grid.y, kHostGrid))};
  const unsigned threads = std::min(unsigned(grid.threads), kHostThreads);
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::thread> running;
  for (unsigned b = 0; b < std::min(kHostBlocks, size.x * size.y); ++b) {
    blocks.push_back(std::make_unique<Block>());
    Block* const block = blocks.back().get();
    pthread_barrier_init(&block->barrier, nullptr, threads);
    for (unsigned t = 0; t < threads; ++t) {
      running.emplace_back([=] {
        gridDim = size;
        blockDim = {threads, 1};
        threadIdx = {t, 0};
        this_block = block;
        for (unsigned id = b; id < size.x * size.y; id += kHostBlocks) {
          blockIdx = {id % size.x, id / size.x};
          // A new block finds nothing of the one before: its memory is filled with NaN.
          if (t == 0) std::memset(block->shared, 0xff, sizeof block->shared);
          pthread_barrier_wait(&block->barrier);
          kernel(arguments...);
          pthread_barrier_wait(&block->barrier);
        }
      });
    }
  }
  for (std::thread& thread : running) thread.join();
  for (auto& block : blocks) pthread_barrier_destroy(&block->barrier);
}

template <typename T>
T& shared_memory() {
  static_assert(sizeof(T) <= kMaxSharedBytes);
  return *reinterpret_cast<T*>(this_block->shared);
}

template <typename T>
T* in_global_memory(T* pointer) {
  return pointer;
}

inline bool has_vector_atomics() { return true; }

inline at::Tensor uninitialized(
    at::IntArrayRef size, at::ScalarType type, at::Device, at::MemoryFormat format) {
  return at::detail::empty_cpu(size, type, false, format);
}

}  // namespace roi_plugins
