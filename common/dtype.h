// Element types of parameters and gradients, and scalar conversions between
// them that round as torch does: to nearest, ties to even; NaN stays NaN
// (0x7fc0 in bf16); denormals are kept; fp16 overflows to infinity.

#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"

namespace stowage {

enum class Dtype : std::uint8_t { kFp32 = 1, kFp16 = 2, kBf16 = 3 };

constexpr std::int64_t DtypeBytes(Dtype dtype) {
  return dtype == Dtype::kFp32 ? 4 : 2;
}

// "fp32", "fp16", "bf16".
std::string_view DtypeName(Dtype dtype);
absl::StatusOr<Dtype> ParseDtype(std::string_view name);

inline float Bf16ToFloat(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint16_t FloatToBf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return 0x7fc0U;
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >>
                                    16);
}

float Fp16ToFloat(std::uint16_t bits);
std::uint16_t FloatToFp16(float value);

}  // namespace stowage
