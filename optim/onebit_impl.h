// The algorithms of the 1-bit optimizers' kernels over the vector trait V; see
// kernels_impl.h for the unnamed namespace and the trait.
//
// Signs are packed 8 a byte, the first element in the most significant bit.

#pragma once

#include <cstdint>
#include <cstring>

#include "optim/gradient_sources.h"
#include "optim/kernel_arguments.h"
#include "optim/lamb_impl.h"
#include "optim/update_blocks.h"

namespace stowage::optim {
namespace {

inline constexpr int64_t kBlockBytes = kBlockElems / 8;

// The bits of each byte in the opposite order.
inline std::uint32_t MirrorBytes(std::uint32_t x) {
  x = (x >> 4 & 0x0f0f0f0fU) | (x & 0x0f0f0f0fU) << 4;
  x = (x >> 2 & 0x33333333U) | (x & 0x33333333U) << 2;
  return (x >> 1 & 0x55555555U) | (x & 0x55555555U) << 1;
}

// Bit i of a block's word is its element i.
inline std::uint32_t LoadSigns(const std::uint8_t* bits) {
  return MirrorBytes(static_cast<std::uint32_t>(bits[0]) |
                     static_cast<std::uint32_t>(bits[1]) << 8 |
                     static_cast<std::uint32_t>(bits[2]) << 16 |
                     static_cast<std::uint32_t>(bits[3]) << 24);
}
inline void StoreSigns(std::uint32_t word, std::uint8_t* bits) {
  const std::uint32_t mirrored = MirrorBytes(word);
  bits[0] = static_cast<std::uint8_t>(mirrored);
  bits[1] = static_cast<std::uint8_t>(mirrored >> 8);
  bits[2] = static_cast<std::uint8_t>(mirrored >> 16);
  bits[3] = static_cast<std::uint8_t>(mirrored >> 24);
}

// Signs of a range's last elements, behind them zeros.
inline std::uint32_t LoadTailSigns(const std::uint8_t* bits, int64_t rest) {
  std::uint8_t padded[kBlockBytes] = {};
  std::memcpy(padded, bits, static_cast<std::size_t>((rest + 7) / 8));
  return LoadSigns(padded);
}

// --- worker -----------------------------------------------------------------

template <class V, class Source>
inline void CompensateBlock(const OneBitMomentum& c, const Source& source,
                            int64_t index, const float* m, float* error,
                            typename V::Lanes* lanes) {
  for (int k = 0; k < kBlockVectors<V>; ++k) {
    const int j = k * V::kWidth;
    const typename V::F g =
        V::Mul(source.Get(index, j), V::Set1(c.gradient_factor));
    const typename V::F moment =
        V::Add(V::Mul(V::Load(m + j), V::Set1(c.beta1)),
               V::Mul(g, V::Set1(c.one_minus_beta1)));
    const typename V::F b =
        V::Add(V::Mul(moment, V::Set1(c.scaling)), V::Load(error + j));
    V::Store(error + j, b);
    V::AddSquares(*lanes, b, j % kSumLanes);
  }
}

template <class V, Dtype kDtype>
double CompensateAs(const OneBitMomentum& c, const RawGradient& gradient,
                    const float* m, float* error, int64_t elems) {
  typename V::Lanes lanes = V::ZeroLanes();
  const int64_t whole = elems - elems % kBlockElems;
  WithSource<V, kDtype>(gradient, [&](auto& source) {
    for (int64_t i = 0; i < whole; i += kBlockElems) {
      source.Prepare(i);
      CompensateBlock<V>(c, source, i, m + i, error + i, &lanes);
    }
  });
  if (whole < elems) {
    const auto bytes = static_cast<std::size_t>((elems - whole) * 4);
    alignas(64) float g[kBlockElems];
    alignas(64) float m_tail[kBlockElems] = {};
    alignas(64) float error_tail[kBlockElems] = {};
    FillGradient<V>(gradient, whole, elems - whole, g);
    std::memcpy(m_tail, m + whole, bytes);
    std::memcpy(error_tail, error + whole, bytes);
    CompensateBlock<V>(c, OneSlot<V, kFp32>{g}, 0, m_tail, error_tail, &lanes);
    std::memcpy(error + whole, error_tail, bytes);
  }
  return SumOfLanes<V>(lanes);
}

template <class V>
double OneBitCompensate(const OneBitMomentum& momentum,
                        const RawGradient& gradient, const float* moment1,
                        float* error, int64_t elems) {
  switch (gradient.dtype) {
    case kFp32:
      return CompensateAs<V, kFp32>(momentum, gradient, moment1, error, elems);
    case kFp16:
      return CompensateAs<V, kFp16>(momentum, gradient, moment1, error, elems);
    case kBf16:
      return CompensateAs<V, kBf16>(momentum, gradient, moment1, error, elems);
  }
  return 0;
}

template <class V>
inline std::uint32_t PackBlock(typename V::F scale, float* error) {
  std::uint32_t word = 0;
  for (int k = 0; k < kBlockVectors<V>; ++k) {
    const int j = k * V::kWidth;
    const typename V::F b = V::Load(error + j);
    const std::uint32_t bits = V::AtLeastZero(b);
    V::Store(error + j, V::Sub(b, V::WithSigns(scale, bits)));
    word |= bits << j;
  }
  return word;
}

template <class V>
void OneBitPack(float scale_in, float* error, std::uint8_t* bits,
                int64_t elems) {
  const typename V::F scale = V::Set1(scale_in);
  const int64_t whole = elems - elems % kBlockElems;
  for (int64_t i = 0; i < whole; i += kBlockElems) {
    StoreSigns(PackBlock<V>(scale, error + i), bits + i / 8);
  }
  if (whole == elems) return;
  const auto bytes = static_cast<std::size_t>((elems - whole) * 4);
  alignas(64) float tail[kBlockElems] = {};
  std::uint8_t packed[kBlockBytes];
  std::memcpy(tail, error + whole, bytes);
  StoreSigns(PackBlock<V>(scale, tail), packed);
  std::memcpy(error + whole, tail, bytes);
  std::memcpy(bits + whole / 8, packed,
              static_cast<std::size_t>((elems - whole + 7) / 8));
}

// --- server -----------------------------------------------------------------

// Adds the decoded values of `count` words to a block of the error.
template <class V>
inline void ServeBlock(const std::uint32_t* words, const float* scales,
                       int64_t count, float* error, typename V::Lanes* lanes) {
  for (int k = 0; k < kBlockVectors<V>; ++k) {
    const int j = k * V::kWidth;
    typename V::F sum = V::WithSigns(V::Set1(scales[0]), words[0] >> j);
    for (int64_t r = 1; r < count; ++r) {
      sum = V::Add(sum, V::WithSigns(V::Set1(scales[r]), words[r] >> j));
    }
    sum = V::Add(sum, V::Load(error + j));
    V::Store(error + j, sum);
    V::AddSquares(*lanes, sum, j % kSumLanes);
  }
}

template <class V>
double OneBitServe(const std::uint8_t* const* bits, const float* scales,
                   int64_t count, float* error, int64_t elems) {
  typename V::Lanes lanes = V::ZeroLanes();
  std::uint32_t words[kOneBitRanksMax];
  const int64_t whole = elems - elems % kBlockElems;
  for (int64_t i = 0; i < whole; i += kBlockElems) {
    for (int64_t r = 0; r < count; ++r) words[r] = LoadSigns(bits[r] + i / 8);
    ServeBlock<V>(words, scales, count, error + i, &lanes);
  }
  if (whole < elems) {
    const int64_t rest = elems - whole;
    alignas(64) float tail[kBlockElems] = {};
    std::memcpy(tail, error + whole, static_cast<std::size_t>(rest * 4));
    for (int64_t r = 0; r < count; ++r) {
      words[r] = LoadTailSigns(bits[r] + whole / 8, rest);
    }
    // What lies behind the range must not reach the sum of squares.
    typename V::Lanes unused = V::ZeroLanes();
    ServeBlock<V>(words, scales, count, tail, &unused);
    std::memcpy(error + whole, tail, static_cast<std::size_t>(rest * 4));
    for (int64_t j = rest; j < kBlockElems; ++j) tail[j] = 0;
    AddBlockSquares<V>(lanes, OneSlot<V, kFp32>{tail}, 0);
  }
  return SumOfLanes<V>(lanes);
}

template <class V>
inline void UnpackBlock(typename V::F scale, std::uint32_t word, float* out) {
  for (int k = 0; k < kBlockVectors<V>; ++k) {
    const int j = k * V::kWidth;
    V::Store(out + j, V::WithSigns(scale, word >> j));
  }
}

template <class V>
void OneBitUnpack(float scale_in, const std::uint8_t* bits, float* out,
                  int64_t elems) {
  const typename V::F scale = V::Set1(scale_in);
  const int64_t whole = elems - elems % kBlockElems;
  for (int64_t i = 0; i < whole; i += kBlockElems) {
    UnpackBlock<V>(scale, LoadSigns(bits + i / 8), out + i);
  }
  if (whole == elems) return;
  alignas(64) float tail[kBlockElems];
  UnpackBlock<V>(scale, LoadTailSigns(bits + whole / 8, elems - whole), tail);
  std::memcpy(out + whole, tail, static_cast<std::size_t>((elems - whole) * 4));
}

// --- update with a frozen variance ------------------------------------------

template <class V>
struct FrozenVectors {
  typename V::F eps, weight_decay, step;
};

template <class V, bool kHasCopy, Dtype kCopy>
inline void FrozenBlock(const FrozenVectors<V>& c, const AdamRange& block,
                        bool stream) {
  typename V::F updated[kBlockVectors<V>];
  for (int k = 0; k < kBlockVectors<V>; ++k) {
    const int j = k * V::kWidth;
    const typename V::F denominator =
        V::Add(V::Sqrt(V::Load(block.moment2 + j)), c.eps);
    const typename V::F p = V::Load(block.master + j);
    const typename V::F u =
        V::Add(V::Div(V::Load(block.moment1 + j), denominator),
               V::Mul(c.weight_decay, p));
    updated[k] = V::Sub(p, V::Mul(c.step, u));
  }
  if (__builtin_expect(V::AnyNan(updated), 0)) {
    for (int k = 0; k < kBlockVectors<V>; ++k) {
      updated[k] = V::CanonicalNan(updated[k]);
    }
  }
  for (int k = 0; k < kBlockVectors<V>; ++k) {
    V::Store(block.master + k * V::kWidth, updated[k]);
  }
  if constexpr (kHasCopy) {
    V::template StoreBlock<kCopy, true>(block.copy, updated, stream);
  }
}

template <class V, bool kHasCopy, Dtype kCopy>
void FrozenAs(const FrozenVectors<V>& c, const AdamRange& range) {
  const int64_t whole = range.elems - range.elems % kBlockElems;
  const bool stream =
      kHasCopy && range.elems >= kStreamElemsMin && IsLineAligned(range.copy);
  for (int64_t i = 0; i < whole; i += kBlockElems) {
    PrefetchState(range, i + kPrefetchBlocks * kBlockElems);
    AdamRange block = BlockAt(range, i);
    if constexpr (kHasCopy) block.copy = At(range.copy, i * BytesOf(kCopy));
    FrozenBlock<V, kHasCopy, kCopy>(c, block, stream);
  }
  if (stream) V::Fence();
  if (whole == range.elems) return;
  alignas(64) unsigned char copy[kBlockElems * 4];
  LambTail tail(range, whole);
  AdamRange block = tail.block();
  block.copy = copy;
  FrozenBlock<V, kHasCopy, kCopy>(c, block, false);
  std::memcpy(range.master + whole, tail.p, tail.bytes);
  if constexpr (kHasCopy) {
    std::memcpy(
        At(range.copy, whole * BytesOf(kCopy)), copy,
        static_cast<std::size_t>((range.elems - whole) * BytesOf(kCopy)));
  }
}

template <class V>
void Frozen(float eps, float weight_decay, float step, const AdamRange& range) {
  const FrozenVectors<V> c = {V::Set1(eps), V::Set1(weight_decay),
                              V::Set1(step)};
  if (range.copy == nullptr) return FrozenAs<V, false, kFp32>(c, range);
  switch (range.copy_dtype) {
    case kFp32:
      return FrozenAs<V, true, kFp32>(c, range);
    case kFp16:
      return FrozenAs<V, true, kFp16>(c, range);
    case kBf16:
      return FrozenAs<V, true, kBf16>(c, range);
  }
}

template <class V>
struct FrozenLambLanes {
  typename V::Lanes direction = V::ZeroLanes();
  typename V::Lanes update = V::ZeroLanes();
  typename V::F factor = V::Set1(0.0F);
};

template <class V>
inline void FrozenLambBlock(const FrozenLambConstants& c, const float* last,
                            float* fresh, const AdamRange& block,
                            FrozenLambLanes<V>* lanes) {
  using F = typename V::F;
  for (int k = 0; k < kBlockVectors<V>; ++k) {
    const int j = k * V::kWidth;
    const F m = V::Load(block.moment1 + j);
    const F g = V::Div(V::Sub(m, V::Mul(V::Load(last + j), V::Set1(c.beta1))),
                       V::Set1(c.one_minus_beta1));
    const F v = V::Add(V::Mul(V::Load(fresh + j), V::Set1(c.beta2)),
                       V::Mul(V::Mul(g, g), V::Set1(c.one_minus_beta2)));
    V::Store(fresh + j, v);
    const F denominator =
        V::Add(V::Sqrt(V::Load(block.moment2 + j)), V::Set1(c.eps));
    const F u = V::Div(m, denominator);
    const F update =
        V::Add(u, V::Mul(V::Set1(c.weight_decay), V::Load(block.master + j)));
    const F ratio = V::Div(denominator, V::Add(V::Sqrt(v), V::Set1(c.eps)));
    lanes->factor = V::Max(ratio, lanes->factor);
    V::AddSquares(lanes->direction, u, j % kSumLanes);
    V::AddSquares(lanes->update, update, j % kSumLanes);
  }
}

template <class V>
FrozenLambSums FrozenLamb(const FrozenLambConstants& constants,
                          const float* last_moment1, float* fresh_moment2,
                          const AdamRange& range) {
  FrozenLambLanes<V> lanes;
  const int64_t whole = range.elems - range.elems % kBlockElems;
  for (int64_t i = 0; i < whole; i += kBlockElems) {
    FrozenLambBlock<V>(constants, last_moment1 + i, fresh_moment2 + i,
                       BlockAt(range, i), &lanes);
  }
  if (whole < range.elems) {
    // Behind the range the frozen variance is one and the fresh one infinite: a
    // direction and a ratio of zero (or, without beta2, a NaN that Max drops).
    LambTail tail(range, whole);
    for (int64_t j = range.elems - whole; j < kBlockElems; ++j) tail.v[j] = 1;
    alignas(64) float last[kBlockElems] = {};
    alignas(64) float fresh[kBlockElems];
    for (float& v : fresh) v = __builtin_inff();
    std::memcpy(last, last_moment1 + whole, tail.bytes);
    std::memcpy(fresh, fresh_moment2 + whole, tail.bytes);
    FrozenLambBlock<V>(constants, last, fresh, tail.block(), &lanes);
    std::memcpy(fresh_moment2 + whole, fresh, tail.bytes);
  }
  float factors[V::kWidth];
  V::Store(factors, lanes.factor);
  FrozenLambSums sums = {SumOfLanes<V>(lanes.direction),
                         SumOfLanes<V>(lanes.update), factors[0]};
  for (int k = 1; k < V::kWidth; ++k) {
    if (factors[k] > sums.factor_max) sums.factor_max = factors[k];
  }
  return sums;
}

}  // namespace
}  // namespace stowage::optim
