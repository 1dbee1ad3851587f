// Sums that many threads add to. Comes after launch.h, which on the host defines the atomics.
#pragma once

namespace roi_plugins {

// Whether this compilation may add four floats at once: for compute capability 9.0 or newer, by CUDA 12.1 or newer,
// whose headers have it first. What counts is what the code is compiled for: a newer card also runs older PTX.
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

// Sums that atomics build in whatever order the threads come.
template <typename A>
struct FloatingSum {
  using type = A;
  __device__ void add(A* cell, A value) const { atomicAdd(cell, value); }
};

// Sums that come out the same in any order: fixed point, eight bytes a cell. `scale` is a power of two
// that leaves room for every contribution of a call; it is on the device, so the host need not wait.
template <typename A>
struct FixedPointSum {
  using type = unsigned long long;
  const double* scale;
  __device__ void add(unsigned long long* cell, A value) const {
    atomicAdd(cell, static_cast<unsigned long long>(__double2ll_rn(double(value) * __ldg(scale))));
  }
};

}  // namespace roi_plugins
