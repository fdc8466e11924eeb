#include "optim/raw_kernels.h"
#include "optim/simd_avx2.h"

namespace stowage::optim::internal {

constinit const RawKernels kAvx2RawKernels = MakeRawKernels<Avx2>();

}  // namespace stowage::optim::internal
