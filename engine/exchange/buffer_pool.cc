#include "engine/exchange/buffer_pool.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace stowage::engine {
namespace {
constexpr std::int64_t kAlignBytes = 64;
}  // namespace

BufferPool::~BufferPool() {
  for (const Block& block : blocks_) Free(block);
}

absl::StatusOr<std::byte*> BufferPool::Allocate(std::int64_t bytes) {
  if (device_ != nullptr) return device_->Allocate(bytes);
  auto* memory = static_cast<std::byte*>(
      std::aligned_alloc(kAlignBytes, static_cast<std::size_t>(bytes)));
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("buffers of the exchange: allocate ", bytes, " bytes"));
  }
  return memory;
}

void BufferPool::Free(const Block& block) {
  if (device_ != nullptr) {
    device_->Free(block.memory);
  } else {
    std::free(block.memory);
  }
}

absl::StatusOr<std::span<std::byte>> BufferPool::Take(std::int64_t bytes) {
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
    STOWAGE_ASSIGN_OR_RETURN(std::byte* const memory, Allocate(wanted));
    best = &blocks_.emplace_back();
    best->memory = memory;
    best->bytes = wanted;
    free_bytes_ += wanted;
    if (device_ != nullptr && use_ == Use::kCopyIn) {
      // Memory that the compute stream may have used for something else.
      STOWAGE_ASSIGN_OR_RETURN(best->given, device_->Mark());
    }
  }
  if (best->given != nullptr) {
    STOWAGE_RETURN_IF_ERROR(device_->Hold(CopyDirection::kIn, *best->given));
    best->given.reset();
  }
  best->used = true;
  free_bytes_ -= best->bytes;
  used_bytes_ += best->bytes;
  used_bytes_most_ = std::max(used_bytes_most_, used_bytes_);
  used_bytes_peak_ = std::max(used_bytes_peak_, used_bytes_);
  return std::span<std::byte>(best->memory, static_cast<std::size_t>(bytes));
}

void BufferPool::Give(std::span<std::byte> buffer) {
  const auto block =
      std::find_if(blocks_.begin(), blocks_.end(),
                   [&](const Block& b) { return b.memory == buffer.data(); });
  STOWAGE_CHECK(block != blocks_.end() && block->used);
  block->used = false;
  used_bytes_ -= block->bytes;
  free_bytes_ += block->bytes;
  if (device_ != nullptr && use_ == Use::kCopyIn) {
    absl::StatusOr<std::unique_ptr<DeviceMark>> mark = device_->Mark();
    if (mark.ok()) {
      block->given = *std::move(mark);
    } else {
      // A driver that makes no more events says so again at the next call.
      free_bytes_ -= block->bytes;
      Free(*block);
      blocks_.erase(block);
    }
  }
}

// Frees what is not used, so that `wanted_bytes` more stay within the most ever
// in use.
void BufferPool::DropFree(std::int64_t wanted_bytes) {
  for (auto block = blocks_.begin(); block != blocks_.end();) {
    if (!block->used &&
        used_bytes_ + free_bytes_ + wanted_bytes > used_bytes_most_) {
      free_bytes_ -= block->bytes;
      Free(*block);
      block = blocks_.erase(block);
    } else {
      ++block;
    }
  }
}

}  // namespace stowage::engine
