// The AVX-512 kernels over emulated intrinsics; see avx512_emulation/.

#include "optim/raw_kernels.h"
#include "optim/simd_avx512.h"
#include "tests/unit/optim/kernel_candidates.h"

namespace stowage::optim {

constinit const internal::RawKernels kAvx512EmulatedRawKernels =
    MakeRawKernels<Avx512>();

}  // namespace stowage::optim
