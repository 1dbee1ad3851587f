#include "results.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include <deque>
#include <memory>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace roi_plugins {
namespace {

constexpr size_t kLeast = 1u << 20;  // bytes: malloc keeps smaller ones itself
constexpr size_t kMost = 1u << 29;   // bytes kept, all together

struct Block {
  c10::DataPtr data;
  size_t size;
};

// Asks for new pages in one call for each thread instead of by page faults. Linux before 5.14 does not know the advice
// and ignores it.
void populate(void* data, size_t size) {
#if defined(__linux__)
  constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, which older headers lack
  static const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t address = reinterpret_cast<intptr_t>(data);
  const int64_t first = address / page, last = (address + int64_t(size) - 1) / page;
  at::parallel_for(first, last + 1, 1024, [&](int64_t begin, int64_t end) {
    madvise(reinterpret_cast<void*>(begin * page), size_t((end - begin) * page), kPopulateWrite);
  });
#endif
}

// Blocks without a tensor, the oldest first. The lock is only tried: where another thread has it, a block is not kept,
// none is found and none released. So a process that was forked while a thread had it goes on.
class KeptBlocks {
 public:
  std::unique_ptr<Block> take(size_t size) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
      if ((*block)->size != size) continue;
      std::unique_ptr<Block> found = std::move(*block);
      blocks_.erase(std::next(block).base());
      bytes_ -= size;
      return found;
    }
    return nullptr;
  }
  void keep(std::unique_ptr<Block> block) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || block->size > kMost) return;
    bytes_ += block->size;
    blocks_.push_back(std::move(block));
    while (bytes_ > kMost) {
      bytes_ -= blocks_.front()->size;
      blocks_.pop_front();
    }
  }
  int64_t release() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return 0;
    const int64_t bytes = int64_t(bytes_);
    blocks_.clear();
    bytes_ = 0;
    return bytes;
  }

 private:
  std::mutex mutex_;
  std::deque<std::unique_ptr<Block>> blocks_;
  size_t bytes_ = 0;
};

// Never destroyed, since tensors may outlive everything.
KeptBlocks& kept_blocks() {
  static KeptBlocks* const blocks = new KeptBlocks;
  return *blocks;
}

// Eight sizes for each power of two, so that blocks serve results that differ a little.
size_t block_size(size_t bytes) {
  size_t step = kLeast / 8;
  while (step * 16 <= bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

}  // namespace

at::Tensor new_result(at::IntArrayRef sizes, const at::TensorOptions& options, at::MemoryFormat format) {
  const size_t bytes = size_t(c10::multiply_integers(sizes)) * options.dtype().itemsize();
  if (!options.device().is_cpu()) return at::empty(sizes, options.memory_format(format));
  // Not at::empty, whose way through the dispatcher takes a noticeable part of a small call.
  if (bytes < kLeast) {
    return at::detail::empty_cpu(sizes, c10::typeMetaToScalarType(options.dtype()), /*pin_memory=*/false, format);
  }
  const size_t size = block_size(bytes);
  std::unique_ptr<Block> block = kept_blocks().take(size);
  if (!block) {
    block = std::make_unique<Block>(Block{c10::GetCPUAllocator()->allocate(size), size});
    populate(block->data.get(), bytes);
  }
  at::TensorMaker maker = at::for_blob(block->data.get(), sizes);
  maker.options(options).context(block.release(), [](void* freed) {
    kept_blocks().keep(std::unique_ptr<Block>(static_cast<Block*>(freed)));
  });
  if (format != at::MemoryFormat::ChannelsLast) return maker.make_tensor();
  const auto strides = c10::get_channels_last_strides_2d(sizes);
  return maker.strides(strides).make_tensor();
}

int64_t release_memory() {
  return kept_blocks().release();
}

}  // namespace roi_plugins
