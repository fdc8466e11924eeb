// The vector trait of kernels_impl.h for any processor: 4 fp32 a vector in the
// vector extension that GCC and Clang share (SSE2 on x86-64, NEON on Arm).
// Its conversions are those of common/dtype, element by element.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/dtype.h"
#include "optim/kernel_arguments.h"

namespace stowage::optim {
namespace {

using internal::kFp16;
using internal::kFp32;

struct Portable {
  static constexpr int kWidth = 4;
  static constexpr int kVectors = 8;  // of a block
  using F = float __attribute__((vector_size(16)));
  using I = std::int32_t __attribute__((vector_size(16)));
  using D = double __attribute__((vector_size(16)));
  struct Lanes {
    D d[kSumLanes / 2];
  };

  static F Load(const float* from) {
    F x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  }
  static void Store(float* to, F x) { std::memcpy(to, &x, sizeof(x)); }
  static F Set1(float x) { return F{x, x, x, x}; }
  static F Add(F a, F b) { return a + b; }
  static F Sub(F a, F b) { return a - b; }
  static F Mul(F a, F b) { return a * b; }
  static F Div(F a, F b) { return a / b; }
  static F Sqrt(F a) {
    return F{std::sqrt(a[0]), std::sqrt(a[1]), std::sqrt(a[2]),
             std::sqrt(a[3])};
  }

  // The larger of both; b if either is NaN.
  static F Max(F a, F b) {
    F x;
    for (int k = 0; k < kWidth; ++k) x[k] = a[k] > b[k] ? a[k] : b[k];
    return x;
  }
  // Bit k: element k is at least zero (-0 is, NaN is not).
  static std::uint32_t AtLeastZero(F x) {
    std::uint32_t bits = 0;
    for (int k = 0; k < kWidth; ++k) {
      bits |= static_cast<std::uint32_t>(x[k] >= 0) << k;
    }
    return bits;
  }
  // `x`, negated where bit k of `bits` is 0.
  static F WithSigns(F x, std::uint32_t bits) {
    for (int k = 0; k < kWidth; ++k) {
      if ((bits >> k & 1U) == 0) x[k] = -x[k];
    }
    return x;
  }

  template <Dtype kDtype>
  static F Load16(const std::uint16_t* from) {
    std::uint16_t bits[kWidth];
    std::memcpy(bits, from, sizeof(bits));
    if constexpr (kDtype == kFp16) {
      return F{Fp16ToFloat(bits[0]), Fp16ToFloat(bits[1]), Fp16ToFloat(bits[2]),
               Fp16ToFloat(bits[3])};
    } else {
      return F{Bf16ToFloat(bits[0]), Bf16ToFloat(bits[1]), Bf16ToFloat(bits[2]),
               Bf16ToFloat(bits[3])};
    }
  }

  template <Dtype kDtype, bool kCanonical>
  static void StoreBlock(void* to, const F (&x)[kVectors], bool /*stream*/) {
    if constexpr (kDtype == kFp32) {
      std::memcpy(to, x, sizeof(x));
    } else {
      std::uint16_t out[kVectors * kWidth];
      for (int k = 0; k < kVectors * kWidth; ++k) {
        const float value = x[k / kWidth][k % kWidth];
        out[k] = kDtype == kFp16 ? FloatToFp16(value) : FloatToBf16(value);
      }
      std::memcpy(to, out, sizeof(out));
    }
  }
  static void Fence() {}

  // All bits set where the element is not NaN.
  // NOLINTNEXTLINE(misc-redundant-expression)
  static I Ordered(F x) { return x == x; }
  static bool AnyNan(const F (&x)[kVectors]) {
    I ordered = Ordered(x[0]);
    for (int k = 1; k < kVectors; ++k) ordered &= Ordered(x[k]);
    return (ordered[0] & ordered[1] & ordered[2] & ordered[3]) == 0;
  }
  static F CanonicalNan(F x) {
    const I ordered = Ordered(x);
    return reinterpret_cast<F>(
        (reinterpret_cast<I>(x) & ordered) |
        (I{0x7fc00000, 0x7fc00000, 0x7fc00000, 0x7fc00000} & ~ordered));
  }

  static constexpr bool kHasBf16Squares = false;
  static Lanes ZeroLanes() { return {}; }
  static void AddSquares(Lanes& lanes, F x, int lane) {
    const D low = {static_cast<double>(x[0]), static_cast<double>(x[1])};
    const D high = {static_cast<double>(x[2]), static_cast<double>(x[3])};
    D* const d = lanes.d + lane / 2;
    d[0] += low * low;
    d[1] += high * high;
  }
  static void StoreLanes(const Lanes& lanes, double* to) {
    std::memcpy(to, lanes.d, sizeof(lanes.d));
  }
};

}  // namespace
}  // namespace stowage::optim
