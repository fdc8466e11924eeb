// UnitStore over extents: parameters (versioned with the state) and gradient
// sums (overwritten in place).

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "storage/nvme/io/transfer_queue.h"
#include "storage/nvme/place_book.h"
#include "storage/nvme/store_files.h"
#include "storage/nvme/unit_store.h"

namespace stowage::storage {

// Thread safety: thread-safe. One thread at a time waits for the device,
// without
//   the mutex; others that wait meanwhile wait for it, and anybody may start
//   moves.
class UnitStoreImpl final : public UnitStore {
 public:
  // `versioned`: writes go to free places. Files, names and engine's files
  // outlive the store.
  UnitStoreImpl(const ExtentFiles* files, const FaultNames* names,
                std::unique_ptr<TransferQueue> queue, bool versioned,
                bool checksums);

  std::int64_t payload_bytes(std::int32_t unit_index) const override;
  absl::Status StartRead(std::int32_t unit_index,
                         std::span<std::byte> into) override;
  absl::Status StartWrite(std::int32_t unit_index,
                          std::span<const std::byte> from) override;
  absl::Status Await(std::int32_t unit_index) override;
  bool Done(std::int32_t unit_index) override;
  std::int64_t bytes_read() const override;
  std::int64_t bytes_written() const override;

  // --- For the store that commits them.
  // Waits for all writes. Returns: the first error since the last Adopt().
  absl::Status Settle();
  // True if anything was written since the last Adopt().
  bool dirty() const;
  PlaceTable current() const;
  // `table` is now the newest; `kept` are the tables whose places must stay.
  void Adopt(const PlaceTable& table, std::span<const PlaceTable* const> kept);

 private:
  enum class Moving : std::uint8_t { kNothing, kRead, kWrite };
  struct UnitState {
    Moving moving = Moving::kNothing;
    std::span<std::byte> memory;
  };

  absl::Status CheckSpan(std::int32_t unit_index, std::size_t bytes,
                         const void* address) const;
  bool Idle(std::int32_t unit_index) const REQUIRES(mutex_);
  // Waits until nothing of the unit is in flight.
  void WaitFor(std::int32_t unit_index) REQUIRES(mutex_);
  // Looks at what a finished move of the unit came to.
  absl::Status TakeResult(std::int32_t unit_index) REQUIRES(mutex_);
  std::span<std::byte> ExtentMemory(std::span<std::byte> unit_memory,
                                    std::int32_t unit_index,
                                    std::int32_t extent) const;

  // Constant after construction.
  const ExtentFiles& files_;
  const FaultNames& names_;
  const bool versioned_;
  const bool checksums_;
  const std::int32_t unit_count_;  // up to the last unit that has a payload

  mutable Mutex mutex_;
  std::unique_ptr<TransferQueue> queue_ GUARDED_BY(mutex_);
  PlaceTable table_ GUARDED_BY(mutex_);
  PlaceBook book_ GUARDED_BY(mutex_);
  std::vector<std::uint8_t> fresh_
      GUARDED_BY(mutex_);  // by extent: since Adopt
  std::vector<Transfer> transfers_ GUARDED_BY(mutex_);  // by extent
  std::vector<UnitState> units_ GUARDED_BY(mutex_);
  bool polling_ GUARDED_BY(mutex_) = false;  // somebody waits for the device
  CondVar polled_;
  absl::Status failed_ GUARDED_BY(mutex_);
  bool dirty_ GUARDED_BY(mutex_) = false;
  std::int64_t bytes_read_ GUARDED_BY(mutex_) = 0;
  std::int64_t bytes_written_ GUARDED_BY(mutex_) = 0;
};

}  // namespace stowage::storage
