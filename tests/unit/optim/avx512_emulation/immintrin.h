// The intrinsics that optim/simd_avx512.h uses, element by element in plain
// C++, so that the AVX-512 kernels' logic (lanes, packing, order, tails) is
// tested on processors without AVX-512 too. It stands in for the compiler's
// <immintrin.h> by its place in the include path of one test file, whence the
// names.
//
// Source: Intel Intrinsics Guide, the operation of each intrinsic; conversions
//   are those of common/dtype, which have tests of their own.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/dtype.h"

// NOLINTBEGIN: the names are the compiler's.
struct __m256i {
  unsigned char byte[32];
};
struct __m256 {
  float f[8];
};
struct __m256d {
  double d[4];
};
struct __m512i {
  std::uint32_t u[16];
};
struct __m512 {
  float f[16];
};
struct __m512d {
  double d[8];
};
using __mmask16 = std::uint16_t;

enum { _MM_FROUND_TO_NEAREST_INT = 0, _CMP_UNORD_Q = 3, _CMP_GE_OQ = 29 };

namespace avx512_emulation {

template <typename To, typename From>
To Cast(const From& from) {
  static_assert(sizeof(To) <= sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename V>
V LoadFrom(const void* from) {
  V x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

template <typename V>
void StoreAligned(void* to, const V& x) {
  if (reinterpret_cast<std::uintptr_t>(to) % sizeof(V) != 0) __builtin_trap();
  std::memcpy(to, &x, sizeof(x));
}

template <typename Fn>
__m512 EachFloat(const __m512& a, const __m512& b, Fn fn) {
  __m512 x;
  for (int i = 0; i < 16; ++i) x.f[i] = fn(a.f[i], b.f[i]);
  return x;
}

template <typename Fn>
__m512i EachWord(const __m512i& a, const __m512i& b, Fn fn) {
  __m512i x;
  for (int i = 0; i < 16; ++i) x.u[i] = fn(a.u[i], b.u[i]);
  return x;
}

template <typename Fn>
__m256i EachHalf(Fn fn) {
  std::uint16_t half[16];
  for (int i = 0; i < 16; ++i) half[i] = fn(i);
  return Cast<__m256i>(half);
}

inline std::uint16_t HalfAt(const __m256i& x, int i) {
  std::uint16_t half = 0;
  std::memcpy(&half, x.byte + 2 * i, sizeof(half));
  return half;
}

}  // namespace avx512_emulation

namespace emu = avx512_emulation;

inline __m256i _mm256_loadu_si256(const __m256i* from) {
  return emu::LoadFrom<__m256i>(from);
}
inline __m256 _mm256_castpd_ps(__m256d x) { return emu::Cast<__m256>(x); }

inline __m512 _mm512_loadu_ps(const void* from) {
  return emu::LoadFrom<__m512>(from);
}
inline void _mm512_storeu_ps(void* to, __m512 x) {
  std::memcpy(to, &x, sizeof(x));
}
inline void _mm512_storeu_pd(void* to, __m512d x) {
  std::memcpy(to, &x, sizeof(x));
}
inline void _mm512_storeu_si512(void* to, __m512i x) {
  std::memcpy(to, &x, sizeof(x));
}
inline void _mm512_stream_ps(void* to, __m512 x) { emu::StoreAligned(to, x); }
inline void _mm512_stream_si512(void* to, __m512i x) {
  emu::StoreAligned(to, x);
}
#define _mm_sfence() static_cast<void>(0)  // a function is Clang's own

inline __m512 _mm512_set1_ps(float value) {
  __m512 x;
  for (float& f : x.f) f = value;
  return x;
}
inline __m512i _mm512_set1_epi32(int value) {
  __m512i x;
  for (std::uint32_t& u : x.u) u = static_cast<std::uint32_t>(value);
  return x;
}
inline __m512d _mm512_setzero_pd() { return {}; }

inline __m512 _mm512_add_ps(__m512 a, __m512 b) {
  return emu::EachFloat(a, b, [](float x, float y) { return x + y; });
}
inline __m512 _mm512_sub_ps(__m512 a, __m512 b) {
  return emu::EachFloat(a, b, [](float x, float y) { return x - y; });
}
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) {
  return emu::EachFloat(a, b, [](float x, float y) { return x * y; });
}
inline __m512 _mm512_div_ps(__m512 a, __m512 b) {
  return emu::EachFloat(a, b, [](float x, float y) { return x / y; });
}
inline __m512 _mm512_max_ps(__m512 a, __m512 b) {
  return emu::EachFloat(a, b, [](float x, float y) { return x > y ? x : y; });
}
inline __m512 _mm512_sqrt_ps(__m512 a) {
  return emu::EachFloat(a, a, [](float x, float) { return std::sqrt(x); });
}

inline __m512i _mm512_and_si512(__m512i a, __m512i b) {
  return emu::EachWord(a, b, [](auto x, auto y) { return x & y; });
}
inline __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  return emu::EachWord(a, b, [](auto x, auto y) { return x + y; });
}
inline __m512i _mm512_slli_epi32(__m512i a, unsigned bits) {
  return emu::EachWord(a, a, [bits](auto x, auto) { return x << bits; });
}
inline __m512i _mm512_srli_epi32(__m512i a, unsigned bits) {
  return emu::EachWord(a, a, [bits](auto x, auto) { return x >> bits; });
}

inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate) {
  if (predicate != _CMP_UNORD_Q && predicate != _CMP_GE_OQ) __builtin_trap();
  unsigned mask = 0;
  for (unsigned i = 0; i < 16; ++i) {
    const bool holds = predicate == _CMP_GE_OQ
                           ? a.f[i] >= b.f[i]
                           : std::isnan(a.f[i]) || std::isnan(b.f[i]);
    if (holds) mask |= 1U << i;
  }
  return static_cast<__mmask16>(mask);
}
inline __m512i _mm512_mask_mov_epi32(__m512i source, __mmask16 mask,
                                     __m512i a) {
  for (unsigned i = 0; i < 16; ++i) {
    if ((mask >> i & 1U) == 0) a.u[i] = source.u[i];
  }
  return a;
}

