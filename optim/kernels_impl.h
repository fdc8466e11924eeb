// The algorithms of landing and Adam, once, over a small vector trait V; each
// kernels_<isa>.cc instantiates them (raw_kernels.h) with the trait of its
// instruction set, so that all sets do the same operations in the same order.
//
// Everything here lives in an unnamed namespace: the files that include this
// are compiled with different -m flags, and a function shared between them by
// name would be whichever the linker met first. For the same reason nothing
// from the standard library but types and memcpy is used.
//
// Work goes in blocks of kBlockElems: one cache line of 16-bit values, two of
// fp32. A shorter tail is copied to a zero-padded block and goes the same way,
// so length and alignment never change a bit.
//
// A trait has: F (a vector of kWidth fp32), Lanes (kSumLanes fp64 partial
// sums); Load, Store, Set1, Add, Sub, Mul, Div, Sqrt; Load16<dtype>;
// StoreBlock<dtype, kCanonical> (a block of F converted, streamed or not);
// AnyNan, CanonicalNan; ZeroLanes, AddSquares, StoreLanes; Fence. Where
// kHasBf16Squares, Bf16Squares is a faster way to Lanes for one bf16 slot.

#pragma once

#include <cstdint>
#include <cstring>

#include "optim/gradient_sources.h"
#include "optim/kernel_arguments.h"
#include "optim/update_blocks.h"

