// The rule of a maximum, for host and device: which candidate of a bin wins, in one channel or in a vector of
// channels.
//
// The samples of a bin compete in scan order. A sample beyond the map is a zero and competes too. Later zeros only
// tie with the first one, so a bin is described by its samples on the map and by `zero_after`, the number of them
// before the first zero; it is -1 where no sample lies beyond the map.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace roi_plugins {

// The argmax where the zero wins, and where nothing is read: all bits are set, whatever the type of the index.
constexpr int kNoSample = -1;

// Whether a sample is the first candidate: no zero comes before it.
ROI_HOST_DEVICE bool is_first(int64_t sample, int64_t zero_after) {
  return sample == 0 && zero_after != 0;
}

#define ROI_RULE ROI_HOST_DEVICE
#include "compete.h"
#undef ROI_RULE

}  // namespace roi_plugins
