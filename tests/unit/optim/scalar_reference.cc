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
  double total = 0;
  for (const double lane : lanes) total += lane;
  return std::isnan(total) ? std::numeric_limits<double>::quiet_NaN() : total;
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
    if (range.copy != nullptr) {
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
  }
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
