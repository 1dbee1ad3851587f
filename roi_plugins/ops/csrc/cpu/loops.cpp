// In this file products and sums may be fused, since it only accumulates. Geometry is compiled without contraction,
// so nothing of it may be included here.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")
#endif

#include "loops.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstring>
#include <type_traits>

#include "../maximum.h"

// Each loop is written once and compiled twice on x86: for any processor, and for AVX2 with FMA.
#if defined(__x86_64__)
// Aligned, so that the speed of a loop does not depend on where the linker puts it.
#define ROI_AVX2 __attribute__((target("avx2,fma"), aligned(64)))
#define ROI_DISPATCH(name, ...) \
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); \
  if (avx2) return name##_avx2(__VA_ARGS__); \
  name##_loop(__VA_ARGS__)
#else
#define ROI_DISPATCH(name, ...) name##_loop(__VA_ARGS__)
#endif
#define ROI_INLINE static inline __attribute__((always_inline))

namespace roi_plugins {
namespace {

// The channels that one operation handles: a vector of 32 bytes by the compiler's own extension (any
// target, no intrinsics), or a single one for what is left over.
template <typename A> struct Wide;
template <> struct Wide<float> {
  static constexpr int size = 8;
  using integer = int32_t;
  typedef float type __attribute__((vector_size(32)));
  typedef integer index __attribute__((vector_size(32)));
};
template <> struct Wide<double> {
  static constexpr int size = 4;
  using integer = int64_t;
  typedef double type __attribute__((vector_size(32)));
  typedef integer index __attribute__((vector_size(32)));
};
template <typename A> struct Single {
  static constexpr int size = 1;
  using integer = int64_t;
  using type = A;
  using index = integer;
};
// N vectors or single channels side by side, which a block handles.
template <typename Lane, int N> struct Lanes {};
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));

template <typename V>
ROI_INLINE void copy_bits(V& value, const void* from) { std::memcpy(&value, from, sizeof(V)); }

template <typename A, typename S>
ROI_INLINE void load(A& value, const S* from) { value = A(*from); }
ROI_INLINE void load(Wide<float>::type& value, const float* from) { copy_bits(value, from); }
ROI_INLINE void load(Wide<double>::type& value, const double* from) { copy_bits(value, from); }
ROI_INLINE void load(Wide<float>::type& value, const c10::BFloat16* from) {
  u16x8 bits;
  copy_bits(bits, from);
  const u32x8 wide = __builtin_convertvector(bits, u32x8) << 16;
  copy_bits(value, &wide);
}
ROI_INLINE void load(Wide<float>::type& value, const c10::Half* from) {
  u16x8 bits;
  copy_bits(bits, from);
  const u32x8 half = __builtin_convertvector(bits, u32x8);
  // Exponent and mantissa moved into place read as the value times 2^-112, subnormals included.
  const u32x8 magnitude = (half & 0x7fff) << 13;
  Wide<float>::type scaled;
  copy_bits(scaled, &magnitude);
  scaled *= 0x1p112f;
  u32x8 result;
  copy_bits(result, &scaled);
  // Infinities and NaN keep an exponent of all ones.
  result |= (u32x8)((half & 0x7c00) == 0x7c00) & 0x7f800000u;
  result |= (half & 0x8000) << 16;
  copy_bits(value, &result);
}

template <typename S, typename V>
ROI_INLINE void store(S* to, const V& value) {
  using A = accumulation_t<S>;
  A lanes[sizeof(V) / sizeof(A)];
  std::memcpy(lanes, &value, sizeof(V));
  for (size_t i = 0; i < sizeof(V) / sizeof(A); ++i) to[i] = S(lanes[i]);
}

template <typename Lane, int N, bool add, typename To, typename S, typename A>
ROI_INLINE void sum_block(
    Lanes<Lane, N>, std::bool_constant<add>, To* out, const S* from, int64_t stride, const Tap<A>* taps,
    int64_t count) {
  typename Lane::type sum[N] = {}, value;
  for (int64_t t = 0; t < count; ++t) {
    const S* at = from + taps[t].index * stride;
    const A weight = taps[t].weight;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      load(value, at + i * Lane::size);
      sum[i] += weight * value;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    if constexpr (add) {
      load(value, out + i * Lane::size);
      sum[i] += value;
    }
    store(out + i * Lane::size, sum[i]);
  }
}

