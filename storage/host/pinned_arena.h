// Private memory of the server that stays resident: masters, moments, fp32
// gradient sums.
//
// Anonymous, populated when it is made (so that a machine without the memory
// refuses at admission), in huge pages where the kernel gives them, locked
// where RLIMIT_MEMLOCK allows. Where it does not, one warning per process says
// which limit to raise.
//
// Source: mmap(2), madvise(2) on MADV_HUGEPAGE and MADV_POPULATE_WRITE,
//   mlock(2).

#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "storage/host/memory_budget.h"

namespace stowage::storage {

inline constexpr std::int64_t kHugePageBytes = std::int64_t{2} << 20;

// A run of zeroed memory. Move-only. Thread safety: externally synchronized.
class PinnedArena {
 public:
  PinnedArena() = default;  // empty
  PinnedArena(PinnedArena&& other) noexcept;
  PinnedArena& operator=(PinnedArena&& other) noexcept;
  PinnedArena(const PinnedArena&) = delete;
  PinnedArena& operator=(const PinnedArena&) = delete;
  ~PinnedArena();

  // What an arena of `bytes` maps: whole pages, whole huge pages above one.
  static std::int64_t MappedBytes(std::int64_t bytes);

  // `reservation` must hold exactly MappedBytes(bytes); it lives with the
  // arena. Errors: kResourceExhausted if the machine has not the memory.
  // Blocks: for page faults, about 0.1 s a GiB with huge pages.
  static absl::StatusOr<PinnedArena> Create(std::int64_t bytes,
                                            bool lock_memory,
                                            MemoryBudget* budget,
                                            MemoryReservation reservation);

  std::byte* data() const { return data_; }
  std::int64_t mapped_bytes() const { return mapped_bytes_; }

 private:
  void Reset();

  MemoryBudget* budget_ = nullptr;
  MemoryReservation reservation_;
  std::byte* data_ = nullptr;
  std::int64_t mapped_bytes_ = 0;
  std::int64_t locked_bytes_ = 0;
};

// Locks a mapping into memory if the limit allows; counts it in `budget`.
// Returns: the bytes locked, 0 where it is not allowed (warned about once).
std::int64_t LockOrWarn(void* begin, std::int64_t bytes, MemoryBudget* budget);

// Reserves address space (no memory) at a multiple of kHugePageBytes.
absl::StatusOr<std::byte*> ReserveAlignedAddresses(std::int64_t bytes);

}  // namespace stowage::storage
