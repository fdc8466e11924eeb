// The server's limit on pinned memory, private and tmpfs together, counted
// exactly: what is mapped is what is reserved.
//
// Admission reserves before anything is allocated, so that a job which cannot
// fit is refused with the figure it needs and nothing is half made.

#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "common/mutex.h"

namespace stowage::storage {

class MemoryBudget;

// A reserved part of a budget, given back on destruction.
// Thread safety: externally synchronized. Ownership: refers to its budget,
// which must outlive it.
class MemoryReservation {
 public:
  MemoryReservation() = default;
  MemoryReservation(MemoryReservation&& other) noexcept
      : budget_(std::exchange(other.budget_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)) {}
  MemoryReservation& operator=(MemoryReservation&& other) noexcept {
    if (this != &other) {
      Release();
      budget_ = std::exchange(other.budget_, nullptr);
      bytes_ = std::exchange(other.bytes_, 0);
    }
    return *this;
  }
  MemoryReservation(const MemoryReservation&) = delete;
  MemoryReservation& operator=(const MemoryReservation&) = delete;
  ~MemoryReservation() { Release(); }

  std::int64_t bytes() const { return bytes_; }
  void Release();

  // Takes `bytes` of this reservation into one of its own.
  // Requires: 0 <= bytes <= bytes().
  MemoryReservation Split(std::int64_t bytes);

 private:
  friend class MemoryBudget;
  MemoryReservation(MemoryBudget* budget, std::int64_t bytes)
      : budget_(budget), bytes_(bytes) {}

  MemoryBudget* budget_ = nullptr;
  std::int64_t bytes_ = 0;
};

// Thread safety: thread-safe.
class MemoryBudget {
 public:
  explicit MemoryBudget(std::int64_t limit_bytes) : limit_bytes_(limit_bytes) {}
  MemoryBudget(const MemoryBudget&) = delete;
  MemoryBudget& operator=(const MemoryBudget&) = delete;
  ~MemoryBudget() = default;

  // `what` opens the refusal: `job "gpt": optimizer state 1.0 GiB, ...`.
  // Errors: kResourceExhausted with need, limit and what is in use.
  absl::StatusOr<MemoryReservation> Reserve(std::int64_t bytes,
                                            const std::string& what);

  std::int64_t limit_bytes() const { return limit_bytes_; }
  std::int64_t in_use_bytes() const;

  // What mlock holds; kept here because it is a figure of the whole server.
  void AddLocked(std::int64_t bytes) { locked_bytes_ += bytes; }
  std::int64_t locked_bytes() const { return locked_bytes_; }

 private:
  friend class MemoryReservation;
  void Return(std::int64_t bytes);

  const std::int64_t limit_bytes_;
  std::atomic<std::int64_t> locked_bytes_{0};
  mutable Mutex mutex_;
  std::int64_t in_use_bytes_ GUARDED_BY(mutex_) = 0;
};

}  // namespace stowage::storage
