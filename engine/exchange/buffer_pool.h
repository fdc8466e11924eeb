// Memory for gathered units and for gradients on their way, used again and
// again: a new buffer would fault its pages in (about 0.55 ms/MiB), and a
// device's memory takes longer still to allocate.
//
// What is given back is kept only as long as everything together stays within
// the most that was ever in use at once, so the pool holds no more than its
// users' own peak. The figures are the truth about what a rank holds gathered.
//
// On a device a buffer is given back when the host is done with it; the compute
// stream may still read it. Who takes it for the copy-in stream gets it with
// that stream held until then.
//
// Thread safety: externally synchronized. Errors: Device::Allocate()'s.

#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "engine/device/device.h"

namespace stowage::engine {

class BufferPool {
 public:
  enum class Use : std::uint8_t {
    kCompute,  // buffers are first used by the compute stream
    kCopyIn,   // or by the copy-in stream
  };

  // `device`: where buffers are, null for the host's memory; it must outlive
  // the pool.
  explicit BufferPool(Device* device = nullptr, Use use = Use::kCompute)
      : device_(device), use_(use) {}
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;
  ~BufferPool();

  // A buffer of at least one byte, aligned to 64; content undefined. It is
  // returned to the pool by Give().
  absl::StatusOr<std::span<std::byte>> Take(std::int64_t bytes);
  void Give(std::span<std::byte> buffer);

  std::int64_t used_bytes() const { return used_bytes_; }
  std::int64_t used_bytes_peak() const { return used_bytes_peak_; }
  std::int64_t held_bytes() const { return used_bytes_ + free_bytes_; }
  void ResetPeak() { used_bytes_peak_ = used_bytes_; }

 private:
  struct Block {
    std::byte* memory = nullptr;
    std::int64_t bytes = 0;  // of the memory
    bool used = false;
    std::unique_ptr<DeviceMark> given;  // kCopyIn on a device
  };
  absl::StatusOr<std::byte*> Allocate(std::int64_t bytes);
  void Free(const Block& block);
  void DropFree(std::int64_t wanted_bytes);

  Device* const device_;
  const Use use_;
  std::list<Block> blocks_;
  std::int64_t used_bytes_ = 0;
  std::int64_t free_bytes_ = 0;
  std::int64_t used_bytes_peak_ = 0;
  std::int64_t used_bytes_most_ = 0;  // ever
};

}  // namespace stowage::engine
