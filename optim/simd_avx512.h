// The vector trait of kernels_impl.h for AVX-512 F, BW and VL: 16 fp32 a
// vector. Include it only in files compiled for these instructions.
//
// AVX512_BF16's own conversion is not used: it flushes denormals.

#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "optim/kernel_arguments.h"

namespace stowage::optim {
namespace {

using internal::kFp16;
using internal::kFp32;

struct Avx512 {
  static constexpr int kWidth = 16;
  static constexpr int kVectors = 2;  // of a block
  using F = __m512;
  struct Lanes {
    __m512d d[kSumLanes / 8];
  };

  static F Load(const float* from) { return _mm512_loadu_ps(from); }
  static void Store(float* to, F x) { _mm512_storeu_ps(to, x); }
  static F Set1(float x) { return _mm512_set1_ps(x); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Sqrt(F a) { return _mm512_sqrt_ps(a); }

  // The larger of both; b if either is NaN.
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  // Bit k: element k is at least zero (-0 is, NaN is not).
  static std::uint32_t AtLeastZero(F x) {
    return _mm512_cmp_ps_mask(x, _mm512_set1_ps(0.0F), _CMP_GE_OQ);
  }
  // `x`, negated where bit k of `bits` is 0.
  static F WithSigns(F x, std::uint32_t bits) {
    const __m512i value = _mm512_castps_si512(x);
    const __m512i negated =
        _mm512_add_epi32(value, _mm512_slli_epi32(_mm512_set1_epi32(1), 31));
    return _mm512_castsi512_ps(
        _mm512_mask_mov_epi32(negated, static_cast<__mmask16>(bits), value));
  }

  template <Dtype kDtype>
  static F Load16(const std::uint16_t* from) {
    const __m256i bits =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    if constexpr (kDtype == kFp16) {
      return _mm512_cvtph_ps(bits);
    } else {
      return _mm512_castsi512_ps(
          _mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
  }

  // 16 values in 16 bits each. kCanonical: a NaN is 0x7fc00000, which the
  // rounding itself turns into 0x7fc0.
  template <Dtype kDtype, bool kCanonical>
  static __m256i Pack16(F x) {
    if constexpr (kDtype == kFp16) {
      return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
    } else {
      const __m512i bits = _mm512_castps_si512(x);
      const __m512i odd =
          _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
      __m512i rounded = _mm512_srli_epi32(
          _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)),
                           odd),
          16);
      if constexpr (!kCanonical) {
        rounded = _mm512_mask_mov_epi32(rounded,
                                        _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                                        _mm512_set1_epi32(0x7fc0));
      }
      return _mm512_cvtepi32_epi16(rounded);
    }
  }

  template <Dtype kDtype, bool kCanonical>
  static void StoreBlock(void* to, const F (&x)[kVectors], bool stream) {
    if constexpr (kDtype == kFp32) {
      auto* const out = static_cast<float*>(to);
      for (int k = 0; k < kVectors; ++k) {
        if (stream) {
          _mm512_stream_ps(out + std::ptrdiff_t{k} * kWidth, x[k]);
        } else {
          _mm512_storeu_ps(out + std::ptrdiff_t{k} * kWidth, x[k]);
        }
      }
    } else {
      const __m256i low = Pack16<kDtype, kCanonical>(x[0]);
      const __m256i high = Pack16<kDtype, kCanonical>(x[1]);
      const __m512i line =
          _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
      if (stream) {
        _mm512_stream_si512(static_cast<__m512i*>(to), line);
      } else {
        _mm512_storeu_si512(to, line);
      }
    }
  }
  static void Fence() { _mm_sfence(); }

  static bool AnyNan(const F (&x)[kVectors]) {
    return _mm512_cmp_ps_mask(x[0], x[1], _CMP_UNORD_Q) != 0;
  }
  static F CanonicalNan(F x) {
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(
        _mm512_castps_si512(x), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
        _mm512_set1_epi32(0x7fc00000)));
  }

  static constexpr bool kHasBf16Squares = false;
  static Lanes ZeroLanes() {
    return {{_mm512_setzero_pd(), _mm512_setzero_pd()}};
  }
  // Squares of fp32 values are exact in fp64, so the fused operation rounds
  // once where the separate ones do: at the addition.
  static void AddSquares(Lanes& lanes, F x, int /*lane*/) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    const __m512d high = _mm512_cvtps_pd(
        _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)));
    lanes.d[0] = _mm512_fmadd_pd(low, low, lanes.d[0]);
    lanes.d[1] = _mm512_fmadd_pd(high, high, lanes.d[1]);
  }
  static void StoreLanes(const Lanes& lanes, double* to) {
    _mm512_storeu_pd(to, lanes.d[0]);
    _mm512_storeu_pd(to + 8, lanes.d[1]);
  }
};

}  // namespace
}  // namespace stowage::optim
