#include "storage/host/memory_budget.h"

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/check.h"

namespace stowage::storage {

void MemoryReservation::Release() {
  if (budget_ != nullptr) budget_->Return(bytes_);
  budget_ = nullptr;
  bytes_ = 0;
}

MemoryReservation MemoryReservation::Split(std::int64_t bytes) {
  STOWAGE_CHECK(bytes >= 0 && bytes <= bytes_);
  bytes_ -= bytes;
  return MemoryReservation(budget_, bytes);
}

absl::StatusOr<MemoryReservation> MemoryBudget::Reserve(
    std::int64_t bytes, const std::string& what) {
  STOWAGE_CHECK(bytes >= 0);
  MutexLock lock(mutex_);
  // Subtraction, not addition: in_use + bytes may overflow, this cannot.
  if (bytes > limit_bytes_ - in_use_bytes_) {
    return absl::ResourceExhaustedError(
        absl::StrCat(what, ": needs ", HumanBytes(bytes), " (", bytes,
                     " bytes) of pinned memory; the server's limit is ",
                     HumanBytes(limit_bytes_), " (", limit_bytes_,
                     "), of which ", HumanBytes(in_use_bytes_), " (",
                     in_use_bytes_, ") are in use by other jobs"));
  }
  in_use_bytes_ += bytes;
  return MemoryReservation(this, bytes);
}

std::int64_t MemoryBudget::in_use_bytes() const {
  MutexLock lock(mutex_);
  return in_use_bytes_;
}

void MemoryBudget::Return(std::int64_t bytes) {
  MutexLock lock(mutex_);
  in_use_bytes_ -= bytes;
  STOWAGE_CHECK(in_use_bytes_ >= 0);
}

}  // namespace stowage::storage
