#include "engine/product/gelu.h"

#include "common/check.h"
#include "engine/product/gelu_kernels.h"
#include "engine/product/packed_product.h"

namespace stowage::engine {

void TanhGelu([[maybe_unused]] const void* x, [[maybe_unused]] Dtype dtype,
              [[maybe_unused]] std::int64_t count, [[maybe_unused]] void* out) {
  STOWAGE_CHECK(HavePackedProducts());
#if defined(__x86_64__)
  internal::Avx2TanhGelu(x, dtype, count, out);
#endif
}

void TanhGeluBackward([[maybe_unused]] const void* gradient,
                      [[maybe_unused]] const void* x,
                      [[maybe_unused]] Dtype dtype,
                      [[maybe_unused]] std::int64_t count,
                      [[maybe_unused]] void* out) {
  STOWAGE_CHECK(HavePackedProducts());
#if defined(__x86_64__)
  internal::Avx2TanhGeluBackward(gradient, x, dtype, count, out);
#endif
}

}  // namespace stowage::engine
