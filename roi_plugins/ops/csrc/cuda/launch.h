// What the kernels need of a device: how they are started, and the memory of a block. The tests replace this file by
// one that runs the kernels on the host, for machines without a GPU (tests/ops/cuda_on_host).
#pragma once

#include <ATen/ATen.h>
#include <ATen/cuda/EmptyTensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdint>

#include "cuda/grid.h"

namespace roi_plugins {

using DeviceGuard = c10::cuda::CUDAGuard;

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), Grid grid, Arguments... arguments) {
  static_assert((sizeof(Parameters) + ...) <= kMaxArgumentBytes);
  if (grid.is_empty()) return;
  const dim3 blocks(unsigned(grid.x), unsigned(grid.y));
  kernel<<<blocks, grid.threads, 0, c10::cuda::getCurrentCUDAStream()>>>(arguments...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// The memory that the threads of a block share.
template <typename T>
__device__ T& shared_memory() {
  static_assert(sizeof(T) <= kMaxSharedBytes);
  __shared__ T memory;
  return memory;
}

// Tells the compiler that a pointer points to global memory. It cannot know that of a pointer that was kept in shared
// memory, and would use generic loads, and slow atomics with a branch for every kind of memory.
template <typename T>
__device__ T* in_global_memory(T* pointer) {
  __builtin_assume(__isGlobal(pointer));
  return pointer;
}

// Whether the current device has vector atomics. Code for older ones uses four scalar ones instead (atomics.h), which
// is correct but does not pay.
inline bool has_vector_atomics() {
  int device = 0, major = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return CUDART_VERSION >= 12010 && major >= 9;
}

// A tensor that will be written as a whole. at::empty would fill it first under torch's deterministic algorithms.
inline at::Tensor uninitialized(
    at::IntArrayRef size, at::ScalarType type, at::Device device, at::MemoryFormat format) {
  return at::detail::empty_cuda(size, type, device, format);
}

}  // namespace roi_plugins
