// A linear layer whose parameters are 16-bit and whose products are exact
// enough and fast on processors without 16-bit matrix instructions.
//
// LibTorch multiplies bf16 and fp16 matrices element by element on a CPU that
// has only AVX2 (measured 2026-11-23, AMD EPYC, 1 thread, 128x512 times
// 512x2048: forward 30 ms, input gradient 348 ms; through fp32 4.4 ms each).
// There this layer sums in fp32 and rounds the results once (half_products.h),
// and can be differentiated once; where the processor has the instructions it
// is torch::linear.

#pragma once

#include <torch/nn/module.h>

#include <cstdint>

namespace stowage::engine {

// True if 16-bit products are to be made in fp32 on this processor;
// STOWAGE_WIDE_PRODUCTS=0|1|panels overrides.
bool UseWideProducts();

// y = x w^T + b, as torch::linear, with the product in fp32 if
// UseWideProducts() and the operands are 16-bit. Differentiable.
at::Tensor Linear(const at::Tensor& input, const at::Tensor& weight,
                  const at::Tensor& bias);

// Linear() of tanh GELU of the input. Where UseWideProducts(), the activation
// is made anew in backward instead of being kept until then. Differentiable.
at::Tensor GeluLinear(const at::Tensor& input, const at::Tensor& weight,
                      const at::Tensor& bias);

// softmax(q k^T / sqrt(d)) v with a causal mask over [batch, heads, tokens, d],
// the heads side by side: [batch, tokens, heads * d]. In fp32 inside where
// UseWideProducts(). Differentiable.
at::Tensor CausalAttention(const at::Tensor& query, const at::Tensor& key,
                           const at::Tensor& value);

}  // namespace stowage::engine
