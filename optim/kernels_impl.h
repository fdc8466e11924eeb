// The algorithm of every kernel, once, over a small vector trait V; each
// kernels_<isa>.cc instantiates it with the trait of its instruction set, so
// that all sets do the same operations in the same order.
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
// AnyNan, CanonicalNan; ZeroLanes, AddSquares, StoreLanes; Fence.

#pragma once

#include <cstdint>
#include <cstring>

#include "optim/kernel_arguments.h"

namespace stowage::optim {
namespace {

using internal::kBf16;
using internal::kFp16;
using internal::kFp32;
using internal::RawGradient;
using internal::RawKernels;
using std::int64_t;

constexpr int kBlockElems = 32;
static_assert(kBlockElems % kSumLanes == 0);

// Below this a range's copy is likely read again from cache soon, and a fence
// per call is no longer small against the call.
constexpr int64_t kStreamElemsMin = 4096;

constexpr int64_t BytesOf(Dtype dtype) { return dtype == kFp32 ? 4 : 2; }

inline const void* At(const void* base, int64_t bytes) {
  return static_cast<const unsigned char*>(base) + bytes;
}
inline void* At(void* base, int64_t bytes) {
  return static_cast<unsigned char*>(base) + bytes;
}
inline bool IsLineAligned(const void* pointer) {
  return (reinterpret_cast<std::uintptr_t>(pointer) & 63U) == 0;
}

template <class V>
constexpr int kBlockVectors = kBlockElems / V::kWidth;

template <class V, Dtype kDtype>
inline typename V::F LoadAs(const void* base, int64_t index) {
  if constexpr (kDtype == kFp32) {
    return V::Load(static_cast<const float*>(base) + index);
  } else {
    return V::template Load16<kDtype>(static_cast<const std::uint16_t*>(base) +
                                      index);
  }
}

// Gradient of a block whose slots are summed before it is used, for slot counts
// that have no source of their own, and for tails. `count` <= kBlockElems
// elements from `index` on; the rest of `out` becomes zero.
template <class V, Dtype kDtype>
void FillFrom(const void* const* slots, int64_t slot_count, int64_t index,
              int64_t count, float* out) {
  typename V::F acc[kBlockVectors<V>];
  for (int k = 0; k < kBlockVectors<V>; ++k) acc[k] = V::Set1(0.0F);
  for (int64_t s = 0; s < slot_count; ++s) {
    alignas(64) unsigned char padded[kBlockElems * BytesOf(kDtype)];
    const void* from = At(slots[s], index * BytesOf(kDtype));
    if (count < kBlockElems) {
      std::memset(padded, 0, sizeof(padded));
      std::memcpy(padded, from,
                  static_cast<std::size_t>(count * BytesOf(kDtype)));
      from = padded;
    }
    for (int k = 0; k < kBlockVectors<V>; ++k) {
      const typename V::F x = LoadAs<V, kDtype>(from, k * V::kWidth);
      acc[k] = s == 0 ? x : V::Add(acc[k], x);
    }
  }
  for (int k = 0; k < kBlockVectors<V>; ++k)
    V::Store(out + k * V::kWidth, acc[k]);
}

template <class V>
void FillGradient(const RawGradient& gradient, int64_t index, int64_t count,
                  float* out) {
  if (gradient.sum != nullptr) {
    const void* const slot = gradient.sum;
    FillFrom<V, kFp32>(&slot, 1, index, count, out);
    return;
  }
  switch (gradient.dtype) {
    case kFp32:
      return FillFrom<V, kFp32>(gradient.slots, gradient.slot_count, index,
                                count, out);
    case kFp16:
      return FillFrom<V, kFp16>(gradient.slots, gradient.slot_count, index,
                                count, out);
    case kBf16:
      return FillFrom<V, kBf16>(gradient.slots, gradient.slot_count, index,
                                count, out);
  }
}

// Sources: Prepare(index) before the block at `index`, then Get(index, j) for
// the vector at element index + j of that block.
template <class V, Dtype kDtype>
struct OneSlot {
  const void* slot0;
  void Prepare(int64_t) {}
  typename V::F Get(int64_t index, int j) const {
    return LoadAs<V, kDtype>(slot0, index + j);
  }
  void Prefetch(int64_t index) const {
    __builtin_prefetch(At(slot0, index * BytesOf(kDtype)));
    if (kDtype == kFp32) __builtin_prefetch(At(slot0, index * 4 + 64));
  }
};

template <class V, Dtype kDtype>
struct TwoSlots {
  const void* slot0;
  const void* slot1;
  void Prepare(int64_t) {}
  typename V::F Get(int64_t index, int j) const {
    return V::Add(LoadAs<V, kDtype>(slot0, index + j),
                  LoadAs<V, kDtype>(slot1, index + j));
  }
  void Prefetch(int64_t index) const {
    OneSlot<V, kDtype>{slot0}.Prefetch(index);
    OneSlot<V, kDtype>{slot1}.Prefetch(index);
  }
};

template <class V>
struct AnySlots {
  RawGradient gradient;
  alignas(64) float block[kBlockElems];
  void Prepare(int64_t index) {
    FillGradient<V>(gradient, index, kBlockElems, block);
  }
  typename V::F Get(int64_t, int j) const { return V::Load(block + j); }
  void Prefetch(int64_t) const {}
};

template <class Fn, class Source>
inline void Apply(Fn& fn, Source&& source) {
  fn(source);
}

// Calls fn(source) with the source type that fits `gradient`.
template <class V, class Fn>
void WithSource(const RawGradient& gradient, Fn fn) {
  const void* const* slots = gradient.slots;
  if (gradient.sum != nullptr) {
    return Apply(fn, OneSlot<V, kFp32>{gradient.sum});
  }
  if (gradient.slot_count == 1) {
    switch (gradient.dtype) {
      case kFp32:
        return Apply(fn, OneSlot<V, kFp32>{slots[0]});
      case kFp16:
        return Apply(fn, OneSlot<V, kFp16>{slots[0]});
      case kBf16:
        return Apply(fn, OneSlot<V, kBf16>{slots[0]});
    }
  }
  if (gradient.slot_count == 2) {
    switch (gradient.dtype) {
      case kFp32:
        return Apply(fn, TwoSlots<V, kFp32>{slots[0], slots[1]});
      case kFp16:
        return Apply(fn, TwoSlots<V, kFp16>{slots[0], slots[1]});
      case kBf16:
        return Apply(fn, TwoSlots<V, kBf16>{slots[0], slots[1]});
    }
  }
  Apply(fn, AnySlots<V>{gradient, {}});
}

// --- sum of squares ---------------------------------------------------------

template <class V, class Source>
inline void AddBlockSquares(typename V::Lanes& lanes, const Source& source,
                            int64_t index) {
  for (int k = 0; k < kBlockVectors<V>; ++k) {
    const int j = k * V::kWidth;
    V::AddSquares(lanes, source.Get(index, j), j % kSumLanes);
  }
}

template <class V>
double SumOfSquares(const RawGradient& gradient, int64_t elems) {
  typename V::Lanes lanes = V::ZeroLanes();
  const int64_t whole = elems - elems % kBlockElems;
  WithSource<V>(gradient, [&](auto& source) {
    typename V::Lanes local = V::ZeroLanes();
    for (int64_t i = 0; i < whole; i += kBlockElems) {
      source.Prepare(i);
      AddBlockSquares<V>(local, source, i);
    }
    lanes = local;
  });
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
      for (int k = 0; k < kBlockVectors<V>; ++k)
        acc[k] = V::CanonicalNan(acc[k]);
    }
    for (int k = 0; k < kBlockVectors<V>; ++k)
      V::Store(sum + i + k * V::kWidth, acc[k]);
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
        decoupled_decay(V::Set1(c.decoupled_decay)),
        has_l2_decay(c.l2_decay != 0.0F) {}
  F gradient_factor, beta1, one_minus_beta1, beta2, one_minus_beta2;
  F eps, step_size, inv_sqrt_bias2, l2_decay, decoupled_decay;
  bool has_l2_decay;
};

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

// kCopy is the type of `copy`; kHasCopy false means that there is none.
template <class V, bool kHasCopy, Dtype kCopy, class Source>
inline void AdamBlock(const AdamVectors<V>& c, const Source& source,
                      int64_t index, float* p_block, float* m_block,
                      float* v_block, void* copy_block, bool stream) {
  using F = typename V::F;
  F updated[kBlockVectors<V>];
  for (int k = 0; k < kBlockVectors<V>; ++k) {
    const int j = k * V::kWidth;
    F g = V::Mul(source.Get(index, j), c.gradient_factor);
    const F p = V::Load(p_block + j);
    if (c.has_l2_decay) g = V::Add(g, V::Mul(c.l2_decay, p));
    const F m = V::Add(V::Mul(V::Load(m_block + j), c.beta1),
                       V::Mul(g, c.one_minus_beta1));
    const F v = V::Add(V::Mul(V::Load(v_block + j), c.beta2),
                       V::Mul(V::Mul(g, g), c.one_minus_beta2));
    const F denominator = V::Add(V::Mul(V::Sqrt(v), c.inv_sqrt_bias2), c.eps);
    const F u = V::Mul(c.step_size, V::Div(m, denominator));
    updated[k] = V::Sub(p, V::Add(V::Mul(c.decoupled_decay, p), u));
    V::Store(m_block + j, m);
    V::Store(v_block + j, v);
    V::Store(p_block + j, updated[k]);
  }
  if (__builtin_expect(V::AnyNan(updated), 0)) {
    CanonicalizeBlock<V>(p_block, m_block, v_block);
    for (int k = 0; k < kBlockVectors<V>; ++k) {
      updated[k] = V::Load(p_block + k * V::kWidth);
    }
  }
  if constexpr (kHasCopy) {
    V::template StoreBlock<kCopy, true>(copy_block, updated, stream);
  }
}

// Blocks ahead that software prefetch runs; 0 turns it off.
#ifndef STOWAGE_PREFETCH_BLOCKS
#define STOWAGE_PREFETCH_BLOCKS 0
#endif

template <class V, bool kHasCopy, Dtype kCopy>
void AdamAs(const AdamConstants& constants, const RawGradient& gradient,
            const AdamRange& range) {
  const AdamVectors<V> c(constants);
  const int64_t whole = range.elems - range.elems % kBlockElems;
  const bool stream =
      kHasCopy && range.elems >= kStreamElemsMin && IsLineAligned(range.copy);
  WithSource<V>(gradient, [&](auto& source) {
    float* const p = range.master;
    float* const m = range.moment1;
    float* const v = range.moment2;
    void* const copy = range.copy;
    for (int64_t i = 0; i < whole; i += kBlockElems) {
      if constexpr (STOWAGE_PREFETCH_BLOCKS > 0) {
        constexpr int64_t kAhead = STOWAGE_PREFETCH_BLOCKS * kBlockElems;
        for (int64_t line = 0; line < 2; ++line) {
          const int64_t at = (i + kAhead) * 4 + line * 64;
          __builtin_prefetch(At(p, at), 1);
          __builtin_prefetch(At(m, at), 1);
          __builtin_prefetch(At(v, at), 1);
        }
        source.Prefetch(i + kAhead);
      }
      source.Prepare(i);
      AdamBlock<V, kHasCopy, kCopy>(
          c, source, i, p + i, m + i, v + i,
          kHasCopy ? At(copy, i * BytesOf(kCopy)) : nullptr, stream);
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
  AdamBlock<V, kHasCopy, kCopy>(c, OneSlot<V, kFp32>{g}, 0, p, m, v, copy,
                                false);
  std::memcpy(range.master + whole, p, bytes);
  std::memcpy(range.moment1 + whole, m, bytes);
  std::memcpy(range.moment2 + whole, v, bytes);
  if constexpr (kHasCopy) {
    std::memcpy(At(range.copy, whole * BytesOf(kCopy)), copy,
                static_cast<std::size_t>(rest * BytesOf(kCopy)));
  }
}

template <class V>
void Adam(const AdamConstants& constants, const RawGradient& gradient,
          const AdamRange& range) {
  if (range.copy == nullptr) {
    return AdamAs<V, false, kFp32>(constants, gradient, range);
  }
  switch (range.copy_dtype) {
    case kFp32:
      return AdamAs<V, true, kFp32>(constants, gradient, range);
    case kFp16:
      return AdamAs<V, true, kFp16>(constants, gradient, range);
    case kBf16:
      return AdamAs<V, true, kBf16>(constants, gradient, range);
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

template <class V>
constexpr RawKernels MakeRawKernels() {
  return {&SumOfSquares<V>, &Accumulate<V>, &Adam<V>, &Convert<V>};
}

}  // namespace
}  // namespace stowage::optim
