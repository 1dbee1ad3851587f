// How a kernel over n elements is started. The tests have another file of this name, which runs the
// kernels on the host, so that they are checked where there is no GPU.
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

}  // namespace roi_plugins
