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
