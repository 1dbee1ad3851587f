// The loops for one instruction set: loops.cpp includes this file once for each (no #pragma once).
#define ROI_LOOP __attribute__((ROI_TARGET unused)) static
#define ROI_INLINE __attribute__((ROI_TARGET always_inline)) static inline
#define ROI_LAMBDA __attribute__((ROI_TARGET always_inline))

namespace roi_plugins {
namespace {
namespace ROI_INSTRUCTIONS {

template <typename A> using Wide = Vector<A, ROI_BYTES>;

template <typename V>
ROI_INLINE void copy_bits(V& value, const void* from) { std::memcpy(&value, from, sizeof(V)); }

template <typename Lane, typename S>
ROI_INLINE void load(Lane, typename Lane::type& value, const S* from) {
  using A = typename Lane::scalar;
  if constexpr (Lane::size == 1) {
    value = A(*from);
  } else if constexpr (std::is_same_v<S, A>) {
    copy_bits(value, from);
  } else {
    using Bits = typename Lane::bits;
    typename Lane::half half;
    copy_bits(half, from);
#if defined(ROI_F16C)
    if constexpr (std::is_same_v<S, c10::Half> && Lane::size == 8) {
      value = (typename Lane::type)_mm256_cvtph_ps((__m128i)half);
      return;
    }
#if ROI_BYTES == 64
    if constexpr (std::is_same_v<S, c10::Half> && Lane::size == 16) {
      value = (typename Lane::type)_mm512_maskz_cvtph_ps(__mmask16(-1), (__m256i)half);
      return;
    }
#endif
#endif
    const Bits wide = __builtin_convertvector(half, Bits);
    Bits result;
    if constexpr (std::is_same_v<S, c10::BFloat16>) {
      result = wide << 16;
    } else {
      // Exponent and mantissa moved into place read as the value times 2^-112, subnormals included.
      const Bits magnitude = (wide & 0x7fff) << 13;
      typename Lane::type scaled;
      copy_bits(scaled, &magnitude);
      scaled *= 0x1p112f;
      copy_bits(result, &scaled);
      // Infinities and NaN keep an exponent of all ones.
      result |= (Bits)((wide & 0x7c00) == 0x7c00) & 0x7f800000u;
      result |= (wide & 0x8000) << 16;
    }
    copy_bits(value, &result);
  }
}

template <typename Lane, typename S>
ROI_INLINE void store(Lane, S* to, const typename Lane::type& value) {
  using A = typename Lane::scalar;
  if constexpr (Lane::size == 1) {
    *to = S(value);
  } else if constexpr (std::is_same_v<S, A>) {
    std::memcpy(to, &value, sizeof(value));
  } else if constexpr (std::is_same_v<S, c10::BFloat16>) {
    // To the nearest, ties to even, as c10 does. The processor's own conversion would flush subnormals.
    typename Lane::bits bits;
    copy_bits(bits, &value);
    bits += 0x7fff + ((bits >> 16) & 1);
    bits >>= 16;
    bits = value == value ? bits : typename Lane::bits{} + 0x7fc0u;
    const auto half = __builtin_convertvector(bits, typename Lane::half);
    std::memcpy(to, &half, sizeof(half));
  } else {
#if defined(ROI_F16C)
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    if constexpr (Lane::size == 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)value, nearest));
      return;
    }
#if ROI_BYTES == 64
    if constexpr (Lane::size == 16) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtps_ph(__mmask16(-1), (__m512)value, nearest));
      return;
    }
#endif
#endif
    A lanes[Lane::size];
    std::memcpy(lanes, &value, sizeof(value));
    for (int i = 0; i < Lane::size; ++i) to[i] = S(lanes[i]);
  }
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
      load(Lane(), value, at + i * Lane::size);
      sum[i] += weight * value;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    if constexpr (add) {
      load(Lane(), value, out + i * Lane::size);
      sum[i] += value;
    }
    store(Lane(), out + i * Lane::size, sum[i]);
  }
}

#define ROI_RULE ROI_INLINE
#include "../compete.h"
#undef ROI_RULE

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
        load(Lane(), value, map + samples[s].taps[t].index * stride + i * Lane::size);
        sum += samples[s].taps[t].weight * value;
      }
      compete(first, sum, I{} + typename Lane::integer(s), best[i], index[i]);
      if (s + 1 == zero_after) compete_zero(best[i], index[i]);
    }
  }
  for (int i = 0; i < N; ++i) {
    store(Lane(), out + i * Lane::size, best[i]);
    typename Lane::integer lanes[Lane::size];
    std::memcpy(lanes, &index[i], sizeof(lanes));
    for (int j = 0; j < Lane::size; ++j) argmax[i * Lane::size + j] = Index(lanes[j]);
  }
}

// Calls block(lanes, first channel) for blocks of N vectors, then single vectors, then what is left over.
template <typename A, int N, typename Block>
ROI_INLINE void over_channels(int64_t channels, const Block& block) {
  int64_t c = 0;
  for (; c + N * Wide<A>::size <= channels; c += N * Wide<A>::size) block(Lanes<Wide<A>, N>(), c);
  for (; c + Wide<A>::size <= channels; c += Wide<A>::size) block(Lanes<Wide<A>, 1>(), c);
  using Narrow = Vector<A, 32>;
  for (; c + Narrow::size <= channels; c += Narrow::size) block(Lanes<Narrow, 1>(), c);
  for (; c < channels; ++c) block(Lanes<Single<A>, 1>(), c);
}

