#include "optim/kernels_impl.h"
#include "optim/simd_portable.h"

namespace stowage::optim::internal {

constinit const RawKernels kPortableRawKernels = MakeRawKernels<Portable>();

}  // namespace stowage::optim::internal
