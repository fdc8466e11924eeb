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

// Fewer multiplications, or elements, are not worth another thread.
constexpr std::int64_t kThreadProducts = std::int64_t{1} << 22;
constexpr std::int64_t kThreadElems = std::int64_t{1} << 15;
// And fewer rows: each thread packs what it needs of the right operand.
constexpr std::int64_t kThreadRows = 48;

Dtype HalfDtype(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_cpu() && IsHalf(tensor),
              "a 16-bit product: ", tensor.scalar_type(), " on ",
              tensor.device(), "; expected fp16 or bf16 on the CPU");
  return tensor.scalar_type() == at::kHalf ? Dtype::kFp16 : Dtype::kBf16;
}

// The memory is read as it lies: nothing below looks at shapes again.
void CheckOperands(const at::Tensor& a, const at::Tensor& b,
                   std::int64_t a_depth, std::int64_t b_depth) {
  TORCH_CHECK(b.dim() == 2, "a 16-bit product: ", b.sizes(),
              " is not a matrix");
  TORCH_CHECK(a.scalar_type() == b.scalar_type(),
              "a 16-bit product: ", a.scalar_type(), " and ", b.scalar_type());
  TORCH_CHECK(a_depth == b_depth, "a 16-bit product: ", a.sizes(), " and ",
              b.sizes(), " do not fit together");
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

// The product's rows [begin, end).
PackedProduct RowsOf(PackedProduct product, std::int64_t begin,
                     std::int64_t end) {
  product.left.data =
      static_cast<const char*>(product.left.data) +
      begin * product.left.row_stride * DtypeBytes(product.left.dtype);
  product.out = static_cast<char*>(product.out) +
                begin * product.out_stride * DtypeBytes(product.out_dtype);
  product.rows = end - begin;
  return product;
}

// Groups of columns, and parts of the rows if these are fewer than threads: a
// thread takes its share of all pairs, columns of one part in one call.
void MultiplyByThreads(const PackedProduct& product) {
  const std::int64_t groups =
      (product.columns + kPackedColumns - 1) / kPackedColumns;
  if (groups == 0 || product.rows == 0) return;
  const std::int64_t parts =
      std::min((at::get_num_threads() + groups - 1) / groups,
               (product.rows + kThreadRows - 1) / kThreadRows);
  const std::int64_t part_rows = (product.rows + parts - 1) / parts;
  const std::int64_t each =
      std::max<std::int64_t>(part_rows * product.depth * kPackedColumns, 1);
  at::parallel_for(
      0, parts * groups, std::max<std::int64_t>(kThreadProducts / each, 1),
      [&](std::int64_t first, std::int64_t last) {
        while (first < last) {
          const std::int64_t part = first / groups;
          const std::int64_t end = std::min(last, (part + 1) * groups);
          const std::int64_t row = part * part_rows;
          const std::int64_t row_end = std::min(row + part_rows, product.rows);
          if (row < row_end) {
            Multiply(RowsOf(product, row, row_end),
                     (first - part * groups) * kPackedColumns,
                     std::min((end - part * groups) * kPackedColumns,
                              product.columns));
          }
          first = end;
        }
      });
}

// Fills in the result and multiplies.
at::Tensor Multiplied(PackedProduct product, const at::TensorOptions& options) {
  at::Tensor out = at::empty({product.rows, product.columns}, options);
  product.out = out.mutable_data_ptr();
  product.out_stride = product.columns;
  product.out_dtype = product.left.dtype;
  MultiplyByThreads(product);
  return out;
}

at::Tensor PackedForward(const at::Tensor& x, const at::Tensor& w,
                         const at::Tensor& bias) {
  const at::Tensor rows = Rows(x).contiguous();
  const at::Tensor weight = w.contiguous();
  CheckOperands(rows, weight, rows.size(1), weight.size(1));
  at::Tensor added;
  if (bias.defined()) {
    TORCH_CHECK(bias.dim() == 1 && bias.size(0) == weight.size(0),
                "a 16-bit product: a bias of ", bias.sizes(), " for ",
                weight.size(0), " outputs");
    added = bias.to(weight.options()).contiguous();
  }
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
  CheckOperands(rows, weight, rows.size(1), weight.size(0));
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
  CheckOperands(left, right, left.size(0), right.size(0));
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

bool CpuHas16BitProducts() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

// With AVX-512 LibTorch's fp32 product has twice the width of ours.
ProductWay BestInFp32() {
#if defined(__x86_64__)
  if (HavePackedProducts() && __builtin_cpu_supports("avx512f") == 0) {
    return ProductWay::kPacked;
  }
#endif
  return ProductWay::kPanels;
}

}  // namespace

bool IsHalf(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf ||
         tensor.scalar_type() == at::kBFloat16;
}

ProductWay ChooseProductWay() {
  static const ProductWay chosen = [] {
    const std::string choice = Environment("STOWAGE_WIDE_PRODUCTS");
    if (choice == "panels") return ProductWay::kPanels;
    const bool wide = choice.empty() ? !CpuHas16BitProducts() : choice != "0";
    return wide ? BestInFp32() : ProductWay::kTorch;
  }();
  return chosen;
}

at::Tensor HalfGelu(const at::Tensor& x, ProductWay how) {
  if (how != ProductWay::kPacked) return at::gelu(x, "tanh");
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
                            ProductWay how) {
  if (how != ProductWay::kPacked) {
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
                       const at::Tensor& bias, ProductWay how) {
  return how == ProductWay::kPacked ? PackedForward(x, w, bias)
                                    : PanelsForward(x, w, bias);
}

at::Tensor HalfInputGradient(const at::Tensor& gradient, const at::Tensor& w,
                             ProductWay how) {
  return how == ProductWay::kPacked ? PackedInputGradient(gradient, w)
                                    : PanelsInputGradient(gradient, w);
}

at::Tensor HalfWeightGradient(const at::Tensor& gradient, const at::Tensor& x,
                              ProductWay how) {
  return how == ProductWay::kPacked ? PackedWeightGradient(gradient, x)
                                    : PanelsWeightGradient(gradient, x);
}

}  // namespace stowage::engine
