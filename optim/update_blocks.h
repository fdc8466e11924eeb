// What the kernels that update parameters share: prefetching, streaming, and
// the one form of a NaN. Part of kernels_impl.h (see there for the unnamed
// namespace and the trait V).

#pragma once

#include <cstdint>

#include "optim/gradient_sources.h"
#include "optim/kernel_arguments.h"

namespace stowage::optim {
namespace {

// Below this a range's copy is likely read again from cache soon, and a fence
// per call is no longer small against the call.
inline constexpr int64_t kStreamElemsMin = 4096;

// Blocks by which Adam prefetches its arrays in place. The hardware's
// prefetchers alone reach 0.83 to 0.92 of the memory ceiling with so many
// streams, 8 to 24 blocks ahead 0.97 and more; prefetching the gradients too
// gains nothing (AVX2, 1 and 2 threads, AMD EPYC, 2026-11-23).
inline constexpr int64_t kPrefetchBlocks = 16;

inline void PrefetchBlock(const float* array, int64_t index) {
  PrefetchBytes<1>(array, index * 4);
  PrefetchBytes<1>(array, index * 4 + 64);
}

// Rewrites the NaNs of a block in their one form. A NaN in m or v makes p NaN,
// so looking at p is enough to know that this is due; it is not on any path
// that matters for speed.
template <class V>
__attribute__((noinline, cold)) void CanonicalizeBlock(float* p, float* m,
                                                       float* v) {
  for (int j = 0; j < kBlockElems; j += V::kWidth) {
    V::Store(p + j, V::CanonicalNan(V::Load(p + j)));
    V::Store(m + j, V::CanonicalNan(V::Load(m + j)));
    V::Store(v + j, V::CanonicalNan(V::Load(v + j)));
  }
}

}  // namespace
}  // namespace stowage::optim
