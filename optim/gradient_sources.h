// How the kernels read a gradient, block by block: one slot, two slots, or any
// number summed into a block buffer first; and the few helpers that all kernels
// share. Part of kernels_impl.h (see there for the unnamed namespace and the
// trait V); separate to keep both readable.

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
using std::int64_t;

inline constexpr int kBlockElems = 32;
static_assert(kBlockElems % kSumLanes == 0);

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

// May name an address past the array, which prefetching allows.
template <int kWrite = 0>
inline void PrefetchBytes(const void* base, int64_t bytes) {
  // Integer arithmetic, because a pointer past the array may not be formed.
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(base) +
                                 static_cast<std::uintptr_t>(bytes);
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  __builtin_prefetch(reinterpret_cast<const void*>(address), kWrite);
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
  for (int k = 0; k < kBlockVectors<V>; ++k) {
    V::Store(out + k * V::kWidth, acc[k]);
  }
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
template <class V, Dtype kDtypeIn>
struct OneSlot {
  static constexpr Dtype kDtype = kDtypeIn;
  static constexpr int kSlots = 1;
  const void* slot0;
  void Prepare(int64_t) {}
  typename V::F Get(int64_t index, int j) const {
    return LoadAs<V, kDtype>(slot0, index + j);
  }
  void Prefetch(int64_t index) const {
    PrefetchBytes(slot0, index * BytesOf(kDtype));
    if (kDtype == kFp32) PrefetchBytes(slot0, index * 4 + 64);
  }
};

template <class V, Dtype kDtypeIn>
struct TwoSlots {
  static constexpr Dtype kDtype = kDtypeIn;
  static constexpr int kSlots = 2;
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
  static constexpr Dtype kDtype = kFp32;  // of `block`
  static constexpr int kSlots = 0;        // known at run time only
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

// Calls fn(source) with the source type that fits `gradient`. One or two slots
// of type kDtype are read directly, and so is an fp32 sum; the rest goes
// through a block buffer.
template <class V, Dtype kDtype, class Fn>
void WithSource(const RawGradient& gradient, Fn fn) {
  const void* const* slots = gradient.slots;
  const int64_t slot_count = gradient.sum == nullptr && gradient.dtype == kDtype
                                 ? gradient.slot_count
                                 : 0;
  if (gradient.sum != nullptr) {
    Apply(fn, OneSlot<V, kFp32>{gradient.sum});
  } else if (slot_count == 1) {
    Apply(fn, OneSlot<V, kDtype>{slots[0]});
  } else if (slot_count == 2) {
    Apply(fn, TwoSlots<V, kDtype>{slots[0], slots[1]});
  } else {
    Apply(fn, AnySlots<V>{gradient, {}});
  }
}

}  // namespace
}  // namespace stowage::optim
