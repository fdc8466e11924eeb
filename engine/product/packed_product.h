// Products of matrices whose elements have 16 bits, on processors that multiply
// no such elements: operands are widened to fp32 as they are packed for the
// cache, sums are fp32, and the result is rounded once as it leaves the cache.
//
// Why not LibTorch's: it multiplies bf16 and fp16 element by element there
// (docs/design/0003), and widening, multiplying by its fp32 product and
// rounding are three passes over memory, with the packing inside the product a
// fifth of a step of 25 M parameters (docs/design/0012).
//
// Each element of the result is summed over the depth in one order, blocks of
// 256 one after the other, wherever it lies and however rows and columns are
// cut among threads: the same bits.
//
// Thread safety: thread-safe. A thread keeps its scratch memory: the left
// operand (of more than 252 rows, as many) in fp32, and 150 KiB.

#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace stowage::engine {

// A matrix in memory; one of the two strides (in elements) is 1.
struct Matrix {
  const void* data = nullptr;
  Dtype dtype = Dtype::kFp32;
  std::int64_t row_stride = 1;
  std::int64_t column_stride = 1;
};

// out = left x right + bias: [rows, columns], rounded to `out_dtype`.
struct PackedProduct {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t depth = 0;
  Matrix left;   // [rows, depth]
  Matrix right;  // [depth, columns]
  // [columns], elements of right's type; may be null.
  const void* bias = nullptr;
  void* out = nullptr;  // a row's elements are neighbours
  std::int64_t out_stride = 0;
  Dtype out_dtype = Dtype::kFp32;
};

// Whether this processor has kernels for it: AVX2, FMA and F16C.
bool HavePackedProducts();

// Threads may share columns, best in multiples of this.
inline constexpr std::int64_t kPackedColumns = 128;

// Columns [begin, end) of the product.
// Requires: HavePackedProducts(); 0 <= begin <= end <= columns; a stride of 1
// in each matrix; `out` overlaps no operand.
void Multiply(const PackedProduct& product, std::int64_t begin,
              std::int64_t end);

}  // namespace stowage::engine
