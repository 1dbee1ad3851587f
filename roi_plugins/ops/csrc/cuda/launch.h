// How kernels are started. The tests have another file of this name, which runs the kernels on the host,
// so that they are checked where there is no GPU.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdint>

namespace roi_plugins {

using DeviceGuard = c10::cuda::CUDAGuard;

// The kernel strides over the elements by the whole grid, so that their number may pass 2^31.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t elements, Arguments... arguments) {
  constexpr int threads = 256;
  const auto blocks = std::min<int64_t>((elements + threads - 1) / threads, 1 << 20);
  kernel<<<int(blocks), threads, 0, c10::cuda::getCurrentCUDAStream()>>>(arguments...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

constexpr int kThreads = 128;

// A grid constant: indexed where it lies, not copied to every thread's stack.
template <typename Work>
__global__ void __launch_bounds__(kThreads) work_kernel(const __grid_constant__ Work work) {
  __shared__ typename Work::Shared shared;
  for (int64_t k = blockIdx.y; k < work.num_rois; k += gridDim.y) {
    work.prepare(shared, k, blockIdx.x);
    __syncthreads();
    work.run(shared, k, blockIdx.x);
    __syncthreads();
  }
}

// Blocks of work: parts of RoIs.
template <typename Work>
void launch_work(const Work& work) {
  const dim3 blocks(work.parts(), unsigned(std::min<int64_t>(work.num_rois, 65535)));
  work_kernel<<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(work);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// A pointer that was kept in shared memory might point anywhere, as far as the compiler knows; it would
// use generic loads, and slow atomics with a branch for every kind of memory.
template <typename T>
__device__ T* in_global_memory(T* pointer) {
  __builtin_assume(__isGlobal(pointer));
  return pointer;
}

// Whether the current device adds four floats to memory at once (compute capability 9.0).
inline bool has_vector_atomics() {
  int device = 0, major = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major >= 9;
}

}  // namespace roi_plugins
