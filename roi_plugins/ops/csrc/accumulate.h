// The type of coordinates and sums: double for features of double, float for all others. Never half: that would
// move a box by up to two pixels at 1000.
#pragma once

#include <c10/core/ScalarType.h>

namespace roi_plugins {

template <typename S> struct Accumulation { using type = float; };
template <> struct Accumulation<double> { using type = double; };
template <typename S> using accumulation_t = typename Accumulation<S>::type;

// The same for a type that only the call knows.
inline c10::ScalarType accumulation_type(c10::ScalarType type) {
  return type == c10::kDouble ? c10::kDouble : c10::kFloat;
}

}  // namespace roi_plugins
