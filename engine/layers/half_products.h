// The three products of a linear layer whose tensors are 16-bit, on a CPU that
// multiplies no such elements: sums in fp32, each result rounded once.
//
// Two ways: packed products (engine/product), which widen and round inside; and
// LibTorch's fp32 products of panels widened before, which are the faster ones
// with AVX-512, and the only ones without AVX2.
//
// Rows are flattened: x [.., in] counts as [rows, in]. No function here records
// a graph for autograd. Errors: c10::Error where shapes, types or devices do
// not fit together. Thread safety: thread-safe; they share LibTorch's threads.

#pragma once

#include <ATen/core/Tensor.h>

namespace stowage::engine {

// fp16 or bf16.
bool IsHalf(const at::Tensor& tensor);

enum class ProductWay {
  kTorch,   // LibTorch's own 16-bit products
  kPanels,  // LibTorch's fp32 products, widened panel by panel
  kPacked,  // ours
};

// The best on this processor; STOWAGE_WIDE_PRODUCTS=0 (LibTorch's own),
// 1 (the better one in fp32) or panels overrides.
ProductWay ChooseProductWay();

// tanh GELU, and its gradient, of a 16-bit x; by kPacked ours
// (engine/product/gelu.h), else LibTorch's.
at::Tensor HalfGelu(const at::Tensor& x, ProductWay how = ChooseProductWay());
at::Tensor HalfGeluBackward(const at::Tensor& gradient, const at::Tensor& x,
                            ProductWay how = ChooseProductWay());

// Below, `how` is not kTorch; kPacked requires HavePackedProducts().

// x w^T + bias: [rows, out], in x's type. x [.., in], w [out, in], bias [out]
// or undefined.
at::Tensor HalfProduct(const at::Tensor& x, const at::Tensor& w,
                       const at::Tensor& bias,
                       ProductWay how = ChooseProductWay());

// gradient w: [rows, in], in its type. gradient [.., out], w [out, in].
at::Tensor HalfInputGradient(const at::Tensor& gradient, const at::Tensor& w,
                             ProductWay how = ChooseProductWay());

// gradient^T x: [out, in], in their type. gradient [.., out], x [.., in].
at::Tensor HalfWeightGradient(const at::Tensor& gradient, const at::Tensor& x,
                              ProductWay how = ChooseProductWay());

}  // namespace stowage::engine
