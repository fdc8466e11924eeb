// How much memory this server may pin if nobody says: 80 % of what is free.
//
// Source: proc(5), "/proc/meminfo", MemAvailable; kernel documentation,
// "Control Group v2", memory.max and memory.current.

#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace stowage {

struct MemoryView {
  std::int64_t available_bytes = 0;  // MemAvailable, or less: the cgroup's rest
  std::int64_t total_bytes = 0;      // of the machine, or the cgroup's limit
};

// `root` is "/" but in tests. Errors: kUnavailable without /proc/meminfo.
absl::StatusOr<MemoryView> ReadMemoryView(const std::string& root = "/");

constexpr std::int64_t DefaultMemoryLimit(const MemoryView& view) {
  return view.available_bytes / 10 * 8;
}

}  // namespace stowage