template <typename Lane, int N, typename S, typename A, typename Index>
ROI_INLINE void maximum_block(
    Lanes<Lane, N>, S* out, Index* argmax, const S* map, int64_t stride, const Sample<A>* samples, int64_t count,
    int64_t zero_after) {
  using V = typename Lane::type;
  using I = typename Lane::index;
  V best[N] = {}, value;
  I index[N];
  for (int i = 0; i < N; ++i) index[i] = I{} + kNoSample;
  for (int64_t s = 0; s < count; ++s) {
    const bool first = is_first(s, zero_after);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      V sum = {};
      for (int t = 0; t < samples[s].count; ++t) {
        load(value, map + samples[s].taps[t].index * stride + i * Lane::size);
        sum += samples[s].taps[t].weight * value;
      }
      compete(first, sum, I{} + typename Lane::integer(s), best[i], index[i]);
      if (s + 1 == zero_after) compete_zero(best[i], index[i]);
    }
  }
  for (int i = 0; i < N; ++i) {
    store(out + i * Lane::size, best[i]);
    typename Lane::integer lanes[Lane::size];
    std::memcpy(lanes, &index[i], sizeof(lanes));
    for (int j = 0; j < Lane::size; ++j) argmax[i * Lane::size + j] = Index(lanes[j]);
  }
}

// Over blocks of N vectors, then single vectors, then single channels.
#define ROI_OVER_CHANNELS(N, block, ...) \
  int64_t c = 0; \
  for (; c + N * Wide<A>::size <= channels; c += N * Wide<A>::size) \
    block(Lanes<Wide<A>, N>(), __VA_ARGS__); \
  for (; c + Wide<A>::size <= channels; c += Wide<A>::size) \
    block(Lanes<Wide<A>, 1>(), __VA_ARGS__); \
  for (; c < channels; ++c) block(Lanes<Single<A>, 1>(), __VA_ARGS__)

template <bool add, typename To, typename S, typename A>
ROI_INLINE void sum_loop(
    std::bool_constant<add> adds, To* out, int64_t out_stride, const S* from, int64_t stride,
    const TapLists<A>& lists, int64_t channels) {
  for (int b = 0; b < lists.count; ++b, out += out_stride) {
    const Tap<A>* const taps = lists.taps + lists.begin[b];
    const int64_t count = lists.begin[b + 1] - lists.begin[b];
    if (add && count == 0) continue;
    ROI_OVER_CHANNELS(4, sum_block, adds, out + c, from + c, stride, taps, count);
  }
}

template <typename S, typename A, typename Index>
ROI_INLINE void maximum_loop(
    S* out, Index* argmax, int64_t out_stride, const S* map, int64_t stride,
    const BinSamples<A>& bins, int64_t channels) {
  for (int b = 0; b < bins.bins; ++b, out += out_stride, argmax += out_stride) {
    const Sample<A>* const samples = bins.samples + bins.begin[b];
    const int64_t count = bins.begin[b + 1] - bins.begin[b];
    ROI_OVER_CHANNELS(
        4, maximum_block, out + c, argmax + c, map + c, stride, samples, count,
        bins.zero_after[b]);
  }
}

template <typename S, typename Index>
ROI_INLINE void at_argmax_loop(
    S* out, const S* grad, const Index* argmax, int64_t first, int64_t count, int64_t channels) {
  // Half types are selected as bits, since a loop over their classes is not vectorised.
  using Bits = std::conditional_t<sizeof(S) == sizeof(uint16_t), uint16_t, S>;
  const Bits* const from = reinterpret_cast<const Bits*>(grad);
  Bits* to = reinterpret_cast<Bits*>(out);
  for (int64_t i = first; i < first + count; ++i, to += channels) {
    const Index here = Index(i);
    for (int64_t c = 0; c < channels; ++c) {
      const Bits value = from[c];
      to[c] = argmax[c] == here ? value : Bits(0);
    }
  }
}