inline __m512 _mm512_castsi512_ps(__m512i x) { return emu::Cast<__m512>(x); }
inline __m512i _mm512_castps_si512(__m512 x) { return emu::Cast<__m512i>(x); }
inline __m512d _mm512_castps_pd(__m512 x) { return emu::Cast<__m512d>(x); }
inline __m256 _mm512_castps512_ps256(__m512 x) { return emu::Cast<__m256>(x); }
inline __m512i _mm512_castsi256_si512(__m256i x) {
  __m512i wide;
  std::memset(&wide, 0xa5, sizeof(wide));  // the upper half is undefined
  std::memcpy(&wide, &x, sizeof(x));
  return wide;
}
inline __m256d _mm512_extractf64x4_pd(__m512d x, int half) {
  return emu::LoadFrom<__m256d>(x.d + 4 * half);
}
inline __m512i _mm512_inserti64x4(__m512i a, __m256i b, int half) {
  std::memcpy(a.u + 8 * half, &b, sizeof(b));
  return a;
}

inline __m512i _mm512_cvtepu16_epi32(__m256i x) {
  __m512i wide;
  for (int i = 0; i < 16; ++i) wide.u[i] = emu::HalfAt(x, i);
  return wide;
}
inline __m256i _mm512_cvtepi32_epi16(__m512i x) {
  return emu::EachHalf(
      [&](int i) { return static_cast<std::uint16_t>(x.u[i]); });
}
inline __m512 _mm512_cvtph_ps(__m256i x) {
  __m512 wide;
  for (int i = 0; i < 16; ++i)
    wide.f[i] = stowage::Fp16ToFloat(emu::HalfAt(x, i));
  return wide;
}
inline __m256i _mm512_cvtps_ph(__m512 x, int rounding) {
  if (rounding != _MM_FROUND_TO_NEAREST_INT) __builtin_trap();
  return emu::EachHalf([&](int i) { return stowage::FloatToFp16(x.f[i]); });
}
inline __m512d _mm512_cvtps_pd(__m256 x) {
  __m512d wide;
  for (int i = 0; i < 8; ++i) wide.d[i] = static_cast<double>(x.f[i]);
  return wide;
}
inline __m512d _mm512_fmadd_pd(__m512d a, __m512d b, __m512d c) {
  for (int i = 0; i < 8; ++i) c.d[i] = std::fma(a.d[i], b.d[i], c.d[i]);
  return c;
}
// NOLINTEND
