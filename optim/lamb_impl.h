// The algorithm of the Lamb kernels over the vector trait V; see kernels_impl.h
// for the unnamed namespace and the trait.
//
// Two passes over a tensor, because its trust ratio needs the norm of the whole
// update. The first only reads and keeps nothing but two sums; the second makes
// the same update again and writes. Bytes of an element with one bf16 slot:
// 14 + 28 = 42. Writing the moments in the first pass and reading them again in
// the second would be 22 + 18 = 40, keeping the update in a scratch array
// 26 + 14 = 40; both cost more on NVMe (48 against 36 bytes of disk traffic,
// since an extent is written whole) and leave a state of no step behind when
// they are broken off between the passes.

#pragma once

#include <cstdint>
#include <cstring>

#include "optim/gradient_sources.h"
#include "optim/kernel_arguments.h"
#include "optim/kernels_impl.h"
#include "optim/update_blocks.h"

namespace stowage::optim {
namespace {

template <class V>
struct LambVectors {
  using F = typename V::F;
  explicit LambVectors(const LambConstants& c)
      : gradient_factor(V::Set1(c.gradient_factor)),
        beta1(V::Set1(c.beta1)),
        one_minus_beta1(V::Set1(c.one_minus_beta1)),
        beta2(V::Set1(c.beta2)),
        one_minus_beta2(V::Set1(c.one_minus_beta2)),
        eps_inside(V::Set1(c.eps_inside)),
        eps_outside(V::Set1(c.eps_outside)),
        weight_decay(V::Set1(c.weight_decay)) {}
  F gradient_factor, beta1, one_minus_beta1, beta2, one_minus_beta2;
  F eps_inside, eps_outside, weight_decay;
};

// Vectors whose roots and divisions are started together (see AdamBlock).
template <class V>
constexpr int kLambStage = kBlockVectors<V> < 4 ? kBlockVectors<V> : 4;

// New moments, parameters as they are and update of kLambStage vectors.
template <class V>
struct LambPart {
  typename V::F m[kLambStage<V>];
  typename V::F v[kLambStage<V>];
  typename V::F p[kLambStage<V>];
  typename V::F u[kLambStage<V>];
};

template <class V, class Source>
inline void MakeLambPart(const LambVectors<V>& c, const Source& source,
                         int64_t index, int first, const AdamRange& block,
                         LambPart<V>* part) {
  using F = typename V::F;
  F denominator[kLambStage<V>];
  for (int k = 0; k < kLambStage<V>; ++k) {
    const int j = (first + k) * V::kWidth;
    const F g = V::Mul(source.Get(index, j), c.gradient_factor);
    part->m[k] = V::Add(V::Mul(V::Load(block.moment1 + j), c.beta1),
                        V::Mul(g, c.one_minus_beta1));
    part->v[k] = V::Add(V::Mul(V::Load(block.moment2 + j), c.beta2),
                        V::Mul(V::Mul(g, g), c.one_minus_beta2));
    denominator[k] = V::Sqrt(V::Add(part->v[k], c.eps_inside));
  }
  for (int k = 0; k < kLambStage<V>; ++k) {
    denominator[k] = V::Add(denominator[k], c.eps_outside);
  }
  for (int k = 0; k < kLambStage<V>; ++k) {
    part->u[k] = V::Div(part->m[k], denominator[k]);
  }
  for (int k = 0; k < kLambStage<V>; ++k) {
    part->p[k] = V::Load(block.master + (first + k) * V::kWidth);
    part->u[k] = V::Add(part->u[k], V::Mul(c.weight_decay, part->p[k]));
  }
}

// The arrays of `range` from element `index` on; the copy is left out.
inline AdamRange BlockAt(const AdamRange& range, int64_t index) {
  return {.elems = kBlockElems,
          .master = range.master + index,
          .moment1 = range.moment1 + index,
          .moment2 = range.moment2 + index};
}

inline void PrefetchState(const AdamRange& range, int64_t index) {
  PrefetchBlock(range.master, index);
  PrefetchBlock(range.moment1, index);
  PrefetchBlock(range.moment2, index);
}

// The last elements of a range, in blocks of their own, with zeros behind them.
struct LambTail {
  explicit LambTail(const AdamRange& range, int64_t whole)
      : bytes(static_cast<std::size_t>((range.elems - whole) * 4)) {
    std::memcpy(p, range.master + whole, bytes);
    std::memcpy(m, range.moment1 + whole, bytes);
    std::memcpy(v, range.moment2 + whole, bytes);
  }
  AdamRange block() {
    return {.elems = kBlockElems, .master = p, .moment1 = m, .moment2 = v};
  }
  std::size_t bytes;
  alignas(64) float p[kBlockElems] = {};
  alignas(64) float m[kBlockElems] = {};
  alignas(64) float v[kBlockElems] = {};
};

// --- norms ------------------------------------------------------------------

template <class V>
struct LambLanes {
  typename V::Lanes weight = V::ZeroLanes();
  typename V::Lanes update = V::ZeroLanes();
};

template <class V, class Source>
inline void AddLambSquares(const LambVectors<V>& c, const Source& source,
                           int64_t index, const AdamRange& block,
                           LambLanes<V>* lanes) {
  for (int first = 0; first < kBlockVectors<V>; first += kLambStage<V>) {
    LambPart<V> part;
    MakeLambPart<V>(c, source, index, first, block, &part);
    for (int k = 0; k < kLambStage<V>; ++k) {
      const int lane = (first + k) * V::kWidth % kSumLanes;
      V::AddSquares(lanes->weight, part.p[k], lane);
      V::AddSquares(lanes->update, part.u[k], lane);
    }
  }
}

// Of the `rest` elements of a tail; its update behind them (0 / 0 without eps)
// does not count.
template <class V>
inline void AddLambTailSquares(const LambVectors<V>& c, const float* g,
                               int64_t rest, LambTail* tail,
                               LambLanes<V>* lanes) {
  alignas(64) float u[kBlockElems];
  for (int first = 0; first < kBlockVectors<V>; first += kLambStage<V>) {
    LambPart<V> part;
    MakeLambPart<V>(c, OneSlot<V, kFp32>{g}, 0, first, tail->block(), &part);
    for (int k = 0; k < kLambStage<V>; ++k) {
      V::Store(u + (first + k) * V::kWidth, part.u[k]);
    }
  }
  for (int64_t j = rest; j < kBlockElems; ++j) u[j] = 0;
  AddBlockSquares<V>(lanes->weight, OneSlot<V, kFp32>{tail->p}, 0);
  AddBlockSquares<V>(lanes->update, OneSlot<V, kFp32>{u}, 0);
}

template <class V>
double SumOfLanes(const typename V::Lanes& lanes) {
  double lane[kSumLanes];
  V::StoreLanes(lanes, lane);
  double total = lane[0];
  for (int k = 1; k < kSumLanes; ++k) total += lane[k];
  return total == total ? total : __builtin_nan("");
}

template <class V, Dtype kDtype>
LambNorms LambNormsAs(const LambConstants& constants,
                      const RawGradient& gradient, const AdamRange& range) {
  const LambVectors<V> c(constants);
  LambLanes<V> lanes;
  const int64_t whole = range.elems - range.elems % kBlockElems;
  WithSource<V, kDtype>(gradient, [&](auto& source) {
    for (int64_t i = 0; i < whole; i += kBlockElems) {
      PrefetchState(range, i + kPrefetchBlocks * kBlockElems);
      source.Prepare(i);
      AddLambSquares<V>(c, source, i, BlockAt(range, i), &lanes);
    }
  });
  if (whole < range.elems) {
    alignas(64) float g[kBlockElems];
    FillGradient<V>(gradient, whole, range.elems - whole, g);
    LambTail tail(range, whole);
    AddLambTailSquares<V>(c, g, range.elems - whole, &tail, &lanes);
  }
  return {SumOfLanes<V>(lanes.weight), SumOfLanes<V>(lanes.update)};
}

template <class V>
LambNorms LambNormsOf(const LambConstants& constants,
                      const RawGradient& gradient, const AdamRange& range) {
  switch (gradient.dtype) {
    case kFp32:
      return LambNormsAs<V, kFp32>(constants, gradient, range);
    case kFp16:
      return LambNormsAs<V, kFp16>(constants, gradient, range);
    case kBf16:
      return LambNormsAs<V, kBf16>(constants, gradient, range);
  }
  return {};
}

// --- update -----------------------------------------------------------------

template <class V, bool kHasCopy, Dtype kCopy, class Source>
inline void LambBlock(const LambVectors<V>& c, typename V::F step,
                      const Source& source, int64_t index,
                      const AdamRange& block, bool stream) {
  typename V::F updated[kBlockVectors<V>];
  for (int first = 0; first < kBlockVectors<V>; first += kLambStage<V>) {
    LambPart<V> part;
    MakeLambPart<V>(c, source, index, first, block, &part);
    for (int k = 0; k < kLambStage<V>; ++k) {
      const int j = (first + k) * V::kWidth;
      updated[first + k] = V::Sub(part.p[k], V::Mul(step, part.u[k]));
      V::Store(block.moment1 + j, part.m[k]);
      V::Store(block.moment2 + j, part.v[k]);
      V::Store(block.master + j, updated[first + k]);
    }
  }
  if (__builtin_expect(V::AnyNan(updated), 0)) {
    CanonicalizeBlock<V>(block.master, block.moment1, block.moment2);
    for (int k = 0; k < kBlockVectors<V>; ++k) {
      updated[k] = V::Load(block.master + k * V::kWidth);
    }
  }
  if constexpr (kHasCopy) {
    V::template StoreBlock<kCopy, true>(block.copy, updated, stream);
  }
}

template <class V, bool kHasCopy, Dtype kCopy>
void LambAs(const LambConstants& constants, float step_in,
            const RawGradient& gradient, const AdamRange& range) {
  const LambVectors<V> c(constants);
  const typename V::F step = V::Set1(step_in);
  const int64_t whole = range.elems - range.elems % kBlockElems;
  const bool stream =
      kHasCopy && range.elems >= kStreamElemsMin && IsLineAligned(range.copy);
  // Gradients come in the type of the copy; others take the general way.
  WithSource<V, kCopy>(gradient, [&](auto& source) {
    for (int64_t i = 0; i < whole; i += kBlockElems) {
      PrefetchState(range, i + kPrefetchBlocks * kBlockElems);
      source.Prepare(i);
      AdamRange block = BlockAt(range, i);
      if constexpr (kHasCopy) block.copy = At(range.copy, i * BytesOf(kCopy));
      LambBlock<V, kHasCopy, kCopy>(c, step, source, i, block, stream);
    }
  });
  if (stream) V::Fence();
  if (whole == range.elems) return;

  alignas(64) float g[kBlockElems];
  alignas(64) unsigned char copy[kBlockElems * 4];
  FillGradient<V>(gradient, whole, range.elems - whole, g);
  LambTail tail(range, whole);
  AdamRange block = tail.block();
  block.copy = copy;
  LambBlock<V, kHasCopy, kCopy>(c, step, OneSlot<V, kFp32>{g}, 0, block, false);
  std::memcpy(range.master + whole, tail.p, tail.bytes);
  std::memcpy(range.moment1 + whole, tail.m, tail.bytes);
  std::memcpy(range.moment2 + whole, tail.v, tail.bytes);
  if constexpr (kHasCopy) {
    std::memcpy(
        At(range.copy, whole * BytesOf(kCopy)), copy,
        static_cast<std::size_t>((range.elems - whole) * BytesOf(kCopy)));
  }
}

template <class V>
void Lamb(const LambConstants& constants, float step,
          const RawGradient& gradient, const AdamRange& range) {
  if (range.copy == nullptr) {
    return LambAs<V, false, kFp32>(constants, step, gradient, range);
  }
  switch (range.copy_dtype) {
    case kFp32:
      return LambAs<V, true, kFp32>(constants, step, gradient, range);
    case kFp16:
      return LambAs<V, true, kFp16>(constants, step, gradient, range);
    case kBf16:
      return LambAs<V, true, kBf16>(constants, step, gradient, range);
  }
}

}  // namespace
}  // namespace stowage::optim
