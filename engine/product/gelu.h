// The tanh form of GELU and its derivative over elements of 16 bits (or fp32):
// x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3), in fp32 inside, one
// rounding at the end. LibTorch's takes three times as long there.
//
// Accuracy before the rounding: 1e-5 of the value (below 1e-30 it may be 0), of
// the derivative 2e-6. NaN
// stays; gelu(-infinity) is NaN, as LibTorch's, and the derivative at
// infinities is 1 and 0. Source: Hendrycks and Gimpel, "Gaussian Error Linear
// Units (GELUs)".
//
// Thread safety: pure functions.

#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace stowage::engine {

// Both require HavePackedProducts(). `out` may be an operand.

// out[i] = gelu(x[i])
void TanhGelu(const void* x, Dtype dtype, std::int64_t count, void* out);

// out[i] = gradient[i] gelu'(x[i])
void TanhGeluBackward(const void* gradient, const void* x, Dtype dtype,
                      std::int64_t count, void* out);

}  // namespace stowage::engine
