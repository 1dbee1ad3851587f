// The inner loops of the CPU kernels: what is done to all channels of a bin, once it is known which
// cells it reads. They see offsets and weights, never boxes.
#pragma once

#include <cstdint>

namespace roi_plugins {

// float for everything but double.
template <typename S> struct Accumulation { using type = float; };
template <> struct Accumulation<double> { using type = double; };
template <typename S> using accumulation_t = typename Accumulation<S>::type;

template <typename A>
struct Tap {
  int64_t offset;  // of the cell's first channel, in elements
  A weight;
};

// An interpolated value: up to four cells.
template <typename A>
struct Sample {
  Tap<A> taps[4];
  int count;
};

// out[c] = sum over taps of weight * map[offset + c], divided by divisor.
template <typename S>
void average_taps(
    S* out, const S* map, const Tap<accumulation_t<S>>* taps, int64_t count,
    accumulation_t<S> divisor, int64_t channels);

// out[c] = the largest sample, winner[c] = its index or -1 (all bits set) for the zero that competes
// after `zero_after` samples (-1: none does). No sample at all gives 0.
template <typename S, typename Index>
void maximum_of_samples(
    S* out, Index* winner, const S* map, const Sample<accumulation_t<S>>* samples, int64_t count,
    int64_t zero_after, int64_t channels);

// map[offset + c] += weight * grad[c] / divisor for every tap: the adjoint of average_taps.
template <typename S>
void scatter_taps(
    accumulation_t<S>* map, const S* grad, const Tap<accumulation_t<S>>* taps, int64_t count,
    accumulation_t<S> divisor, int64_t channels);

// The adjoint of maximum_of_samples: grad[c] goes to the taps of sample winner[c].
template <typename S, typename Index>
void scatter_winners(
    accumulation_t<S>* map, const S* grad, const Index* winner,
    const Sample<accumulation_t<S>>* samples, int64_t count, int64_t channels);

}  // namespace roi_plugins
