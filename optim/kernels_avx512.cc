#include "optim/raw_kernels.h"
#include "optim/simd_avx512.h"

namespace stowage::optim::internal {

constinit const RawKernels kAvx512RawKernels = MakeRawKernels<Avx512>();

}  // namespace stowage::optim::internal
