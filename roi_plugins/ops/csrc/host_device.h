// How a function is marked that both the CPU and the CUDA kernels call.
#pragma once

#if defined(__CUDACC__)
#define ROI_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Forced here too: loops.cpp compiles its callers for AVX2, and what is not inlined there is not.
#define ROI_HOST_DEVICE inline __attribute__((always_inline))
#endif
