// In which type sums and coordinates are held: float for everything but double.
#pragma once

namespace roi_plugins {

template <typename S> struct Accumulation { using type = float; };
template <> struct Accumulation<double> { using type = double; };
template <typename S> using accumulation_t = typename Accumulation<S>::type;

}  // namespace roi_plugins
