// Elements of any type as vectors of 8 fp32, and back, for AVX2 and F16C.
// Include it only in files compiled for these instructions.

#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "optim/simd_avx2.h"

namespace stowage::engine::internal {
namespace {

using optim::Avx2;
using optim::internal::kBf16;
using optim::internal::kFp16;
using optim::internal::kFp32;

template <Dtype kDtype>
constexpr std::int64_t kBytes = kDtype == kFp32 ? 4 : 2;

template <Dtype kDtype>
const unsigned char* At(const void* data, std::int64_t element) {
  return static_cast<const unsigned char*>(data) + element * kBytes<kDtype>;
}

template <Dtype kDtype>
__m256 Load8(const unsigned char* from) {
  if constexpr (kDtype == kFp32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(from));
  } else {
    return Avx2::Load16<kDtype>(reinterpret_cast<const std::uint16_t*>(from));
  }
}

// The first `count` of eight; zeros behind them, which are not read.
template <Dtype kDtype>
__m256 LoadSome(const unsigned char* from, std::int64_t count) {
  if (count >= 8) return Load8<kDtype>(from);
  alignas(32) unsigned char some[32] = {};
  for (std::int64_t i = 0; i < count * kBytes<kDtype>; ++i) some[i] = from[i];
  return Load8<kDtype>(some);
}

// Sixteen elements, or the first `count` of them.
template <Dtype kDtype>
void StoreSome(__m256 low, __m256 high, std::int64_t count, void* to) {
  alignas(32) unsigned char whole[16 * kBytes<kDtype>];
  void* const out = count >= 16 ? to : whole;
  if constexpr (kDtype == kFp32) {
    _mm256_storeu_ps(static_cast<float*>(out), low);
    _mm256_storeu_ps(static_cast<float*>(out) + 8, high);
  } else {
    _mm256_storeu_si256(static_cast<__m256i*>(out),
                        Avx2::Pack16<kDtype, false>(low, high));
  }
  for (std::int64_t i = 0; count < 16 && i < count * kBytes<kDtype>; ++i) {
    static_cast<unsigned char*>(to)[i] = whole[i];
  }
}

}  // namespace
}  // namespace stowage::engine::internal
