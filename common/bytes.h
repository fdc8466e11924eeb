// Sizes: constants, rounding, and how people read and write them.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace stowage {

inline constexpr std::int64_t kKiB = 1024;
inline constexpr std::int64_t kMiB = 1024 * kKiB;
inline constexpr std::int64_t kGiB = 1024 * kMiB;

// Rounds `value` up to a multiple of `alignment`.
// Requires: value >= 0, alignment > 0.
constexpr std::int64_t RoundUp(std::int64_t value, std::int64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

constexpr std::int64_t CeilDiv(std::int64_t value, std::int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

// "512 B", "1.5 MiB", "20.0 GiB".
std::string HumanBytes(std::int64_t bytes);

// Reads "64MiB", "2GiB", "512", "1.5 GB" (decimal suffixes are powers of ten).
// Errors: kInvalidArgument for anything else, a negative or too large size.
absl::StatusOr<std::int64_t> ParseBytes(std::string_view text);

}  // namespace stowage
