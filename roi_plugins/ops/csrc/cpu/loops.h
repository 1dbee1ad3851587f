// The inner loops of the CPU kernels, compiled for the processor they run on. They see strides, indices
// and weights, never boxes. Everywhere a vector is a run of channels of one cell.
#pragma once

#include <cstdint>

#include "../accumulate.h"

namespace roi_plugins {

// A cell, by its index in the map or window at hand.
template <typename A>
struct Tap {
  int cell;
  A weight;
};

// An interpolated value: up to four cells.
template <typename A>
struct Sample {
  Tap<A> taps[4];
  int count;
};

// The taps of all bins of a RoI; those of bin b are begin[b] .. begin[b + 1] - 1.
template <typename A>
struct BinTaps {
  int bins;
  const int* begin;
  const Tap<A>* taps;
};

// The samples of all bins of a RoI, likewise. Beside them a zero competes after `zero_after[b]` samples of
// a bin (-1: none does).
template <typename A>
struct BinSamples {
  int bins;
  const int* begin;
  const Sample<A>* samples;
  const int64_t* zero_after;
};

// out[bin][c] = sum over the bin's taps of weight * map[cell][c], for c in [0, channels). The strides are
// from bin to bin and from cell to cell.
template <typename S>
void sum_taps(
    S* out, int64_t out_stride, const S* map, int64_t map_stride,
    const BinTaps<accumulation_t<S>>& bins, int64_t channels);

// map[cell][c] += weight * grad[bin][c] for every tap: the adjoint of sum_taps.
template <typename S>
void scatter_taps(
    accumulation_t<S>* map, int64_t map_stride, const S* grad, int64_t grad_stride,
    const BinTaps<accumulation_t<S>>& bins, int64_t channels);

// out[bin][c] = the bin's largest sample, winner[bin][c] = its index or -1 (all bits set) for the zero. No
// sample at all gives 0.
template <typename S, typename Index>
void maximum_of_samples(
    S* out, Index* winner, int64_t out_stride, const S* map, int64_t map_stride,
    const BinSamples<accumulation_t<S>>& bins, int64_t channels);

// The adjoint of maximum_of_samples: grad[bin][c] goes to the taps of sample winner[bin][c].
template <typename S, typename Index>
void scatter_winners(
    accumulation_t<S>* map, int64_t map_stride, const S* grad, const Index* winner,
    int64_t grad_stride, const BinSamples<accumulation_t<S>>& bins, int64_t channels);

// to[j][i] = from[i][j], or += with `add`, for i in [0, rows) and j in [0, columns).
template <bool add, typename T>
void transpose(
    T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t rows, int64_t columns);

}  // namespace roi_plugins
