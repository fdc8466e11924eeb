#include "engine/exchange/buffer_pool.h"

#include <algorithm>

#include "common/bytes.h"
#include "common/check.h"

namespace stowage::engine {
namespace {
constexpr std::int64_t kAlignBytes = 64;
}  // namespace

std::span<std::byte> BufferPool::Take(std::int64_t bytes) {
  const std::int64_t wanted =
      RoundUp(std::max<std::int64_t>(bytes, 1), kAlignBytes);
  Block* best = nullptr;
  for (Block& block : blocks_) {
    // At most a quarter may be wasted.
    if (block.used || block.bytes < wanted || block.bytes / 5 * 4 > wanted) {
      continue;
    }
    if (best == nullptr || block.bytes < best->bytes) best = &block;
  }
  if (best == nullptr) {
    used_bytes_most_ = std::max(used_bytes_most_, used_bytes_ + wanted);
    DropFree(wanted);
    auto* memory = static_cast<std::byte*>(
        std::aligned_alloc(kAlignBytes, static_cast<std::size_t>(wanted)));
    STOWAGE_CHECK(memory != nullptr);
    best = &blocks_.emplace_back();
    best->memory.reset(memory);
    best->bytes = wanted;
    free_bytes_ += wanted;
  }
  best->used = true;
  free_bytes_ -= best->bytes;
  used_bytes_ += best->bytes;
  used_bytes_most_ = std::max(used_bytes_most_, used_bytes_);
  used_bytes_peak_ = std::max(used_bytes_peak_, used_bytes_);
  return {best->memory.get(), static_cast<std::size_t>(bytes)};
}

void BufferPool::Give(std::span<std::byte> buffer) {
  const auto block = std::find_if(
      blocks_.begin(), blocks_.end(),
      [&](const Block& b) { return b.memory.get() == buffer.data(); });
  STOWAGE_CHECK(block != blocks_.end() && block->used);
  block->used = false;
  used_bytes_ -= block->bytes;
  free_bytes_ += block->bytes;
}

// Frees what is not used, so that `wanted_bytes` more stay within the most ever
// in use.
void BufferPool::DropFree(std::int64_t wanted_bytes) {
  for (auto block = blocks_.begin(); block != blocks_.end();) {
    if (!block->used &&
        used_bytes_ + free_bytes_ + wanted_bytes > used_bytes_most_) {
      free_bytes_ -= block->bytes;
      block = blocks_.erase(block);
    } else {
      ++block;
    }
  }
}

}  // namespace stowage::engine
