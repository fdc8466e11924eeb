// The kernel implementations that the tests compare: every set that this
// processor runs, and the AVX-512 code over emulated intrinsics.

#pragma once

#include <string>
#include <vector>

#include "optim/kernels.h"

namespace stowage::optim {

extern const internal::RawKernels kAvx512EmulatedRawKernels;

struct KernelCandidate {
  std::string name;
  KernelSet set;
};

std::vector<KernelCandidate> KernelCandidates();

}  // namespace stowage::optim
