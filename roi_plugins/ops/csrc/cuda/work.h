// Kernels whose blocks share memory: a block works on one part of one RoI at a time.
#pragma once

#include "cuda/launch.h"

namespace roi_plugins {

constexpr int kThreads = 128;

// `work` is a grid constant: threads index it in place, instead of copies on their stacks.
template <typename Work>
__global__ void __launch_bounds__(kThreads) work_kernel(const __grid_constant__ Work work) {
  typename Work::Shared& shared = shared_memory<typename Work::Shared>();
  for (int64_t k = blockIdx.y; k < work.num_rois; k += gridDim.y) {
    work.prepare(shared, k, blockIdx.x);
    __syncthreads();
    work.run(shared, k, blockIdx.x);
    __syncthreads();
  }
}

template <typename Work>
void launch_work(const Work& work) {
  launch(
      work_kernel<Work>,
      Grid{work.parts(), std::min(work.num_rois, kMaxGridY), kThreads, false}, work);
}

}  // namespace roi_plugins
