// Memory for gathered units and for gradients on their way, used again and
// again: a new buffer would fault its pages in (about 0.55 ms/MiB).
//
// What is given back is kept only as long as everything together stays within
// the most that was ever in use at once, so the pool holds no more than its
// users' own peak. The figures are the truth about what a rank holds gathered.
//
// Thread safety: externally synchronized.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

namespace stowage::engine {

class BufferPool {
 public:
  BufferPool() = default;
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  // A buffer of at least one byte, aligned to 64; content undefined. It is
  // returned to the pool by Give().
  std::span<std::byte> Take(std::int64_t bytes);
  void Give(std::span<std::byte> buffer);

  std::int64_t used_bytes() const { return used_bytes_; }
  std::int64_t used_bytes_peak() const { return used_bytes_peak_; }
  std::int64_t held_bytes() const { return used_bytes_ + free_bytes_; }
  void ResetPeak() { used_bytes_peak_ = used_bytes_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  struct Block {
    std::unique_ptr<std::byte, Free> memory;
    std::int64_t bytes = 0;  // of the memory
    bool used = false;
  };
  void DropFree(std::int64_t wanted_bytes);

  std::vector<Block> blocks_;
  std::int64_t used_bytes_ = 0;
  std::int64_t free_bytes_ = 0;
  std::int64_t used_bytes_peak_ = 0;
  std::int64_t used_bytes_most_ = 0;  // ever
};

}  // namespace stowage::engine
