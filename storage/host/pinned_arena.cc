#include "storage/host/pinned_arena.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/errno_status.h"
#include "common/log.h"
#include "common/status_macros.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace stowage::storage {
namespace {

constexpr std::int64_t kPageBytes = 4096;

// Faults every page in for writing; an old kernel without MADV_POPULATE_WRITE
// gets the same by touching.
absl::Status Populate(std::byte* data, std::int64_t bytes) {
  if (::madvise(data, static_cast<std::size_t>(bytes), MADV_POPULATE_WRITE) ==
      0) {
    return absl::OkStatus();
  }
  if (errno != EINVAL) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "pinned memory: the machine cannot give ", HumanBytes(bytes), " (",
        bytes, " bytes): ", ErrnoStatus("MADV_POPULATE_WRITE").message()));
  }
  for (std::int64_t at = 0; at < bytes; at += kPageBytes) {
    static_cast<volatile std::byte*>(data)[at] = std::byte{0};
  }
  return absl::OkStatus();
}

}  // namespace

std::int64_t LockOrWarn(void* begin, std::int64_t bytes, MemoryBudget* budget) {
  if (::mlock(begin, static_cast<std::size_t>(bytes)) == 0) {
    budget->AddLocked(bytes);
    return bytes;
  }
  const int error = errno;
  static std::atomic<bool> warned{false};
  if (!warned.exchange(true)) {
    rlimit limit{};
    ::getrlimit(RLIMIT_MEMLOCK, &limit);
    log::Warning(
        "memory_not_locked",
        {{"reason", std::string(ErrnoStatus("mlock", error).message())},
         {"limit", limit.rlim_cur == RLIM_INFINITY
                       ? std::string("unlimited")
                       : HumanBytes(static_cast<std::int64_t>(limit.rlim_cur))},
         {"wanted", HumanBytes(bytes)},
         {"effect", "state may be swapped out; nothing else changes"},
         {"raise",
          "RLIMIT_MEMLOCK (ulimit -l unlimited, systemd LimitMEMLOCK=infinity, "
          "docker --ulimit memlock=-1)"}});
  }
  return 0;
}

absl::StatusOr<std::byte*> ReserveAlignedAddresses(std::int64_t bytes) {
  const std::int64_t slack = kHugePageBytes;
  void* raw =
      ::mmap(nullptr, static_cast<std::size_t>(bytes + slack), PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("address space for ", bytes,
                     " bytes: ", ErrnoStatus("mmap").message()));
  }
  auto* begin = static_cast<std::byte*>(raw);
  const auto address = reinterpret_cast<std::uintptr_t>(raw);
  const auto head = static_cast<std::int64_t>(
      (kHugePageBytes -
       static_cast<std::int64_t>(address % std::uintptr_t{kHugePageBytes})) %
      kHugePageBytes);
  if (head > 0) ::munmap(begin, static_cast<std::size_t>(head));
  if (slack > head) {
    ::munmap(begin + head + bytes, static_cast<std::size_t>(slack - head));
  }
  return begin + head;
}

PinnedArena::PinnedArena(PinnedArena&& other) noexcept
    : budget_(std::exchange(other.budget_, nullptr)),
      reservation_(std::move(other.reservation_)),
      data_(std::exchange(other.data_, nullptr)),
      mapped_bytes_(std::exchange(other.mapped_bytes_, 0)),
      locked_bytes_(std::exchange(other.locked_bytes_, 0)) {}

PinnedArena& PinnedArena::operator=(PinnedArena&& other) noexcept {
  if (this != &other) {
    Reset();
    budget_ = std::exchange(other.budget_, nullptr);
    reservation_ = std::move(other.reservation_);
    data_ = std::exchange(other.data_, nullptr);
    mapped_bytes_ = std::exchange(other.mapped_bytes_, 0);
    locked_bytes_ = std::exchange(other.locked_bytes_, 0);
  }
  return *this;
}

PinnedArena::~PinnedArena() { Reset(); }

void PinnedArena::Reset() {
  if (data_ != nullptr) {
    ::munmap(data_, static_cast<std::size_t>(mapped_bytes_));
    budget_->AddLocked(-locked_bytes_);
  }
  data_ = nullptr;
  mapped_bytes_ = 0;
  locked_bytes_ = 0;
  reservation_.Release();
}

std::int64_t PinnedArena::MappedBytes(std::int64_t bytes) {
  return RoundUp(bytes, bytes >= kHugePageBytes ? kHugePageBytes : kPageBytes);
}

absl::StatusOr<PinnedArena> PinnedArena::Create(std::int64_t bytes,
                                                bool lock_memory,
                                                MemoryBudget* budget,
                                                MemoryReservation reservation) {
  const std::int64_t mapped = MappedBytes(bytes);
  STOWAGE_CHECK(reservation.bytes() == mapped);
  PinnedArena arena;
  arena.budget_ = budget;
  arena.reservation_ = std::move(reservation);
  if (mapped == 0) return arena;
  STOWAGE_ASSIGN_OR_RETURN(std::byte * address,
                           ReserveAlignedAddresses(mapped));
  void* data =
      ::mmap(address, static_cast<std::size_t>(mapped), PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (data == MAP_FAILED) {
    const absl::Status status = ErrnoStatus("mmap");
    ::munmap(address, static_cast<std::size_t>(mapped));
    return absl::ResourceExhaustedError(absl::StrCat(
        "pinned memory of ", mapped, " bytes: ", status.message()));
  }
  arena.data_ = static_cast<std::byte*>(data);
  arena.mapped_bytes_ = mapped;
  // A refusal only costs speed; the smaps figure in ServerInfo shows it.
  if (mapped >= kHugePageBytes) {
    ::madvise(data, static_cast<std::size_t>(mapped), MADV_HUGEPAGE);
  }
  STOWAGE_RETURN_IF_ERROR(Populate(arena.data_, mapped));
  if (lock_memory) arena.locked_bytes_ = LockOrWarn(data, mapped, budget);
  return arena;
}

}  // namespace stowage::storage
