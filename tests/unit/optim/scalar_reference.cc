#include "tests/unit/optim/scalar_reference.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

namespace stowage::optim {
namespace {

template <typename T>
T LoadAt(const void* base, std::int64_t index) {
  T value;
  std::memcpy(&value,
              static_cast<const std::byte*>(base) +
                  index * static_cast<std::int64_t>(sizeof(T)),
              sizeof(T));
  return value;
}

template <typename T>
void StoreAt(void* base, std::int64_t index, T value) {
  std::memcpy(static_cast<std::byte*>(base) +
                  index * static_cast<std::int64_t>(sizeof(T)),
              &value, sizeof(T));
}

float SlotAt(const void* slot, Dtype dtype, std::int64_t index) {
  switch (dtype) {
    case Dtype::kFp32:
      return LoadAt<float>(slot, index);
    case Dtype::kFp16:
      return Fp16ToFloat(LoadAt<std::uint16_t>(slot, index));
    case Dtype::kBf16:
      return Bf16ToFloat(LoadAt<std::uint16_t>(slot, index));
  }
  return 0;
}

float Canonical(float value) {
  return std::isnan(value) ? std::bit_cast<float>(0x7fc00000U) : value;
}

double SumLanes(const std::array<double, kSumLanes>& lanes) {
  double total = 0;
  for (const double lane : lanes) total += lane;
  return std::isnan(total) ? std::numeric_limits<double>::quiet_NaN() : total;
}

void StoreCopy(const AdamRange& range, std::int64_t i, float p) {
  if (range.copy == nullptr) return;
  switch (range.copy_dtype) {
    case Dtype::kFp32:
      StoreAt(range.copy, i, p);
      break;
    case Dtype::kFp16:
      StoreAt(range.copy, i, FloatToFp16(p));
      break;
    case Dtype::kBf16:
      StoreAt(range.copy, i, FloatToBf16(p));
      break;
  }
}

struct LambElement {
  float p = 0;
  float m = 0;
  float v = 0;
  float u = 0;
};

LambElement MakeLambElement(const LambConstants& c, float gradient,
                            const AdamRange& range, std::int64_t i) {
  LambElement e;
  const float g = gradient * c.gradient_factor;
  e.p = LoadAt<float>(range.master, i);
  e.m = LoadAt<float>(range.moment1, i) * c.beta1 + g * c.one_minus_beta1;
  e.v = LoadAt<float>(range.moment2, i) * c.beta2 + (g * g) * c.one_minus_beta2;
  e.u = e.m / (std::sqrt(e.v + c.eps_inside) + c.eps_outside) +
        c.weight_decay * e.p;
  return e;
}

}  // namespace

std::vector<float> ReferenceGradient(const GradientSource& gradient,
                                     std::int64_t elems) {
  std::vector<float> result;
  for (std::int64_t i = 0; i < elems; ++i) {
    float sum = 0;
    if (gradient.sum != nullptr) {
      sum = LoadAt<float>(gradient.sum, i);
    } else if (!gradient.slots.empty()) {
      sum = SlotAt(gradient.slots[0], gradient.slot_dtype, i);
      for (const void* slot : gradient.slots.subspan(1)) {
        sum += SlotAt(slot, gradient.slot_dtype, i);
      }
    }
    result.push_back(sum);
  }
  return result;
}

double ReferenceSumOfSquares(const GradientSource& gradient,
                             std::int64_t elems) {
  const std::vector<float> sum = ReferenceGradient(gradient, elems);
  std::array<double, kSumLanes> lanes = {};
  for (std::size_t i = 0; i < sum.size(); ++i) {
    lanes[i % kSumLanes] +=
        static_cast<double>(sum[i]) * static_cast<double>(sum[i]);
  }
  return SumLanes(lanes);
}

void ReferenceAccumulate(const GradientSource& slots, bool first, float* sum,
                         std::int64_t elems) {
  for (std::int64_t i = 0; i < elems; ++i) {
    float value = first ? 0.0F : LoadAt<float>(sum, i);
    for (std::size_t s = 0; s < slots.slots.size(); ++s) {
      const float x = SlotAt(slots.slots[s], slots.slot_dtype, i);
      value = first && s == 0 ? x : value + x;
    }
    if (!slots.slots.empty()) value = Canonical(value);
    StoreAt(sum, i, value);
  }
}

void ReferenceAdam(const AdamConstants& c, const GradientSource& gradient,
                   const AdamRange& range) {
  const std::vector<float> sum = ReferenceGradient(gradient, range.elems);
  for (std::int64_t i = 0; i < range.elems; ++i) {
    float p = LoadAt<float>(range.master, i);
    float m = LoadAt<float>(range.moment1, i);
    float v = LoadAt<float>(range.moment2, i);
    float g = sum[static_cast<std::size_t>(i)] * c.gradient_factor;
    if (c.l2_decay != 0) g = g + c.l2_decay * p;
    m = m * c.beta1 + g * c.one_minus_beta1;
    v = v * c.beta2 + (g * g) * c.one_minus_beta2;
    const float u =
        c.step_size * (m / (std::sqrt(v) * c.inv_sqrt_bias2 + c.eps));
    p = Canonical(p - (c.decoupled_decay * p + u));
    StoreAt(range.master, i, p);
    StoreAt(range.moment1, i, Canonical(m));
    StoreAt(range.moment2, i, Canonical(v));
    StoreCopy(range, i, p);
  }
}

LambNorms ReferenceLambNorms(const LambConstants& c,
                             const GradientSource& gradient,
                             const AdamRange& range) {
  const std::vector<float> sum = ReferenceGradient(gradient, range.elems);
  std::array<double, kSumLanes> weight = {};
  std::array<double, kSumLanes> update = {};
  for (std::int64_t i = 0; i < range.elems; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const LambElement e = MakeLambElement(c, sum[at], range, i);
    const auto p = static_cast<double>(e.p);
    const auto u = static_cast<double>(e.u);
    weight[at % kSumLanes] += p * p;
    update[at % kSumLanes] += u * u;
  }
  return {SumLanes(weight), SumLanes(update)};
}

void ReferenceLamb(const LambConstants& c, float step,
                   const GradientSource& gradient, const AdamRange& range) {
  const std::vector<float> sum = ReferenceGradient(gradient, range.elems);
  for (std::int64_t i = 0; i < range.elems; ++i) {
    const LambElement e =
        MakeLambElement(c, sum[static_cast<std::size_t>(i)], range, i);
    const float p = Canonical(e.p - step * e.u);
    StoreAt(range.master, i, p);
    StoreAt(range.moment1, i, Canonical(e.m));
    StoreAt(range.moment2, i, Canonical(e.v));
    StoreCopy(range, i, p);
  }
}

double ReferenceCompensate(const OneBitMomentum& c,
                           const GradientSource& gradient, const float* moment1,
                           float* error, std::int64_t elems) {
  const std::vector<float> sum = ReferenceGradient(gradient, elems);
  std::array<double, kSumLanes> lanes = {};
  for (std::int64_t i = 0; i < elems; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const float g = sum[at] * c.gradient_factor;
    const float m = LoadAt<float>(moment1, i) * c.beta1 + g * c.one_minus_beta1;
    const float b = m * c.scaling + LoadAt<float>(error, i);
    StoreAt(error, i, b);
    lanes[at % kSumLanes] += static_cast<double>(b) * static_cast<double>(b);
  }
  return SumLanes(lanes);
}

void ReferencePack(float scale, float* error, std::uint8_t* bits,
                   std::int64_t elems) {
  for (std::int64_t i = 0; i < elems; ++i) {
    const auto mask = static_cast<std::uint8_t>(0x80U >> (i % 8));
    if (i % 8 == 0) bits[i / 8] = 0;
    const float b = LoadAt<float>(error, i);
    if (b >= 0) bits[i / 8] |= mask;
    StoreAt(error, i, b - (b >= 0 ? scale : -scale));
  }
  // Bits behind the last element are those of zeros.
  for (std::int64_t i = elems; i % 8 != 0; ++i) {
    bits[i / 8] |= static_cast<std::uint8_t>(0x80U >> (i % 8));
  }
}

double ReferenceServe(std::span<const std::uint8_t* const> bits,
                      std::span<const float> scales, float* error,
                      std::int64_t elems) {
  std::array<double, kSumLanes> lanes = {};
  for (std::int64_t i = 0; i < elems; ++i) {
    float sum = 0;
    for (std::size_t r = 0; r < bits.size(); ++r) {
      const bool set = (bits[r][i / 8] & (0x80U >> (i % 8))) != 0;
      const float decoded = set ? scales[r] : -scales[r];
      sum = r == 0 ? decoded : sum + decoded;
    }
    sum = sum + LoadAt<float>(error, i);
    StoreAt(error, i, sum);
    lanes[static_cast<std::size_t>(i % kSumLanes)] +=
        static_cast<double>(sum) * static_cast<double>(sum);
  }
  return SumLanes(lanes);
}

void ReferenceFrozen(float eps, float weight_decay, float step,
                     const AdamRange& range) {
  for (std::int64_t i = 0; i < range.elems; ++i) {
    const float p = LoadAt<float>(range.master, i);
    const float u = LoadAt<float>(range.moment1, i) /
                        (std::sqrt(LoadAt<float>(range.moment2, i)) + eps) +
                    weight_decay * p;
    const float updated = Canonical(p - step * u);
    StoreAt(range.master, i, updated);
    StoreCopy(range, i, updated);
  }
}

FrozenLambSums ReferenceFrozenLamb(const FrozenLambConstants& c,
                                   const float* last_moment1,
                                   float* fresh_moment2,
                                   const AdamRange& range) {
  std::array<double, kSumLanes> direction = {};
  std::array<double, kSumLanes> update = {};
  FrozenLambSums sums;
  for (std::int64_t i = 0; i < range.elems; ++i) {
    const auto lane = static_cast<std::size_t>(i % kSumLanes);
    const float m = LoadAt<float>(range.moment1, i);
    const float g =
        (m - LoadAt<float>(last_moment1, i) * c.beta1) / c.one_minus_beta1;
    const float v =
        LoadAt<float>(fresh_moment2, i) * c.beta2 + (g * g) * c.one_minus_beta2;
    StoreAt(fresh_moment2, i, v);
    const float denominator =
        std::sqrt(LoadAt<float>(range.moment2, i)) + c.eps;
    const float u = m / denominator;
    const float whole = u + c.weight_decay * LoadAt<float>(range.master, i);
    direction[lane] += static_cast<double>(u) * static_cast<double>(u);
    update[lane] += static_cast<double>(whole) * static_cast<double>(whole);
    const float ratio = denominator / (std::sqrt(v) + c.eps);
    if (ratio > sums.factor_max) sums.factor_max = ratio;
  }
  sums.direction = SumLanes(direction);
  sums.update = SumLanes(update);
  return sums;
}

void ReferenceConvert(const float* source, Dtype dtype, void* target,
                      std::int64_t elems) {
  for (std::int64_t i = 0; i < elems; ++i) {
    // fp32 as bits: a copy keeps every NaN.
    if (dtype == Dtype::kFp32) {
      StoreAt(target, i, LoadAt<std::uint32_t>(source, i));
    } else if (dtype == Dtype::kFp16) {
      StoreAt(target, i, FloatToFp16(LoadAt<float>(source, i)));
    } else {
      StoreAt(target, i, FloatToBf16(LoadAt<float>(source, i)));
    }
  }
}

}  // namespace stowage::optim
