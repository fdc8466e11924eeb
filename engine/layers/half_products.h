// The three products of a linear layer whose tensors are 16-bit, on a CPU that
// multiplies no such elements: sums in fp32, each result rounded once.
//
// Two ways: packed products (engine/product), which widen and round inside; and
// LibTorch's fp32 products of panels widened before, where the processor's own
// fp32 product is the faster one: AVX-512, or no AVX2.
//
// Rows are flattened: x [.., in] counts as [rows, in]. Thread safety:
// thread-safe; they share LibTorch's threads.

#pragma once

#include <ATen/core/Tensor.h>

namespace stowage::engine {

enum class HalfProducts {
  kTorch,   // LibTorch's own 16-bit products
  kPanels,  // LibTorch's fp32 products, widened panel by panel
  kPacked,  // ours
};

// The best on this processor; STOWAGE_WIDE_PRODUCTS=0 (LibTorch's own),
// 1 (the better one in fp32) or panels overrides.
HalfProducts ChooseHalfProducts();

// tanh GELU, and its gradient; by kPacked ours (engine/product/gelu.h), else
// LibTorch's.
at::Tensor HalfGelu(const at::Tensor& x,
                    HalfProducts how = ChooseHalfProducts());
at::Tensor HalfGeluBackward(const at::Tensor& gradient, const at::Tensor& x,
                            HalfProducts how = ChooseHalfProducts());

// Below, `how` is not kTorch; kPacked requires HavePackedProducts().

// x w^T + bias: [rows, out], in x's type. x [.., in], w [out, in], bias [out]
// or undefined.
at::Tensor HalfProduct(const at::Tensor& x, const at::Tensor& w,
                       const at::Tensor& bias,
                       HalfProducts how = ChooseHalfProducts());

// gradient w: [rows, in], in its type. gradient [.., out], w [out, in].
at::Tensor HalfInputGradient(const at::Tensor& gradient, const at::Tensor& w,
                             HalfProducts how = ChooseHalfProducts());

// gradient^T x: [out, in], in their type. gradient [.., out], x [.., in].
at::Tensor HalfWeightGradient(const at::Tensor& gradient, const at::Tensor& x,
                              HalfProducts how = ChooseHalfProducts());

}  // namespace stowage::engine