template <typename S, typename A>
ROI_INLINE void dot_loop(A& result, const S* a, const S* b, int64_t channels) {
  using V = typename Wide<A>::type;
  constexpr int size = Wide<A>::size;
  V sum[4] = {}, left, right;
  int64_t c = 0;
  for (int i = 0; c + size <= channels; c += size, i = (i + 1) % 4) {
    load(left, a + c);
    load(right, b + c);
    sum[i] += left * right;
  }
  sum[0] += sum[1] + sum[2] + sum[3];
  A lanes[size];
  std::memcpy(lanes, &sum[0], sizeof(lanes));
  for (int i = 0; i < size; ++i) result += lanes[i];
  for (; c < channels; ++c) result += A(a[c]) * A(b[c]);
}

// An eight by eight transpose of 32-bit lanes, whatever they hold: pairs of lanes, then pairs of pairs, then halves.
typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
#if defined(__clang__)
#define ROI_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ROI_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, i32x8{__VA_ARGS__})
#endif
ROI_INLINE void transpose_lanes(f32x8 (&v)[8]) {
  f32x8 t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = ROI_SHUFFLE(v[i], v[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[i + 1] = ROI_SHUFFLE(v[i], v[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    v[i] = ROI_SHUFFLE(t[i], t[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    v[i + 1] = ROI_SHUFFLE(t[i], t[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    v[i + 2] = ROI_SHUFFLE(t[i + 1], t[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    v[i + 3] = ROI_SHUFFLE(t[i + 1], t[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = ROI_SHUFFLE(v[i], v[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    t[i + 4] = ROI_SHUFFLE(v[i], v[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) v[i] = t[i];
}

template <typename Add, typename T>
ROI_INLINE void transpose_loop(
    Add add, T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t rows,
    int64_t columns) {
  const auto single = [&](int64_t i, int64_t j) __attribute__((always_inline)) {
    T& target = to[j * to_stride + i];
    target = add ? T(target + from[i * from_stride + j]) : from[i * from_stride + j];
  };
  constexpr int64_t wide = sizeof(T) == sizeof(float) ? 8 : 1;
  const int64_t whole_rows = rows / wide * wide, whole_columns = columns / wide * wide;
  for (int64_t i = 0; i < whole_rows; i += wide) {
    for (int64_t j = 0; j < whole_columns; j += wide) {
      if constexpr (wide > 1) {
        f32x8 v[8], sum;
#pragma GCC unroll 8
        for (int l = 0; l < 8; ++l) copy_bits(v[l], from + (i + l) * from_stride + j);
        transpose_lanes(v);
#pragma GCC unroll 8
        for (int l = 0; l < 8; ++l) {
          T* const target = to + (j + l) * to_stride + i;
          if (add) {
            copy_bits(sum, target);
            v[l] += sum;
          }
          std::memcpy(target, &v[l], sizeof(v[l]));
        }
      } else {
        single(i, j);
      }
    }
    for (int64_t j = whole_columns; j < columns; ++j) {
      for (int64_t l = 0; l < wide; ++l) single(i + l, j);
    }
  }
  for (int64_t i = whole_rows; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) single(i, j);
  }
}

#if defined(ROI_AVX2)
template <typename... Args>
ROI_AVX2 void sum_avx2(const Args&... args) { sum_loop(args...); }
template <typename... Args>
ROI_AVX2 void maximum_avx2(const Args&... args) { maximum_loop(args...); }
template <typename... Args>
ROI_AVX2 void at_argmax_avx2(const Args&... args) { at_argmax_loop(args...); }
template <typename A, typename... Args>
ROI_AVX2 void dot_avx2(A& result, const Args&... args) { dot_loop(result, args...); }
template <typename... Args>
ROI_AVX2 void transpose_avx2(const Args&... args) { transpose_loop(args...); }
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
