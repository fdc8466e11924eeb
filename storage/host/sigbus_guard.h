// Keeps the server alive when a peer truncates a shared file under it.
//
// Touching a page behind the new end of file raises SIGBUS. A process-wide
// handler looks the address up in a table of guarded ranges; if it is in one,
// it maps a page of zeroes over it (so that the instruction goes on), and marks
// the range broken. The job that owns the range checks that mark after its work
// and fails; other jobs never notice. Addresses outside go to the handler that
// was there before.
//
// Source: sigaction(2) on SIGBUS and si_addr; mmap(2) on MAP_FIXED.

#pragma once

#include <cstdint>

#include "absl/status/statusor.h"

namespace stowage::storage {

// A guarded address range; unguarded on destruction, which must come before the
// range is unmapped. Thread safety: broken() from any thread.
class SigbusGuard {
 public:
  // Installs the handler on first use.
  // Errors: kResourceExhausted if the table (kRangesMax) is full.
  static absl::StatusOr<SigbusGuard> Create(const void* begin,
                                            std::int64_t bytes);
  static constexpr int kRangesMax = 8192;

  SigbusGuard() = default;  // guards nothing
  SigbusGuard(SigbusGuard&& other) noexcept;
  SigbusGuard& operator=(SigbusGuard&& other) noexcept;
  SigbusGuard(const SigbusGuard&) = delete;
  SigbusGuard& operator=(const SigbusGuard&) = delete;
  ~SigbusGuard();

  // True once a page of the range was found missing.
  bool broken() const;

 private:
  explicit SigbusGuard(int index) : index_(index) {}
  void Reset();
  int index_ = -1;
};

}  // namespace stowage::storage
