// Blocks and threads of a kernel, and the limits that all cards share.
#pragma once

#include <algorithm>
#include <cstdint>

namespace roi_plugins {

constexpr int64_t kMaxGridX = (int64_t(1) << 31) - 1;
constexpr int64_t kMaxGridY = 65535;
constexpr int kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 48 << 10;  // of a block, static
constexpr size_t kMaxArgumentBytes = 4096;    // of a kernel; 32,764 from CUDA 12.1 on

struct Grid {
  int64_t x, y;
  int threads;     // a block
  bool strides_x;  // whether fewer blocks along x would do the same; along y they always would

  bool is_empty() const { return x == 0 || y == 0; }
};

// Divides `whole` into parts of at most `most` that are as even as possible; the size of a part.
constexpr int even_part(int whole, int most) {
  const int parts = (whole - 1) / most + 1;
  return (whole - 1) / parts + 1;
}
static_assert(even_part(7, 16) == 7 && even_part(17, 16) == 9 && even_part(28, 16) == 14);

constexpr int kItemThreads = 256;

// One thread an element, up to where striding pays more than another block.
inline Grid grid_of_elements(int64_t elements) {
  const int64_t blocks = (elements + kItemThreads - 1) / kItemThreads;
  return {std::min<int64_t>(blocks, 1 << 20), 1, kItemThreads, true};
}

}  // namespace roi_plugins
