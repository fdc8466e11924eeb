#include "engine/layers/half_products.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "common/environment.h"
#include "engine/product/gelu.h"
#include "engine/product/packed_product.h"

namespace stowage::engine {
namespace {

at::Tensor Rows(const at::Tensor& tensor) {
  return tensor.reshape({-1, tensor.size(-1)});
}

// ---------------------------------------------------------------------------
// Packed

// Fewer multiplications than this are not worth another thread.
constexpr std::int64_t kThreadProducts = std::int64_t{1} << 22;

// And this many elements.
constexpr std::int64_t kThreadElems = std::int64_t{1} << 15;

Dtype HalfDtype(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf ? Dtype::kFp16 : Dtype::kBf16;
}

// Rows of neighbouring elements. The caller keeps `rows` alive.
Matrix AsMatrix(const at::Tensor& rows) {
  return {.data = rows.const_data_ptr(),
          .dtype = HalfDtype(rows),
          .row_stride = rows.size(1),
          .column_stride = 1};
}

Matrix Transposed(Matrix matrix) {
  std::swap(matrix.row_stride, matrix.column_stride);
  return matrix;
}

// Fills in the result and multiplies.
at::Tensor Multiplied(PackedProduct product, const at::TensorOptions& options) {
  at::Tensor out = at::empty({product.rows, product.columns}, options);
  product.out = out.mutable_data_ptr();
  product.out_stride = product.columns;
  product.out_dtype = product.left.dtype;
  const std::int64_t groups =
      (product.columns + kPackedColumns - 1) / kPackedColumns;
  const std::int64_t group_products =
      std::max<std::int64_t>(product.rows * product.depth * kPackedColumns, 1);
  at::parallel_for(0, groups,
                   std::max<std::int64_t>(kThreadProducts / group_products, 1),
                   [&](std::int64_t first, std::int64_t last) {
                     Multiply(product, first * kPackedColumns,
                              std::min(last * kPackedColumns, product.columns));
                   });
  return out;
}

at::Tensor PackedForward(const at::Tensor& x, const at::Tensor& w,
                         const at::Tensor& bias) {
  const at::Tensor rows = Rows(x).contiguous();
  const at::Tensor weight = w.contiguous();
  const at::Tensor added = bias.defined() ? bias.contiguous() : bias;
  return Multiplied(
      {.rows = rows.size(0),
       .columns = weight.size(0),
       .depth = weight.size(1),
       .left = AsMatrix(rows),
       .right = Transposed(AsMatrix(weight)),
       .bias = added.defined() ? added.const_data_ptr() : nullptr},
      x.options());
}

at::Tensor PackedInputGradient(const at::Tensor& gradient,
                               const at::Tensor& w) {
  const at::Tensor rows = Rows(gradient).contiguous();
  const at::Tensor weight = w.contiguous();
  return Multiplied({.rows = rows.size(0),
                     .columns = weight.size(1),
                     .depth = weight.size(0),
                     .left = AsMatrix(rows),
                     .right = AsMatrix(weight)},
                    gradient.options());
}

at::Tensor PackedWeightGradient(const at::Tensor& gradient,
                                const at::Tensor& x) {
  const at::Tensor left = Rows(gradient).contiguous();
  const at::Tensor right = Rows(x).contiguous();
  return Multiplied({.rows = left.size(1),
                     .columns = right.size(1),
                     .depth = left.size(0),
                     .left = Transposed(AsMatrix(left)),
                     .right = AsMatrix(right)},
                    gradient.options());
}

// ---------------------------------------------------------------------------
// Panels

// A weight is widened, and its gradient rounded, in panels of this many bytes
// of fp32: what a rank holds in passing does not grow with the model, and a
// panel is multiplied while it is still in the cache.
constexpr std::int64_t kPanelBytes = std::int64_t{1} << 20;

// fp32 memory of one shape after the other. Not a tensor for each, because the
// allocator hardly gives such a block to the next layer again: a rank would
// hold all of them in passing.
class Scratch {
 public:
  // Contents undefined; valid until the next call.
  at::Tensor Shaped(at::IntArrayRef sizes) {
    const std::int64_t elems = c10::multiply_integers(sizes);
    if (!buffer_.defined() || buffer_.numel() < elems) {
      buffer_ = at::Tensor();  // first, so that both are never held
      buffer_ = at::empty({elems}, at::kFloat);
    }
    return buffer_.narrow(0, 0, elems).view(sizes);
  }

