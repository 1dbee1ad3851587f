// The inner loops of the CPU kernels, compiled for the processor they run on. They see strides, indices and weights,
// never boxes. A vector is always a run of channels, of one cell or of cells side by side.
#pragma once

#include <cstdint>

#include "../accumulate.h"

namespace roi_plugins {

// The index of a cell that is read, and its weight.
template <typename A>
struct Tap {
  int index;
  A weight;
};

// The taps of `count` sums in a row; those of sum i are taps[begin[i]] .. taps[begin[i + 1] - 1].
template <typename A>
struct TapLists {
  int count;
  const int* begin;
  const Tap<A>* taps;
};

// An interpolated value: up to four cells.
template <typename A>
struct Sample {
  Tap<A> taps[4];
  int count;
};

// The samples of the bins of a RoI, likewise. `zero_after[b]` is that of bin b (maximum.h).
template <typename A>
struct BinSamples {
  int bins;
  const int* begin;
  const Sample<A>* samples;
  const int64_t* zero_after;
};

// out[i][c] = sum of weight * from[index][c] over the taps of list i, for c in [0, channels). The strides are
// from one i, and from one index, to the next.
template <typename To, typename S>
void sum_taps(
    To* out, int64_t out_stride, const S* from, int64_t stride,
    const TapLists<accumulation_t<S>>& lists, int64_t channels);
// The same, added to what is there.
template <typename To, typename S>
void add_taps(
    To* out, int64_t out_stride, const S* from, int64_t stride,
    const TapLists<accumulation_t<S>>& lists, int64_t channels);

// out[bin][c] = the largest candidate of the bin, argmax[bin][c] = the index of its sample or kNoSample (maximum.h).
template <typename S, typename Index>
void maximum_of_samples(
    S* out, Index* argmax, int64_t out_stride, const S* map, int64_t map_stride,
    const BinSamples<accumulation_t<S>>& bins, int64_t channels);

// The sum of a[c] * b[c].
template <typename S>
accumulation_t<S> dot(const S* a, const S* b, int64_t channels);

// out[i][c] = grad[c] where argmax[c] is first + i, else 0, for i in [0, count): channels lie side by side.
template <typename S, typename Index>
void take_at_argmax(
    S* out, const S* grad, const Index* argmax, int64_t first, int64_t count, int64_t channels);

// to[j][i] = from[i][j], or += with `add`, for i in [0, rows) and j in [0, columns).
template <bool add, typename T>
void transpose(
    T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t rows, int64_t columns);

}  // namespace roi_plugins
