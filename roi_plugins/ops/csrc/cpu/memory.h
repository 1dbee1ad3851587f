// Scratch memory.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace roi_plugins {

// Memory to work in. It only grows, and it is not initialised, so the unused part costs nothing. It begins on a cache
// line, as torch's does: a vector of 64 bytes would otherwise lie in two of them.
template <typename T>
class Scratch {
 public:
  T* at_least(int64_t size) {
    if (size > size_) {
      data_.reset(static_cast<T*>(::operator new(size_t(size) * sizeof(T), kLine)));
      size_ = size;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Delete {
    void operator()(T* data) const { ::operator delete(data, kLine); }
  };
  std::unique_ptr<T[], Delete> data_;
  int64_t size_ = 0;
};

}  // namespace roi_plugins
