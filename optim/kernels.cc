#include "optim/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/environment.h"
#include "common/log.h"

namespace stowage::optim {
namespace {

using internal::RawGradient;
using internal::RawKernels;

static_assert(internal::kFp32 == Dtype::kFp32 &&
              internal::kFp16 == Dtype::kFp16 &&
              internal::kBf16 == Dtype::kBf16);

RawGradient ToRaw(const GradientSource& gradient) {
  return {gradient.slots.data(),
          static_cast<std::int64_t>(gradient.slots.size()), gradient.slot_dtype,
          gradient.sum};
}

// The public signatures over one raw implementation. They live here, in a file
// compiled for every processor, because they use spans.
template <const RawKernels& kRaw>
struct Wrapper {
  static double SumOfSquares(const GradientSource& gradient,
                             std::int64_t elems) {
    return kRaw.sum_of_squares(ToRaw(gradient), elems);
  }
  static void Accumulate(std::span<const void* const> slots, Dtype slot_dtype,
                         bool first, float* sum, std::int64_t elems) {
    kRaw.accumulate(ToRaw({slots, slot_dtype, nullptr}), first, sum, elems);
  }
  static void Adam(const AdamConstants& constants,
                   const GradientSource& gradient, const AdamRange& range) {
    kRaw.adam(constants, ToRaw(gradient), range);
  }
  static void Convert(const float* source, Dtype dtype, void* target,
                      std::int64_t elems) {
    kRaw.convert(source, dtype, target, elems);
  }
  static LambNorms NormsOfLamb(const LambConstants& constants,
                               const GradientSource& gradient,
                               const AdamRange& range) {
    return kRaw.lamb_norms(constants, ToRaw(gradient), range);
  }
  static void Lamb(const LambConstants& constants, float step,
                   const GradientSource& gradient, const AdamRange& range) {
    kRaw.lamb(constants, step, ToRaw(gradient), range);
  }
  static double Compensate(const OneBitMomentum& momentum,
                           const GradientSource& gradient, const float* moment1,
                           float* error, std::int64_t elems) {
    return kRaw.onebit_compensate(momentum, ToRaw(gradient), moment1, error,
                                  elems);
  }
  static void Pack(float scale, float* error, std::uint8_t* bits,
                   std::int64_t elems) {
    kRaw.onebit_pack(scale, error, bits, elems);
  }
  static double Serve(std::span<const std::uint8_t* const> bits,
                      std::span<const float> scales, float* error,
                      std::int64_t elems) {
    STOWAGE_CHECK(!bits.empty() && bits.size() <= kOneBitRanksMax &&
                  bits.size() == scales.size());
    return kRaw.onebit_serve(bits.data(), scales.data(),
                             static_cast<std::int64_t>(bits.size()), error,
                             elems);
  }
  static void Unpack(float scale, const std::uint8_t* bits, float* out,
                     std::int64_t elems) {
    kRaw.onebit_unpack(scale, bits, out, elems);
  }
  static void Frozen(float eps, float weight_decay, float step,
                     const AdamRange& range) {
    kRaw.frozen(eps, weight_decay, step, range);
  }
  static FrozenLambSums FrozenLamb(const FrozenLambConstants& constants,
                                   const float* last_moment1,
                                   float* fresh_moment2,
                                   const AdamRange& range) {
    return kRaw.frozen_lamb(constants, last_moment1, fresh_moment2, range);
  }
  static constexpr KernelSet Make(Isa isa) {
    return {.isa = isa,
            .sum_of_squares = &SumOfSquares,
            .accumulate = &Accumulate,
            .adam = &Adam,
            .lamb_norms = &NormsOfLamb,
            .lamb = &Lamb,
            .onebit_compensate = &Compensate,
            .onebit_pack = &Pack,
            .onebit_serve = &Serve,
            .onebit_unpack = &Unpack,
            .frozen = &Frozen,
            .frozen_lamb = &FrozenLamb,
            .convert = &Convert};
  }
};

constexpr KernelSet kPortable =
    Wrapper<internal::kPortableRawKernels>::Make(Isa::kPortable);
#if defined(__x86_64__)
constexpr KernelSet kAvx2 =
    Wrapper<internal::kAvx2RawKernels>::Make(Isa::kAvx2);
constexpr KernelSet kAvx512 =
    Wrapper<internal::kAvx512RawKernels>::Make(Isa::kAvx512);

bool HasF16c() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

// Names of the instruction sets that `isa` needs and this processor, or its
// operating system, does not give.
std::vector<std::string> MissingFor(Isa isa) {
  std::vector<std::string> missing;
#if defined(__x86_64__)
  const auto need = [&missing](bool present, const char* name) {
    if (!present) missing.emplace_back(name);
  };
  if (isa == Isa::kAvx2) {
    need(__builtin_cpu_supports("avx2") != 0, "avx2");
    need(__builtin_cpu_supports("fma") != 0, "fma");
    need(HasF16c(), "f16c");
  } else if (isa == Isa::kAvx512) {
    need(__builtin_cpu_supports("avx512f") != 0, "avx512f");
    need(__builtin_cpu_supports("avx512bw") != 0, "avx512bw");
    need(__builtin_cpu_supports("avx512vl") != 0, "avx512vl");
  }
#else
  if (isa != Isa::kPortable) missing.emplace_back("x86-64");
#endif
  return missing;
}

constexpr std::array kIsas = {Isa::kAvx512, Isa::kAvx2, Isa::kPortable};

const KernelSet& SelectKernels() {
  const KernelSet& fastest = *SupportedKernels().front();
  // Read once, at the first call.
  const std::string asked = Environment("STOWAGE_ISA");
  if (asked.empty()) return fastest;
  for (const Isa isa : kIsas) {
    if (IsaName(isa) != asked) continue;
    const absl::StatusOr<const KernelSet*> set = KernelsFor(isa);
    if (set.ok()) return **set;
    log::Warning("STOWAGE_ISA ignored",
                 {{"value", asked},
                  {"using", std::string(IsaName(fastest.isa))},
                  {"cause", std::string(set.status().message())}});
    return fastest;
  }
  log::Warning("STOWAGE_ISA ignored",
               {{"value", asked},
                {"using", std::string(IsaName(fastest.isa))},
                {"cause", "expected portable, avx2 or avx512"}});
  return fastest;
}

// By memcpy, as the pointers may have any alignment.
template <typename T>
T LoadAt(const void* base, std::int64_t index) {
  T value;
  std::memcpy(&value,
              static_cast<const std::byte*>(base) +
                  index * static_cast<std::int64_t>(sizeof(T)),
              sizeof(T));
  return value;
}

float ElementAt(const void* slot, Dtype dtype, std::int64_t index) {
  if (dtype == Dtype::kFp32) return LoadAt<float>(slot, index);
  const auto bits = LoadAt<std::uint16_t>(slot, index);
  return dtype == Dtype::kFp16 ? Fp16ToFloat(bits) : Bf16ToFloat(bits);
}

float GradientAt(const GradientSource& gradient, std::int64_t index) {
  if (gradient.sum != nullptr) return LoadAt<float>(gradient.sum, index);
  if (gradient.slots.empty()) return 0.0F;
  float sum = ElementAt(gradient.slots[0], gradient.slot_dtype, index);
  for (const void* slot : gradient.slots.subspan(1)) {
    sum += ElementAt(slot, gradient.slot_dtype, index);
  }
  return sum;
}

}  // namespace

std::string_view IsaName(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

AdamConstants MakeAdamConstants(const AdamHyperparameters& hyperparameters,
                                std::int64_t step, double gradient_factor) {
  STOWAGE_CHECK(step >= 1);
  const AdamHyperparameters& h = hyperparameters;
  double step_size = h.lr;
  double inv_sqrt_bias2 = 1;
  if (h.bias_correction) {
    const auto t = static_cast<double>(step);
    step_size = h.lr / (1 - std::pow(h.beta1, t));
    inv_sqrt_bias2 = 1 / std::sqrt(1 - std::pow(h.beta2, t));
  }
  AdamConstants c;
  c.gradient_factor = static_cast<float>(gradient_factor);
  c.beta1 = static_cast<float>(h.beta1);
  c.one_minus_beta1 = static_cast<float>(1 - h.beta1);
  c.beta2 = static_cast<float>(h.beta2);
  c.one_minus_beta2 = static_cast<float>(1 - h.beta2);
  c.eps = static_cast<float>(h.eps);
  c.step_size = static_cast<float>(step_size);
  c.inv_sqrt_bias2 = static_cast<float>(inv_sqrt_bias2);
  if (h.decoupled_weight_decay) {
    c.decoupled_decay = static_cast<float>(h.lr * h.weight_decay);
  } else {
    c.l2_decay = static_cast<float>(h.weight_decay);
  }
  return c;
}

LambConstants MakeLambConstants(const LambHyperparameters& hyperparameters,
                                std::int64_t step, double gradient_factor) {
  STOWAGE_CHECK(step >= 1);
  const LambHyperparameters& h = hyperparameters;
  LambConstants c;
  c.gradient_factor = static_cast<float>(gradient_factor);
  c.beta1 = static_cast<float>(h.beta1);
  c.one_minus_beta1 = static_cast<float>(1 - h.beta1);
  c.beta2 = static_cast<float>(h.beta2);
  c.one_minus_beta2 = static_cast<float>(1 - h.beta2);
  (h.eps_inside_sqrt ? c.eps_inside : c.eps_outside) =
      static_cast<float>(h.eps);
  c.weight_decay = static_cast<float>(h.weight_decay);
  c.step_size = h.lr;
  if (h.bias_correction) {
    const auto t = static_cast<double>(step);
    c.step_size *=
        std::sqrt(1 - std::pow(h.beta2, t)) / (1 - std::pow(h.beta1, t));
  }
  c.min_coeff = h.min_coeff;
  c.max_coeff = h.max_coeff;
  return c;
}

double LambTrustRatio(const LambConstants& constants, const LambNorms& norms) {
  if (norms.weight == 0 || norms.update == 0) return 1;
  const double ratio = std::sqrt(norms.weight) / std::sqrt(norms.update);
  // As DeepSpeed clamps: the upper bound first. NaN stays NaN.
  if (ratio > constants.max_coeff) return constants.max_coeff;
  if (ratio < constants.min_coeff) return constants.min_coeff;
  return ratio;
}

const KernelSet& BestKernels() {
  static const KernelSet& best = SelectKernels();
  return best;
}

absl::StatusOr<const KernelSet*> KernelsFor(Isa isa) {
  const std::vector<std::string> missing = MissingFor(isa);
  if (!missing.empty()) {
    return absl::UnimplementedError(absl::StrCat(
        "kernels \"", std::string(IsaName(isa)), "\": this processor lacks ",
        absl::StrJoin(missing, ", ")));
  }
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return &kAvx512;
  if (isa == Isa::kAvx2) return &kAvx2;
#endif
  return &kPortable;
}

std::vector<const KernelSet*> SupportedKernels() {
  std::vector<const KernelSet*> sets;
  for (const Isa isa : kIsas) {
    const absl::StatusOr<const KernelSet*> set = KernelsFor(isa);
    if (set.ok()) sets.push_back(*set);
  }
  return sets;
}

std::int64_t FirstNonFinite(const GradientSource& gradient,
                            std::int64_t elems) {
  // The vector kernel finds the stretch, element code the place in it.
  constexpr std::int64_t kStretchElems = 4096;
  const std::int64_t bytes = DtypeBytes(gradient.slot_dtype);
  std::vector<const void*> slots(gradient.slots.size());
  for (std::int64_t begin = 0; begin < elems; begin += kStretchElems) {
    for (std::size_t s = 0; s < slots.size(); ++s) {
      slots[s] =
          static_cast<const std::byte*>(gradient.slots[s]) + begin * bytes;
    }
    const std::int64_t end = std::min(elems, begin + kStretchElems);
    const GradientSource stretch = {
        slots, gradient.slot_dtype,
        gradient.sum == nullptr ? nullptr : gradient.sum + begin};
    if (std::isfinite(BestKernels().sum_of_squares(stretch, end - begin))) {
      continue;
    }
    for (std::int64_t i = begin; i < end; ++i) {
      if (!std::isfinite(GradientAt(gradient, i))) return i;
    }
  }
  return -1;
}

}  // namespace stowage::optim
