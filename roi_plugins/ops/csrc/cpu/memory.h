// Scratch memory, and fast allocation of the pages of large new tensors.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <memory>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace roi_plugins {

// Memory to work in. It only grows, and it is not initialised, so the unused part costs nothing.
template <typename T>
class Scratch {
 public:
  T* at_least(int64_t size) {
    if (size > size_) {
      data_.reset(new T[size]);
      size_ = size;
    }
    return data_.get();
  }

 private:
  std::unique_ptr<T[]> data_;
  int64_t size_ = 0;
};

// Asks for the pages of a large new tensor, in one call for each thread. Otherwise the first write to every 4 KiB is
// a page fault, and the faults can take longer than everything else (docs/kernels.md). Linux before 5.14 does not
// know the advice and ignores it.
inline void populate(const at::Tensor& tensor) {
#if defined(__linux__)
  constexpr int kPopulateWrite = 23;         // MADV_POPULATE_WRITE, which older headers lack
  constexpr size_t kFromSystem = 32u << 20;  // glibc keeps nothing larger: its pages are always new
  if (tensor.nbytes() < kFromSystem) return;
  static const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t address = reinterpret_cast<intptr_t>(tensor.data_ptr());
  const int64_t first = address / page, last = (address + int64_t(tensor.nbytes()) - 1) / page;
  at::parallel_for(first, last + 1, 1024, [&](int64_t begin, int64_t end) {
    madvise(reinterpret_cast<void*>(begin * page), size_t((end - begin) * page), kPopulateWrite);
  });
#endif
}

}  // namespace roi_plugins
