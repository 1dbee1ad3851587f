// In this file products and sums may be fused, since it only accumulates. Geometry is compiled without contraction,
// so nothing of it may be included here.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")
#endif

#include "loops.h"

#include <ATen/Version.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstring>
#include <string>
#include <type_traits>

#include "../maximum.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace roi_plugins {
namespace {

// The channels that one operation handles: a vector of some bytes by the compiler's own extension (any target), or a
// single one for what is left over. Of a vector, `index` has integers as wide as its numbers; `bits` and `half` are
// the bits of 32-bit and of 16-bit numbers.
template <typename A, int bytes>
struct Vector {
  static constexpr int size = bytes / sizeof(A);
  using scalar = A;
  using integer = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  typedef A type __attribute__((vector_size(bytes)));
  typedef integer index __attribute__((vector_size(bytes)));
  typedef uint32_t bits __attribute__((vector_size(bytes)));
  typedef uint16_t half __attribute__((vector_size(bytes / 2)));
};
template <typename A>
struct Single {
  static constexpr int size = 1;
  using scalar = A;
  using integer = int64_t;
  using type = A;
  using index = integer;
};
// N vectors or single channels side by side, which a block handles.
template <typename Lane, int N> struct Lanes {};

// Eight lanes, whatever they hold.
typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint8_t u8x8 __attribute__((vector_size(8)));
// The lanes of a, then those of b, in a given order; Order is a vector of integers as wide as they are.
#if defined(__clang__)
#define ROI_SHUFFLE(Order, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ROI_SHUFFLE(Order, a, b, ...) __builtin_shuffle(a, b, Order{__VA_ARGS__})
#endif

}  // namespace
}  // namespace roi_plugins

// Each loop is written once and compiled for several instruction sets: for any processor, and on x86 for AVX2 and
// AVX-512. ROI_BYTES are those of a vector. Loops are aligned, so that their speed does not depend on where the linker
// puts them.
#define ROI_INSTRUCTIONS any
#define ROI_BYTES 32
#define ROI_TARGET
#include "loops_body.h"
#if defined(__x86_64__)
#define ROI_F16C
#define ROI_INSTRUCTIONS avx2
#define ROI_BYTES 32
#define ROI_TARGET target("avx2,fma,f16c"), aligned(64),
#include "loops_body.h"
#define ROI_INSTRUCTIONS avx512
#define ROI_BYTES 64
#define ROI_TARGET target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"), aligned(64),
#include "loops_body.h"
#endif

namespace roi_plugins {
namespace {

// Torch's choice: ATEN_CPU_CAPABILITY=avx2 or =default holds the loops back too.
enum class Instructions { any, avx2, avx512 };
Instructions find_instructions() {
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return Instructions::avx512;
  return capability == "AVX2" ? Instructions::avx2 : Instructions::any;
}

#if defined(__x86_64__)
#define ROI_DISPATCH(name, ...) \
  static const Instructions instructions = find_instructions(); \
  if (instructions == Instructions::avx512) return avx512::name(__VA_ARGS__); \
  if (instructions == Instructions::avx2) return avx2::name(__VA_ARGS__); \
  any::name(__VA_ARGS__)
#else
#define ROI_DISPATCH(name, ...) any::name(__VA_ARGS__)
#endif

}  // namespace

template <typename To, typename S>
void sum_taps(
    To* out, int64_t out_stride, const S* from, int64_t stride,
    const TapLists<accumulation_t<S>>& lists, int64_t channels) {
  ROI_DISPATCH(sum, std::false_type{}, out, out_stride, from, stride, lists, channels);
}

template <typename To, typename S>
void add_taps(
    To* out, int64_t out_stride, const S* from, int64_t stride,
    const TapLists<accumulation_t<S>>& lists, int64_t channels) {
  ROI_DISPATCH(sum, std::true_type{}, out, out_stride, from, stride, lists, channels);
}

template <typename S, typename Index>
void maximum_of_samples(
    S* out, Index* argmax, int64_t out_stride, const S* map, int64_t map_stride,
    const BinSamples<accumulation_t<S>>& bins, int64_t channels) {
  ROI_DISPATCH(maximum, out, argmax, out_stride, map, map_stride, bins, channels);
}

template <typename S, typename Index>
void take_at_argmax(
    S* out, const S* grad, const Index* argmax, int64_t first, int64_t count, int64_t channels) {
  ROI_DISPATCH(at_argmax, out, grad, argmax, first, count, channels);
}

template <typename S>
static void add_dot(accumulation_t<S>& result, const S* a, const S* b, int64_t channels) {
  ROI_DISPATCH(dot, result, a, b, channels);
}
template <typename S>
accumulation_t<S> dot(const S* a, const S* b, int64_t channels) {
  accumulation_t<S> result = 0;
  add_dot(result, a, b, channels);
  return result;
}

template <bool add, typename T>
void transpose(
    T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t rows,
    int64_t columns) {
  ROI_DISPATCH(
      transpose, std::bool_constant<add>{}, to, to_stride, from, from_stride, rows, columns);
}

#define ROI_INSTANTIATE_SUM(To, S) \
  template void sum_taps<To, S>( \
      To*, int64_t, const S*, int64_t, const TapLists<accumulation_t<S>>&, int64_t)
#define ROI_INSTANTIATE_MAXIMUM(S, Index) \
  template void maximum_of_samples<S, Index>( \
      S*, Index*, int64_t, const S*, int64_t, const BinSamples<accumulation_t<S>>&, int64_t); \
  template void take_at_argmax<S, Index>(S*, const S*, const Index*, int64_t, int64_t, int64_t)
#define ROI_INSTANTIATE(S) \
  template accumulation_t<S> dot<S>(const S*, const S*, int64_t); \
  ROI_INSTANTIATE_MAXIMUM(S, uint8_t); \
  ROI_INSTANTIATE_MAXIMUM(S, int32_t); \
  template void transpose<false>(S*, int64_t, const S*, int64_t, int64_t, int64_t)
#define ROI_INSTANTIATE_HALF(S) \
  ROI_INSTANTIATE(S); \
  ROI_INSTANTIATE_SUM(S, S); \
  template void add_taps<float, S>(float*, int64_t, const S*, int64_t, const TapLists<float>&, int64_t); \
  ROI_INSTANTIATE_SUM(float, S); \
  ROI_INSTANTIATE_SUM(S, float)
#define ROI_INSTANTIATE_ACCUMULATION(A) \
  ROI_INSTANTIATE(A); \
  ROI_INSTANTIATE_SUM(A, A); \
  template void add_taps<A, A>(A*, int64_t, const A*, int64_t, const TapLists<A>&, int64_t); \
  template void transpose<true>(A*, int64_t, const A*, int64_t, int64_t, int64_t)

ROI_INSTANTIATE_ACCUMULATION(float);
ROI_INSTANTIATE_ACCUMULATION(double);
ROI_INSTANTIATE_HALF(c10::Half);
ROI_INSTANTIATE_HALF(c10::BFloat16);
template void transpose<false>(uint8_t*, int64_t, const uint8_t*, int64_t, int64_t, int64_t);
template void transpose<false>(int32_t*, int64_t, const int32_t*, int64_t, int64_t, int64_t);

}  // namespace roi_plugins
