// Memory of results.
#pragma once

#include <ATen/core/Tensor.h>

namespace roi_plugins {

// A dense tensor that is not initialised. On the CPU the memory of a large one is kept when the tensor is freed, for
// the next: malloc gives such memory back to the system, and getting it again, a page fault every 4 KiB, can take
// longer than everything else (docs/kernels.md).
at::Tensor new_result(at::IntArrayRef sizes, const at::TensorOptions& options, at::MemoryFormat format);

// Gives back what is kept, and returns how many bytes that was.
int64_t release_memory();

}  // namespace roi_plugins