namespace stowage::optim {
namespace {

// --- sum of squares ---------------------------------------------------------

// Prefetching 4 KiB of 16-bit slots ahead is worth 10 % (AVX2, 2026-11-23).
inline constexpr int64_t kNormPrefetchBlocks = 64;

template <class V, class Source>
inline void AddBlockSquares(typename V::Lanes& lanes, const Source& source,
                            int64_t index) {
  for (int k = 0; k < kBlockVectors<V>; ++k) {
    const int j = k * V::kWidth;
    V::AddSquares(lanes, source.Get(index, j), j % kSumLanes);
  }
}

// Squares of the first `whole` elements, a multiple of kBlockElems.
template <class V, class Source>
inline typename V::Lanes SumWholeBlocks(Source& source, int64_t whole) {
  constexpr int64_t kAhead = kNormPrefetchBlocks * kBlockElems;
  if constexpr (V::kHasBf16Squares && Source::kSlots == 1 &&
                Source::kDtype == kBf16) {
    const auto* const slot = static_cast<const std::uint16_t*>(source.slot0);
    typename V::Bf16Squares squares;
    for (int64_t i = 0; i < whole; i += kBlockElems) {
      source.Prefetch(i + kAhead);
      squares.Add16(slot + i);
      squares.Add16(slot + i + 16);
    }
    return squares.ToLanes();
  } else {
    typename V::Lanes lanes = V::ZeroLanes();
    for (int64_t i = 0; i < whole; i += kBlockElems) {
      source.Prefetch(i + kAhead);
      source.Prepare(i);
      AddBlockSquares<V>(lanes, source, i);
    }
    return lanes;
  }
}

template <class V>
double SumOfSquares(const RawGradient& gradient, int64_t elems) {
  typename V::Lanes lanes = V::ZeroLanes();
  const int64_t whole = elems - elems % kBlockElems;
  const auto sum_whole = [&](auto& source) {
    lanes = SumWholeBlocks<V>(source, whole);
  };
  switch (gradient.dtype) {
    case kFp32:
      WithSource<V, kFp32>(gradient, sum_whole);
      break;
    case kFp16:
      WithSource<V, kFp16>(gradient, sum_whole);
      break;
    case kBf16:
      WithSource<V, kBf16>(gradient, sum_whole);
      break;
  }
  if (whole < elems) {
    alignas(64) float block[kBlockElems];
    FillGradient<V>(gradient, whole, elems - whole, block);
    AddBlockSquares<V>(lanes, OneSlot<V, kFp32>{block}, 0);
  }
  double lane[kSumLanes];
  V::StoreLanes(lanes, lane);
  double total = lane[0];
  for (int k = 1; k < kSumLanes; ++k) total += lane[k];
  return total == total ? total : __builtin_nan("");
}

// --- accumulate -------------------------------------------------------------

// kSlots is the number of slots, 0 for any.
template <class V, Dtype kDtype, int kSlots>
void AccumulateBlocks(const RawGradient& slots, bool first, float* sum,
                      int64_t elems) {
  const int64_t slot_count = kSlots == 0 ? slots.slot_count : kSlots;
  for (int64_t i = 0; i < elems; i += kBlockElems) {
    typename V::F acc[kBlockVectors<V>];
    for (int k = 0; k < kBlockVectors<V>; ++k) {
      const int64_t at = i + k * V::kWidth;
      acc[k] = first ? LoadAs<V, kDtype>(slots.slots[0], at)
                     : V::Add(V::Load(sum + at),
                              LoadAs<V, kDtype>(slots.slots[0], at));
      for (int64_t s = 1; s < slot_count; ++s) {
        acc[k] = V::Add(acc[k], LoadAs<V, kDtype>(slots.slots[s], at));
      }
    }
    if (V::AnyNan(acc)) {
      for (int k = 0; k < kBlockVectors<V>; ++k) {
        acc[k] = V::CanonicalNan(acc[k]);
      }
    }
    for (int k = 0; k < kBlockVectors<V>; ++k) {
      V::Store(sum + i + k * V::kWidth, acc[k]);
    }
  }
}

template <class V, Dtype kDtype>
void AccumulateAs(const RawGradient& slots, bool first, float* sum,
                  int64_t elems) {
  const int64_t whole = elems - elems % kBlockElems;
  if (slots.slot_count == 1) {
    AccumulateBlocks<V, kDtype, 1>(slots, first, sum, whole);
  } else if (slots.slot_count == 2) {
    AccumulateBlocks<V, kDtype, 2>(slots, first, sum, whole);
  } else {
    AccumulateBlocks<V, kDtype, 0>(slots, first, sum, whole);
  }
  if (whole == elems) return;

  // Tail: one slot after the other on a padded block.
  const auto bytes = static_cast<std::size_t>((elems - whole) * 4);
  alignas(64) float block[kBlockElems] = {};
  alignas(64) float addend[kBlockElems];
  if (!first) std::memcpy(block, sum + whole, bytes);
  for (int64_t s = 0; s < slots.slot_count; ++s) {
    FillFrom<V, kDtype>(slots.slots + s, 1, whole, elems - whole, addend);
    const void* const slot = addend;
    AccumulateBlocks<V, kFp32, 1>({&slot, 1, kFp32, nullptr}, first && s == 0,
                                  block, kBlockElems);
  }
  std::memcpy(sum + whole, block, bytes);
}

template <class V>
void Accumulate(const RawGradient& slots, bool first, float* sum,
                int64_t elems) {
  if (slots.slot_count == 0) {
    if (first) std::memset(sum, 0, static_cast<std::size_t>(elems * 4));
    return;
  }
  switch (slots.dtype) {
    case kFp32:
      return AccumulateAs<V, kFp32>(slots, first, sum, elems);
    case kFp16:
      return AccumulateAs<V, kFp16>(slots, first, sum, elems);
    case kBf16:
      return AccumulateAs<V, kBf16>(slots, first, sum, elems);
  }
}

// --- Adam -------------------------------------------------------------------

template <class V>
struct AdamVectors {
  using F = typename V::F;
  explicit AdamVectors(const AdamConstants& c)
      : gradient_factor(V::Set1(c.gradient_factor)),
        beta1(V::Set1(c.beta1)),
        one_minus_beta1(V::Set1(c.one_minus_beta1)),
        beta2(V::Set1(c.beta2)),
        one_minus_beta2(V::Set1(c.one_minus_beta2)),
        eps(V::Set1(c.eps)),
        step_size(V::Set1(c.step_size)),
        inv_sqrt_bias2(V::Set1(c.inv_sqrt_bias2)),
        l2_decay(V::Set1(c.l2_decay)),
        decoupled_decay(V::Set1(c.decoupled_decay)) {}
  F gradient_factor, beta1, one_minus_beta1, beta2, one_minus_beta2;
  F eps, step_size, inv_sqrt_bias2, l2_decay, decoupled_decay;
};

// What is fixed for a whole call: whether l2_decay is there, whether a copy is
// written, and in which type.
template <bool kL2In, bool kHasCopyIn, Dtype kCopyIn>
struct AdamCase {
  static constexpr bool kL2 = kL2In;
  static constexpr bool kHasCopy = kHasCopyIn;
  static constexpr Dtype kCopy = kCopyIn;
};

// Square roots, then divisions, of kStage vectors together: the processor
// overlaps them better than one vector's chain after the other (3-5 %;
// 2026-11-23).
// NOLINTNEXTLINE(readability-function-size): eight scalars, all inlined.
template <class V, class Case, class Source>
inline void AdamBlock(const AdamVectors<V>& c, const Source& source,
                      int64_t index, float* p_block, float* m_block,
                      float* v_block, void* copy_block, bool stream) {
  using F = typename V::F;
  constexpr int kStage = kBlockVectors<V> < 4 ? kBlockVectors<V> : 4;
  F updated[kBlockVectors<V>];
  for (int first = 0; first < kBlockVectors<V>; first += kStage) {
    F m[kStage];
    F denominator[kStage];
    for (int k = 0; k < kStage; ++k) {
      const int j = (first + k) * V::kWidth;
      F g = V::Mul(source.Get(index, j), c.gradient_factor);
      if constexpr (Case::kL2) {
        g = V::Add(g, V::Mul(c.l2_decay, V::Load(p_block + j)));
      }
      m[k] = V::Add(V::Mul(V::Load(m_block + j), c.beta1),
                    V::Mul(g, c.one_minus_beta1));
      const F v = V::Add(V::Mul(V::Load(v_block + j), c.beta2),
                         V::Mul(V::Mul(g, g), c.one_minus_beta2));
      V::Store(m_block + j, m[k]);
      V::Store(v_block + j, v);
      denominator[k] = V::Sqrt(v);
    }
    for (int k = 0; k < kStage; ++k) {
      denominator[k] = V::Add(V::Mul(denominator[k], c.inv_sqrt_bias2), c.eps);
    }
    for (int k = 0; k < kStage; ++k) m[k] = V::Div(m[k], denominator[k]);
    for (int k = 0; k < kStage; ++k) {
      const int j = (first + k) * V::kWidth;
      const F p = V::Load(p_block + j);
      updated[first + k] = V::Sub(
          p, V::Add(V::Mul(c.decoupled_decay, p), V::Mul(c.step_size, m[k])));
      V::Store(p_block + j, updated[first + k]);
    }
  }
  if (__builtin_expect(V::AnyNan(updated), 0)) {
    CanonicalizeBlock<V>(p_block, m_block, v_block);
    for (int k = 0; k < kBlockVectors<V>; ++k) {
      updated[k] = V::Load(p_block + k * V::kWidth);
    }
  }
  if constexpr (Case::kHasCopy) {
    V::template StoreBlock<Case::kCopy, true>(copy_block, updated, stream);
  }
}

template <class V, class Case>
void AdamAs(const AdamConstants& constants, const RawGradient& gradient,
            const AdamRange& range) {
  const AdamVectors<V> c(constants);
  const int64_t whole = range.elems - range.elems % kBlockElems;
  const bool stream = Case::kHasCopy && !range.copy_stays_cached &&
                      range.elems >= kStreamElemsMin &&
                      IsLineAligned(range.copy);
  // Gradients come in the type of the copy; others take the general way.
  WithSource<V, Case::kCopy>(gradient, [&](auto& source) {
    float* const p = range.master;
    float* const m = range.moment1;
    float* const v = range.moment2;
    void* const copy = range.copy;
    for (int64_t i = 0; i < whole; i += kBlockElems) {
      constexpr int64_t kAhead = kPrefetchBlocks * kBlockElems;
      PrefetchBlock(p, i + kAhead);
      PrefetchBlock(m, i + kAhead);
      PrefetchBlock(v, i + kAhead);
      source.Prepare(i);
      AdamBlock<V, Case>(
          c, source, i, p + i, m + i, v + i,
          Case::kHasCopy ? At(copy, i * BytesOf(Case::kCopy)) : nullptr,
          stream);
    }
  });
  if (stream) V::Fence();
  if (whole == range.elems) return;

  const int64_t rest = range.elems - whole;
  const auto bytes = static_cast<std::size_t>(rest * 4);
  alignas(64) float g[kBlockElems];
  alignas(64) float p[kBlockElems] = {};
  alignas(64) float m[kBlockElems] = {};
  alignas(64) float v[kBlockElems] = {};
  alignas(64) unsigned char copy[kBlockElems * 4];
  FillGradient<V>(gradient, whole, rest, g);
  std::memcpy(p, range.master + whole, bytes);
  std::memcpy(m, range.moment1 + whole, bytes);
  std::memcpy(v, range.moment2 + whole, bytes);
  AdamBlock<V, Case>(c, OneSlot<V, kFp32>{g}, 0, p, m, v, copy, false);
  std::memcpy(range.master + whole, p, bytes);
  std::memcpy(range.moment1 + whole, m, bytes);
  std::memcpy(range.moment2 + whole, v, bytes);
  if constexpr (Case::kHasCopy) {
    std::memcpy(At(range.copy, whole * BytesOf(Case::kCopy)), copy,
                static_cast<std::size_t>(rest * BytesOf(Case::kCopy)));
  }
}

template <class V, bool kHasCopy, Dtype kCopy>
void AdamWithCopy(const AdamConstants& constants, const RawGradient& gradient,
                  const AdamRange& range) {
  if (constants.l2_decay != 0.0F) {
    AdamAs<V, AdamCase<true, kHasCopy, kCopy>>(constants, gradient, range);
  } else {
    AdamAs<V, AdamCase<false, kHasCopy, kCopy>>(constants, gradient, range);
  }
}

template <class V>
void Adam(const AdamConstants& constants, const RawGradient& gradient,
          const AdamRange& range) {
  if (range.copy == nullptr) {
    return AdamWithCopy<V, false, kFp32>(constants, gradient, range);
  }
  switch (range.copy_dtype) {
    case kFp32:
      return AdamWithCopy<V, true, kFp32>(constants, gradient, range);
    case kFp16:
      return AdamWithCopy<V, true, kFp16>(constants, gradient, range);
    case kBf16:
      return AdamWithCopy<V, true, kBf16>(constants, gradient, range);
  }
}

// --- convert ----------------------------------------------------------------

template <class V, Dtype kDtype>
void ConvertAs(const float* source, void* target, int64_t elems) {
  const int64_t whole = elems - elems % kBlockElems;
  const bool stream = elems >= kStreamElemsMin && IsLineAligned(target);
  typename V::F block[kBlockVectors<V>];
  for (int64_t i = 0; i < whole; i += kBlockElems) {
    for (int k = 0; k < kBlockVectors<V>; ++k) {
      block[k] = V::Load(source + i + k * V::kWidth);
    }
    V::template StoreBlock<kDtype, false>(At(target, i * BytesOf(kDtype)),
                                          block, stream);
  }
  if (stream) V::Fence();
  if (whole == elems) return;
  alignas(64) float padded[kBlockElems] = {};
  alignas(64) unsigned char out[kBlockElems * 2];
  std::memcpy(padded, source + whole,
              static_cast<std::size_t>((elems - whole) * 4));
  for (int k = 0; k < kBlockVectors<V>; ++k) {
    block[k] = V::Load(padded + k * V::kWidth);
  }
  V::template StoreBlock<kDtype, false>(out, block, false);
  std::memcpy(At(target, whole * BytesOf(kDtype)), out,
              static_cast<std::size_t>((elems - whole) * BytesOf(kDtype)));
}

template <class V>
void Convert(const float* source, Dtype dtype, void* target, int64_t elems) {
  switch (dtype) {
    case kFp32:
      std::memcpy(target, source, static_cast<std::size_t>(elems * 4));
      return;
    case kFp16:
      return ConvertAs<V, kFp16>(source, target, elems);
    case kBf16:
      return ConvertAs<V, kBf16>(source, target, elems);
  }
}

}  // namespace
}  // namespace stowage::optim
