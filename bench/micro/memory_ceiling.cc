#include "bench/micro/memory_ceiling.h"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stowage::bench {
namespace {

void PortableAdamAccesses(const CeilingRange& r, float factor) {
  for (std::int64_t i = 0; i < r.elems; ++i) {
    r.master[i] *= factor;
    r.moment1[i] *= factor;
    r.moment2[i] *= factor;
    r.copy[i] =
        r.gradient2 == nullptr
            ? r.gradient[i]
            : static_cast<std::uint16_t>(r.gradient[i] ^ r.gradient2[i]);
  }
}

void PortableReadModifyWrite(float* x, float factor, std::int64_t elems) {
  for (std::int64_t i = 0; i < elems; ++i) x[i] *= factor;
}

std::uint64_t PortableRead(const void* bytes_at, std::int64_t bytes) {
  std::uint64_t all = 0;
  for (std::int64_t i = 0; i < bytes; i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, static_cast<const char*>(bytes_at) + i, sizeof(word));
    all |= word;
  }
  return all;
}

constexpr MemoryCeiling kPortable = {"portable", &PortableAdamAccesses,
                                     &PortableReadModifyWrite, &PortableRead};

#if defined(__x86_64__)

// As far ahead as the Adam kernel prefetches, for a ceiling that is not beaten
// by its own kernel.
inline void PrefetchAhead(const float* x) {
  const auto address = reinterpret_cast<std::uintptr_t>(x) + 2048;
  __builtin_prefetch(reinterpret_cast<const void*>(address), 1);
  __builtin_prefetch(reinterpret_cast<const void*>(address + 64), 1);
}

#define STOWAGE_AVX2 __attribute__((target("avx2")))
#define STOWAGE_AVX512 __attribute__((target("avx512f")))

STOWAGE_AVX2 void Avx2Scale(float* x, __m256 factor) {
  for (int j = 0; j < 32; j += 8) {
    _mm256_storeu_ps(x + j, _mm256_mul_ps(_mm256_loadu_ps(x + j), factor));
  }
}

STOWAGE_AVX2 void Avx2AdamAccesses(const CeilingRange& r, float factor) {
  const __m256 f = _mm256_set1_ps(factor);
  for (std::int64_t i = 0; i < r.elems; i += 32) {
    PrefetchAhead(r.master + i);
    PrefetchAhead(r.moment1 + i);
    PrefetchAhead(r.moment2 + i);
    Avx2Scale(r.master + i, f);
    Avx2Scale(r.moment1 + i, f);
    Avx2Scale(r.moment2 + i, f);
    for (int j = 0; j < 32; j += 16) {
      __m256i g = _mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(r.gradient + i + j));
      if (r.gradient2 != nullptr) {
        g = _mm256_xor_si256(
            g, _mm256_loadu_si256(
                   reinterpret_cast<const __m256i*>(r.gradient2 + i + j)));
      }
      _mm256_stream_si256(reinterpret_cast<__m256i*>(r.copy + i + j), g);
    }
  }
  _mm_sfence();
}

STOWAGE_AVX2 void Avx2ReadModifyWrite(float* x, float factor,
                                      std::int64_t elems) {
  const __m256 f = _mm256_set1_ps(factor);
  for (std::int64_t i = 0; i < elems; i += 32) {
    PrefetchAhead(x + i);
    Avx2Scale(x + i, f);
  }
}

STOWAGE_AVX2 std::uint64_t Avx2Read(const void* bytes_at, std::int64_t bytes) {
  const auto* at = static_cast<const __m256i*>(bytes_at);
  __m256i a = _mm256_setzero_si256();
  __m256i b = a;
  for (std::int64_t i = 0; i < bytes / 32; i += 4) {
    a = _mm256_or_si256(a, _mm256_loadu_si256(at + i));
    b = _mm256_or_si256(b, _mm256_loadu_si256(at + i + 1));
    a = _mm256_or_si256(a, _mm256_loadu_si256(at + i + 2));
    b = _mm256_or_si256(b, _mm256_loadu_si256(at + i + 3));
  }
  a = _mm256_or_si256(a, b);
  return static_cast<std::uint64_t>(_mm256_extract_epi64(a, 0));
}

constexpr MemoryCeiling kAvx2 = {"avx2", &Avx2AdamAccesses,
                                 &Avx2ReadModifyWrite, &Avx2Read};

STOWAGE_AVX512 void Avx512Scale(float* x, __m512 factor) {
  for (int j = 0; j < 32; j += 16) {
    _mm512_storeu_ps(x + j, _mm512_mul_ps(_mm512_loadu_ps(x + j), factor));
  }
}

STOWAGE_AVX512 void Avx512AdamAccesses(const CeilingRange& r, float factor) {
  const __m512 f = _mm512_set1_ps(factor);
  for (std::int64_t i = 0; i < r.elems; i += 32) {
    PrefetchAhead(r.master + i);
    PrefetchAhead(r.moment1 + i);
    PrefetchAhead(r.moment2 + i);
    Avx512Scale(r.master + i, f);
    Avx512Scale(r.moment1 + i, f);
    Avx512Scale(r.moment2 + i, f);
    __m512i g = _mm512_loadu_si512(r.gradient + i);
    if (r.gradient2 != nullptr) {
      g = _mm512_xor_si512(g, _mm512_loadu_si512(r.gradient2 + i));
    }
    _mm512_stream_si512(reinterpret_cast<__m512i*>(r.copy + i), g);
  }
  _mm_sfence();
}

STOWAGE_AVX512 void Avx512ReadModifyWrite(float* x, float factor,
                                          std::int64_t elems) {
  const __m512 f = _mm512_set1_ps(factor);
  for (std::int64_t i = 0; i < elems; i += 32) {
    PrefetchAhead(x + i);
    Avx512Scale(x + i, f);
  }
}

STOWAGE_AVX512 std::uint64_t Avx512Read(const void* bytes_at,
                                        std::int64_t bytes) {
  const auto* at = static_cast<const char*>(bytes_at);
  __m512i a = _mm512_setzero_si512();
  __m512i b = a;
  for (std::int64_t i = 0; i < bytes; i += 128) {
    a = _mm512_or_si512(a, _mm512_loadu_si512(at + i));
    b = _mm512_or_si512(b, _mm512_loadu_si512(at + i + 64));
  }
  alignas(64) std::uint64_t words[8];
  _mm512_store_si512(words, _mm512_or_si512(a, b));
  return words[0];
}

constexpr MemoryCeiling kAvx512 = {"avx512", &Avx512AdamAccesses,
                                   &Avx512ReadModifyWrite, &Avx512Read};

#endif

}  // namespace

const MemoryCeiling& BestMemoryCeiling() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") != 0) return kAvx512;
  if (__builtin_cpu_supports("avx2") != 0) return kAvx2;
#endif
  return kPortable;
}

}  // namespace stowage::bench
