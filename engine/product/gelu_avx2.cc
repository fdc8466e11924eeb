#include <immintrin.h>

#include "engine/product/gelu_kernels.h"
#include "engine/product/vectors_avx2.h"

namespace stowage::engine::internal {
namespace {

// Beyond them exp(x) + 1 counts as infinite, or is 1.
constexpr float kLargest = 88;
constexpr float kSmallest = -87.3F;

// exp between the two, and at them beyond. A power of two and a polynomial on
// [-ln 2 / 2, ln 2 / 2] (Taylor's to the seventh degree: 2e-8). NaN stays.
__m256 Exp(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(kSmallest),
                    _mm256_min_ps(_mm256_set1_ps(kLargest), x));
  const __m256 n =
      _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504F)),
                      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // ln 2 in two parts: the first has few bits, so that n times it is exact.
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375F), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4F), r);
  __m256 p = _mm256_set1_ps(1.0F / 5040);
  constexpr float kTaylor[] = {1.0F / 720, 1.0F / 120, 1.0F / 24, 1.0F / 6,
                               0.5F,       1.0F,       1.0F};
#pragma GCC unroll 7
  for (const float c : kTaylor) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
  const __m256i exponent = _mm256_slli_epi32(
      _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
}

constexpr float kScale = 0.797884561F;  // sqrt(2 / pi)
constexpr float kCube = 0.044715F;

struct Sigmoid {
  __m256 value;  // 1 / (1 + exp(-2 u))
  __m256 square;
};

Sigmoid SigmoidOf(__m256 x) {
  const __m256 square = _mm256_mul_ps(x, x);
  // -2 u
  const __m256 argument = _mm256_mul_ps(
      x, _mm256_fmadd_ps(square, _mm256_set1_ps(-2 * kScale * kCube),
                         _mm256_set1_ps(-2 * kScale)));
  const __m256 one = _mm256_set1_ps(1);
  const __m256 value = _mm256_div_ps(one, _mm256_add_ps(one, Exp(argument)));
  const __m256 none =
      _mm256_cmp_ps(argument, _mm256_set1_ps(kLargest), _CMP_GE_OQ);
  return {_mm256_andnot_ps(none, value), square};
}

__m256 Gelu(__m256 x) { return _mm256_mul_ps(x, SigmoidOf(x).value); }

// s + x s (1 - s) 2 u'. From 20 on it is 1 and below -20 it is 0, while powers
// of x may be infinite.
__m256 GeluSlope(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-20), _mm256_min_ps(_mm256_set1_ps(20), x));
  const Sigmoid s = SigmoidOf(x);
  const __m256 rise = _mm256_fmadd_ps(
      s.square, _mm256_set1_ps(6 * kScale * kCube), _mm256_set1_ps(2 * kScale));
  const __m256 bell = _mm256_fnmadd_ps(s.value, s.value, s.value);
  return _mm256_fmadd_ps(_mm256_mul_ps(x, bell), rise, s.value);
}

template <Dtype kDtype>
void Forward(const void* x, std::int64_t count, void* out) {
  for (std::int64_t i = 0; i < count; i += 16) {
    const unsigned char* const from = At<kDtype>(x, i);
    StoreSome<kDtype>(
        Gelu(LoadSome<kDtype>(from, count - i)),
        Gelu(LoadSome<kDtype>(from + 8 * kBytes<kDtype>, count - i - 8)),
        count - i, static_cast<unsigned char*>(out) + i * kBytes<kDtype>);
  }
}

template <Dtype kDtype>
void Backward(const void* gradient, const void* x, std::int64_t count,
              void* out) {
  const auto eight = [&](std::int64_t i) {
    return _mm256_mul_ps(
        LoadSome<kDtype>(At<kDtype>(gradient, i), count - i),
        GeluSlope(LoadSome<kDtype>(At<kDtype>(x, i), count - i)));
  };
  for (std::int64_t i = 0; i < count; i += 16) {
    StoreSome<kDtype>(eight(i), eight(i + 8), count - i,
                      static_cast<unsigned char*>(out) + i * kBytes<kDtype>);
  }
}

}  // namespace

void Avx2TanhGelu(const void* x, Dtype dtype, std::int64_t count, void* out) {
  const auto gelu = dtype == kBf16   ? Forward<kBf16>
                    : dtype == kFp16 ? Forward<kFp16>
                                     : Forward<kFp32>;
  gelu(x, count, out);
}

void Avx2TanhGeluBackward(const void* gradient, const void* x, Dtype dtype,
                          std::int64_t count, void* out) {
  const auto backward = dtype == kBf16   ? Backward<kBf16>
                        : dtype == kFp16 ? Backward<kFp16>
                                         : Backward<kFp32>;
  backward(gradient, x, count, out);
}

}  // namespace stowage::engine::internal
