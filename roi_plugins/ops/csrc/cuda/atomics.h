// Sums that many threads add to. Include it after launch.h, which defines the atomics in the tests on the host.
#pragma once

namespace roi_plugins {

// Whether this compilation may add four floats at once. That takes compute capability 9.0 and the headers of CUDA
// 12.1. The card does not decide, since a newer card also runs older PTX.
#if !defined(__CUDACC__)
#define ROI_VECTOR_ATOMICS 1  // on the host, in the tests
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12010
#define ROI_VECTOR_ATOMICS 1
#else
#define ROI_VECTOR_ATOMICS 0
#endif

// Adds to four neighbouring cells, on a boundary of 16 bytes.
__device__ inline void add_four(float* cells, float a, float b, float c, float d) {
#if ROI_VECTOR_ATOMICS
  atomicAdd(reinterpret_cast<float4*>(cells), make_float4(a, b, c, d));
#else
  atomicAdd(cells, a);
  atomicAdd(cells + 1, b);
  atomicAdd(cells + 2, c);
  atomicAdd(cells + 3, d);
#endif
}

// Floating-point sums, whose order is that in which the threads come.
template <typename A>
struct FloatingSum {
  using type = A;
  __device__ void add(A* cell, A value) const { atomicAdd(cell, value); }
};

// Fixed-point sums of eight bytes a cell, which are the same in any order. `scale` is a power of two that leaves room
// for all contributions of a call. It is on the device, so the host does not wait.
template <typename A>
struct FixedPointSum {
  using type = unsigned long long;
  const double* scale;
  __device__ void add(unsigned long long* cell, A value) const {
    atomicAdd(cell, static_cast<unsigned long long>(__double2ll_rn(double(value) * __ldg(scale))));
  }
};

}  // namespace roi_plugins