template <bool add, typename To, typename S, typename A>
ROI_LOOP void sum(
    std::bool_constant<add> adds, To* out, int64_t out_stride, const S* from, int64_t stride,
    const TapLists<A>& lists, int64_t channels) {
  for (int b = 0; b < lists.count; ++b, out += out_stride) {
    const Tap<A>* const taps = lists.taps + lists.begin[b];
    const int64_t count = lists.begin[b + 1] - lists.begin[b];
    if (add && count == 0) continue;
    over_channels<A, 4>(channels, [&](auto lanes, int64_t c) ROI_LAMBDA {
      sum_block(lanes, adds, out + c, from + c, stride, taps, count);
    });
  }
}

template <typename S, typename A, typename Index>
ROI_LOOP void maximum(
    S* out, Index* argmax, int64_t out_stride, const S* map, int64_t stride,
    const BinSamples<A>& bins, int64_t channels) {
  for (int b = 0; b < bins.bins; ++b, out += out_stride, argmax += out_stride) {
    const Sample<A>* const samples = bins.samples + bins.begin[b];
    const int64_t count = bins.begin[b + 1] - bins.begin[b];
    over_channels<A, 4>(channels, [&](auto lanes, int64_t c) ROI_LAMBDA {
      maximum_block(lanes, out + c, argmax + c, map + c, stride, samples, count, bins.zero_after[b]);
    });
  }
}

template <typename S, typename Index>
ROI_LOOP void at_argmax(
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
ROI_LOOP void dot(A& result, const S* a, const S* b, int64_t channels) {
  using V = typename Wide<A>::type;
  constexpr int size = Wide<A>::size;
  V sum[4] = {}, left, right;
  int64_t c = 0;
  for (int i = 0; c + size <= channels; c += size, i = (i + 1) % 4) {
    load(Wide<A>(), left, a + c);
    load(Wide<A>(), right, b + c);
    sum[i] += left * right;
  }
  sum[0] += sum[1] + sum[2] + sum[3];
  A lanes[size];
  std::memcpy(lanes, &sum[0], sizeof(lanes));
  for (int i = 0; i < size; ++i) result += lanes[i];
  for (; c < channels; ++c) result += A(a[c]) * A(b[c]);
}

// Transposes eight by eight lanes, whatever they hold. In each of three rounds pairs of rows are interleaved.
template <typename V>
ROI_INLINE void transpose_lanes(V (&v)[8]) {
  V t[8];
#pragma GCC unroll 3
  for (int round = 0; round < 3; ++round) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = ROI_SHUFFLE(V, v[i], v[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      t[2 * i + 1] = ROI_SHUFFLE(V, v[i], v[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) v[i] = t[i];
  }
}

// The same for 32 bits, whose rows have two halves that shuffles do not cross cheaply: pairs of lanes, then pairs of
// pairs, then the halves.
ROI_INLINE void transpose_lanes(f32x8 (&v)[8]) {
  f32x8 t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = ROI_SHUFFLE(i32x8, v[i], v[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[i + 1] = ROI_SHUFFLE(i32x8, v[i], v[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    v[i] = ROI_SHUFFLE(i32x8, t[i], t[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    v[i + 1] = ROI_SHUFFLE(i32x8, t[i], t[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    v[i + 2] = ROI_SHUFFLE(i32x8, t[i + 1], t[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    v[i + 3] = ROI_SHUFFLE(i32x8, t[i + 1], t[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = ROI_SHUFFLE(i32x8, v[i], v[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    t[i + 4] = ROI_SHUFFLE(i32x8, v[i], v[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) v[i] = t[i];
}

template <typename Add, typename T>
ROI_LOOP void transpose(
    Add add, T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t rows,
    int64_t columns) {
  const auto single = [&](int64_t i, int64_t j) ROI_LAMBDA {
    T& target = to[j * to_stride + i];
    target = add ? T(target + from[i * from_stride + j]) : from[i * from_stride + j];
  };
  constexpr int64_t wide = sizeof(T) <= 4 ? 8 : 1;
  using Row = std::conditional_t<sizeof(T) == 4, f32x8, std::conditional_t<sizeof(T) == 2, u16x8, u8x8>>;
  const int64_t whole_rows = rows / wide * wide, whole_columns = columns / wide * wide;
  for (int64_t i = 0; i < whole_rows; i += wide) {
    for (int64_t j = 0; j < whole_columns; j += wide) {
      if constexpr (wide > 1) {
        Row v[8], sum;
#pragma GCC unroll 8
        for (int l = 0; l < 8; ++l) copy_bits(v[l], from + (i + l) * from_stride + j);
        transpose_lanes(v);
#pragma GCC unroll 8
        for (int l = 0; l < 8; ++l) {
          T* const target = to + (j + l) * to_stride + i;
          if constexpr (add) {
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

}  // namespace ROI_INSTRUCTIONS
}  // namespace
}  // namespace roi_plugins

#undef ROI_INSTRUCTIONS
#undef ROI_BYTES
#undef ROI_TARGET
#undef ROI_LOOP
#undef ROI_INLINE
#undef ROI_LAMBDA
