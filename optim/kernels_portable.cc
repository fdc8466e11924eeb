#include "optim/raw_kernels.h"
#include "optim/simd_portable.h"

namespace stowage::optim::internal {

constinit const RawKernels kPortableRawKernels = MakeRawKernels<Portable>();

}  // namespace stowage::optim::internal
