// The vector trait of kernels_impl.h for AVX2, F16C and FMA: 8 fp32 a vector.
// Include it only in files compiled for these instructions.

#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "optim/kernel_arguments.h"

namespace stowage::optim {
namespace {

using internal::kFp16;
using internal::kFp32;

struct Avx2 {
  static constexpr int kWidth = 8;
  static constexpr int kVectors = 4;  // of a block
  using F = __m256;
  struct Lanes {
    __m256d d[kSumLanes / 4];
  };

  static F Load(const float* from) { return _mm256_loadu_ps(from); }
  static void Store(float* to, F x) { _mm256_storeu_ps(to, x); }
  static F Set1(float x) { return _mm256_set1_ps(x); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Sqrt(F a) { return _mm256_sqrt_ps(a); }

  // The larger of both; b if either is NaN.
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  // Bit k: element k is at least zero (-0 is, NaN is not).
  static std::uint32_t AtLeastZero(F x) {
    return static_cast<std::uint32_t>(
        _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ)));
  }
  // `x`, negated where bit k of `bits` is 0.
  static F WithSigns(F x, std::uint32_t bits) {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set =
        _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), each);
    const __m256i clear = _mm256_cmpeq_epi32(set, _mm256_setzero_si256());
    return _mm256_xor_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(clear, 31)));
  }

  template <Dtype kDtype>
  static F Load16(const std::uint16_t* from) {
    const __m128i bits =
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if constexpr (kDtype == kFp16) {
      return _mm256_cvtph_ps(bits);
    } else {
      return _mm256_castsi256_ps(
          _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
  }

  // bf16 in the low half of each 32 bits. kCanonical: a NaN is 0x7fc00000,
  // which the rounding itself turns into 0x7fc0.
  template <bool kCanonical>
  static __m256i RoundBf16(F x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd =
        _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)),
                         odd),
        16);
    if constexpr (kCanonical) return rounded;
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return _mm256_castps_si256(
        _mm256_blendv_ps(_mm256_castsi256_ps(rounded),
                         _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc0)), nan));
  }

  template <Dtype kDtype, bool kCanonical>
  static __m256i Pack16(F a, F b) {
    if constexpr (kDtype == kFp16) {
      return _mm256_inserti128_si256(
          _mm256_castsi128_si256(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)),
          _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT), 1);
    } else {
      // The pack works within 128-bit halves: put the quarters in order.
      return _mm256_permute4x64_epi64(
          _mm256_packus_epi32(RoundBf16<kCanonical>(a),
                              RoundBf16<kCanonical>(b)),
          _MM_SHUFFLE(3, 1, 2, 0));
    }
  }

  template <Dtype kDtype, bool kCanonical>
  static void StoreBlock(void* to, const F (&x)[kVectors], bool stream) {
    if constexpr (kDtype == kFp32) {
      auto* const out = static_cast<float*>(to);
      for (int k = 0; k < kVectors; ++k) {
        if (stream) {
          _mm256_stream_ps(out + std::ptrdiff_t{k} * kWidth, x[k]);
        } else {
          _mm256_storeu_ps(out + std::ptrdiff_t{k} * kWidth, x[k]);
        }
      }
    } else {
      auto* const out = static_cast<__m256i*>(to);
      const __m256i low = Pack16<kDtype, kCanonical>(x[0], x[1]);
      const __m256i high = Pack16<kDtype, kCanonical>(x[2], x[3]);
      if (stream) {
        _mm256_stream_si256(out, low);
        _mm256_stream_si256(out + 1, high);
      } else {
        _mm256_storeu_si256(out, low);
        _mm256_storeu_si256(out + 1, high);
      }
    }
  }
  static void Fence() { _mm_sfence(); }

  static bool AnyNan(const F (&x)[kVectors]) {
    const F low = _mm256_cmp_ps(x[0], x[1], _CMP_UNORD_Q);
    const F high = _mm256_cmp_ps(x[2], x[3], _CMP_UNORD_Q);
    return _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0;
  }
  static F CanonicalNan(F x) {
    return _mm256_blendv_ps(x,
                            _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)),
                            _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }

  static Lanes ZeroLanes() {
    const __m256d zero = _mm256_setzero_pd();
    return {{zero, zero, zero, zero}};
  }
  // Squares of fp32 values are exact in fp64, so the fused operation rounds
  // once where the separate ones do: at the addition.
  static void AddSquares(Lanes& lanes, F x, int lane) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    __m256d* const d = lanes.d + lane / 4;
    d[0] = _mm256_fmadd_pd(low, low, d[0]);
    d[1] = _mm256_fmadd_pd(high, high, d[1]);
  }

  // One bf16 slot without the conversion to fp64, which is what the general way
  // waits for. The 15 bits of a bf16 magnitude, put at the top of a double's
  // exponent and fraction, are its value times 2^-896 (denormals included);
  // the product with 2^896 is exact. What is not finite looks like a large
  // number there and is found by its bits instead.
  static constexpr bool kHasBf16Squares = true;
  class Bf16Squares {
   public:
    void Add16(const std::uint16_t* from) {
      const __m256i bits =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      largest_ = _mm256_max_epu16(largest_, _mm256_add_epi16(bits, bits));
      Add(0, _mm256_slli_epi64(bits, 45));
      Add(1, _mm256_slli_epi64(bits, 29));
      Add(2, _mm256_slli_epi64(bits, 13));
      Add(3, _mm256_srli_epi64(bits, 3));
    }

    Lanes ToLanes() const {
      double column[4][4];  // column[c][r] is lane 4 * r + c
      for (int c = 0; c < 4; ++c) _mm256_storeu_pd(column[c], sums_.d[c]);
      double lane[kSumLanes];
      for (int l = 0; l < kSumLanes; ++l) lane[l] = column[l % 4][l / 4];
      // Twice the bits, without the sign: infinity is 0xff00, NaN above.
      constexpr double kInfinity = __builtin_inf();
      std::uint16_t largest[16];
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(largest), largest_);
      for (const std::uint16_t x : largest) {
        if (x == 0xff00U) lane[0] = lane[0] + kInfinity;
        if (x > 0xff00U) lane[0] = __builtin_nan("");
      }
      Lanes lanes = ZeroLanes();
      for (int k = 0; k < kSumLanes / 4; ++k) {
        lanes.d[k] = _mm256_loadu_pd(lane + std::ptrdiff_t{k} * 4);
      }
      return lanes;
    }

   private:
    void Add(int c, __m256i shifted) {
      const __m256d scaled = _mm256_castsi256_pd(_mm256_and_si256(
          shifted, _mm256_set1_epi64x(std::int64_t{0x7fff} << 45)));
      const __m256d x = _mm256_mul_pd(scaled, _mm256_set1_pd(0x1p896));
      sums_.d[c] = _mm256_fmadd_pd(x, x, sums_.d[c]);
    }

    Lanes sums_ = ZeroLanes();
    __m256i largest_ = _mm256_setzero_si256();
  };

  static void StoreLanes(const Lanes& lanes, double* to) {
    for (int k = 0; k < kSumLanes / 4; ++k) {
      _mm256_storeu_pd(to + std::ptrdiff_t{k} * 4, lanes.d[k]);
    }
  }
};

}  // namespace
}  // namespace stowage::optim
