#include "tests/unit/optim/kernel_candidates.h"

namespace stowage::optim {
namespace {

internal::RawGradient ToRaw(std::span<const void* const> slots, Dtype dtype,
                            const float* sum) {
  return {slots.data(), static_cast<std::int64_t>(slots.size()), dtype, sum};
}

KernelSet EmulatedSet() {
  static constexpr const internal::RawKernels& kRaw = kAvx512EmulatedRawKernels;
  KernelSet set;
  set.isa = Isa::kAvx512;
  set.sum_of_squares = [](const GradientSource& g, std::int64_t elems) {
    return kRaw.sum_of_squares(ToRaw(g.slots, g.slot_dtype, g.sum), elems);
  };
  set.accumulate = [](std::span<const void* const> slots, Dtype dtype,
                      bool first, float* sum, std::int64_t elems) {
    kRaw.accumulate(ToRaw(slots, dtype, nullptr), first, sum, elems);
  };
  set.adam = [](const AdamConstants& constants, const GradientSource& g,
                const AdamRange& range) {
    kRaw.adam(constants, ToRaw(g.slots, g.slot_dtype, g.sum), range);
  };
  set.lamb_norms = [](const LambConstants& constants, const GradientSource& g,
                      const AdamRange& range) {
    return kRaw.lamb_norms(constants, ToRaw(g.slots, g.slot_dtype, g.sum),
                           range);
  };
  set.lamb = [](const LambConstants& constants, float step,
                const GradientSource& g, const AdamRange& range) {
    kRaw.lamb(constants, step, ToRaw(g.slots, g.slot_dtype, g.sum), range);
  };
  set.onebit_compensate = [](const OneBitMomentum& momentum,
                             const GradientSource& g, const float* moment1,
                             float* error, std::int64_t elems) {
    return kRaw.onebit_compensate(momentum, ToRaw(g.slots, g.slot_dtype, g.sum),
                                  moment1, error, elems);
  };
  set.onebit_pack = kRaw.onebit_pack;
  set.onebit_serve = [](std::span<const std::uint8_t* const> bits,
                        std::span<const float> scales, float* error,
                        std::int64_t elems) {
    return kRaw.onebit_serve(bits.data(), scales.data(),
                             static_cast<std::int64_t>(bits.size()), error,
                             elems);
  };
  set.onebit_unpack = kRaw.onebit_unpack;
  set.frozen = kRaw.frozen;
  set.frozen_lamb = kRaw.frozen_lamb;
  set.convert = [](const float* source, Dtype dtype, void* target,
                   std::int64_t elems) {
    kRaw.convert(source, dtype, target, elems);
  };
  return set;
}

}  // namespace

std::vector<KernelCandidate> KernelCandidates() {
  std::vector<KernelCandidate> candidates;
  for (const KernelSet* set : SupportedKernels()) {
    candidates.push_back({std::string(IsaName(set->isa)), *set});
  }
  candidates.push_back({"avx512 (emulated)", EmulatedSet()});
  return candidates;
}

}  // namespace stowage::optim
