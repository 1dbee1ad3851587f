// Who wins a maximum. maximum.h includes this file for host and device, and the CPU's loops once for each instruction
// set: vectors are only compared as such in functions that are compiled for it (no #pragma once).

// A candidate competes. The first one wins against nothing. A later one wins if it is larger, so that the first of
// equal candidates stays. NaN always wins, and only another NaN wins against it, as in torch.nn.MaxPool2d.
// V and I are a number and an index, or vectors of them by the compiler's extension.
template <typename V, typename I>
ROI_RULE void compete(bool first, const V& value, const I& index, V& best, I& argmax) {
  if (first) {
    best = value;
    argmax = index;
    return;
  }
  const auto wins = (value > best) | (value != value);
  argmax = wins ? index : argmax;
  best = wins ? value : best;
}

// The zero from beyond the map competes after a sample.
template <typename V, typename I>
ROI_RULE void compete_zero(V& best, I& argmax) {
  const I index = I{} + kNoSample;
  compete(false, V{}, index, best, argmax);
}
