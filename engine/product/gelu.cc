#include "engine/product/gelu.h"

#include "common/check.h"
#include "engine/product/gelu_kernels.h"
#include "engine/product/packed_product.h"

namespace stowage::engine {

void TanhGelu(const void* x, Dtype dtype, std::int64_t count, void* out) {
  STOWAGE_CHECK(HavePackedProducts());
#if defined(__x86_64__)
  internal::Avx2TanhGelu(x, dtype, count, out);
#endif
}

void TanhGeluBackward(const void* gradient, const void* x, Dtype dtype,
                      std::int64_t count, void* out) {
  STOWAGE_CHECK(HavePackedProducts());
#if defined(__x86_64__)
  internal::Avx2TanhGeluBackward(gradient, x, dtype, count, out);
#endif
}

}  // namespace stowage::engine