 private:
  at::Tensor buffer_;
};

// Calls panel(first row, rows) for the rows of an [out, in] weight.
template <typename Panel>
void ForPanels(std::int64_t rows, std::int64_t columns, const Panel& panel) {
  const std::int64_t row_bytes = std::max<std::int64_t>(columns * 4, 1);
  // Multiples of 64: no panel ends in the middle of a product's own blocks.
  const std::int64_t step =
      std::max<std::int64_t>(kPanelBytes / row_bytes / 64 * 64, 64);
  for (std::int64_t row = 0; row < rows; row += step) {
    panel(row, std::min(step, rows - row));
  }
}

// Rows of `weight` in fp32, valid until this thread's next call.
at::Tensor WidenedRows(const at::Tensor& weight, std::int64_t row,
                       std::int64_t rows) {
  thread_local Scratch scratch;
  return scratch.Shaped({rows, weight.size(1)})
      .copy_(weight.narrow(0, row, rows));
}

at::Tensor PanelsForward(const at::Tensor& x, const at::Tensor& w,
                         const at::Tensor& bias) {
  const at::Tensor rows = Rows(x).to(at::kFloat);
  at::Tensor product = at::empty({rows.size(0), w.size(0)}, at::kFloat);
  if (bias.defined()) product.copy_(bias);
  ForPanels(w.size(0), w.size(1), [&](std::int64_t row, std::int64_t count) {
    product.narrow(1, row, count)
        .addmm_(rows, WidenedRows(w, row, count).t(),
                /*beta=*/bias.defined() ? 1 : 0);
  });
  return product.to(x.scalar_type());
}

at::Tensor PanelsInputGradient(const at::Tensor& gradient,
                               const at::Tensor& w) {
  const at::Tensor rows = Rows(gradient).to(at::kFloat);
  at::Tensor sum = at::empty({rows.size(0), w.size(1)}, at::kFloat);
  ForPanels(w.size(0), w.size(1), [&](std::int64_t row, std::int64_t count) {
    sum.addmm_(rows.narrow(1, row, count), WidenedRows(w, row, count),
               /*beta=*/row == 0 ? 0 : 1);
  });
  return sum.to(gradient.scalar_type());
}

at::Tensor PanelsWeightGradient(const at::Tensor& gradient,
                                const at::Tensor& x) {
  thread_local Scratch scratch;
  const at::Tensor left = Rows(gradient).to(at::kFloat);
  const at::Tensor right = Rows(x).to(at::kFloat);
  const std::int64_t in = right.size(1);
  at::Tensor whole = at::empty({left.size(1), in}, gradient.options());
  ForPanels(left.size(1), in, [&](std::int64_t row, std::int64_t count) {
    at::Tensor product = scratch.Shaped({count, in});
    at::mm_out(product, left.narrow(1, row, count).t(), right);
    whole.narrow(0, row, count).copy_(product);
  });
  return whole;
}

// With AVX-512 LibTorch's fp32 product has twice the width of ours.
HalfProducts BestInFp32() {
  return HavePackedProducts() && !__builtin_cpu_supports("avx512f")
             ? HalfProducts::kPacked
             : HalfProducts::kPanels;
}

}  // namespace

HalfProducts ChooseHalfProducts() {
  static const HalfProducts chosen = [] {
    const std::string choice = Environment("STOWAGE_WIDE_PRODUCTS");
    if (choice == "panels") return HalfProducts::kPanels;
    const bool wide =
        choice.empty() ? !__builtin_cpu_supports("avx512bf16") : choice != "0";
    return wide ? BestInFp32() : HalfProducts::kTorch;
  }();
  return chosen;
}

at::Tensor HalfGelu(const at::Tensor& x, HalfProducts how) {
  if (how != HalfProducts::kPacked) return at::gelu(x, "tanh");
  const at::Tensor from = x.contiguous();
  at::Tensor out = at::empty_like(from);
  const auto* const in =
      static_cast<const std::uint16_t*>(from.const_data_ptr());
  auto* const to = static_cast<std::uint16_t*>(out.mutable_data_ptr());
  at::parallel_for(
      0, from.numel(), kThreadElems, [&](std::int64_t begin, std::int64_t end) {
        TanhGelu(in + begin, HalfDtype(from), end - begin, to + begin);
      });
  return out;
}

at::Tensor HalfGeluBackward(const at::Tensor& gradient, const at::Tensor& x,
                            HalfProducts how) {
  if (how != HalfProducts::kPacked) {
    return at::gelu_backward(gradient, x, "tanh");
  }
  const at::Tensor given = gradient.contiguous();
  const at::Tensor from = x.contiguous();
  at::Tensor out = at::empty_like(from);
  const auto* const slope =
      static_cast<const std::uint16_t*>(given.const_data_ptr());
  const auto* const in =
      static_cast<const std::uint16_t*>(from.const_data_ptr());
  auto* const to = static_cast<std::uint16_t*>(out.mutable_data_ptr());
  at::parallel_for(0, from.numel(), kThreadElems,
                   [&](std::int64_t begin, std::int64_t end) {
                     TanhGeluBackward(slope + begin, in + begin,
                                      HalfDtype(from), end - begin, to + begin);
                   });
  return out;
}

at::Tensor HalfProduct(const at::Tensor& x, const at::Tensor& w,
                       const at::Tensor& bias, HalfProducts how) {
  return how == HalfProducts::kPacked ? PackedForward(x, w, bias)
                                      : PanelsForward(x, w, bias);
}

at::Tensor HalfInputGradient(const at::Tensor& gradient, const at::Tensor& w,
                             HalfProducts how) {
  return how == HalfProducts::kPacked ? PackedInputGradient(gradient, w)
                                      : PanelsInputGradient(gradient, w);
}

at::Tensor HalfWeightGradient(const at::Tensor& gradient, const at::Tensor& x,
                              HalfProducts how) {
  return how == HalfProducts::kPacked ? PackedWeightGradient(gradient, x)
                                      : PanelsWeightGradient(gradient, x);
}

}  // namespace stowage::engine
