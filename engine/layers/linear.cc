
#include "engine/layers/linear.h"

#include <ATen/ATen.h>
#include <ATen/cpu/Utils.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "common/environment.h"

namespace stowage::engine {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool IsHalf(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf ||
         tensor.scalar_type() == at::kBFloat16;
}

// A GPU has the instructions.
bool IsWide(const at::Tensor& tensor) {
  return tensor.is_cpu() && IsHalf(tensor) && UseWideProducts();
}

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
void ForPanels(const at::Tensor& weight, const Panel& panel) {
  const std::int64_t rows = weight.size(0);
  const std::int64_t row_bytes = std::max<std::int64_t>(weight.size(1) * 4, 1);
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

// left^T x right, rounded to the type of `weight` and in its shape.
at::Tensor WeightGradient(const at::Tensor& left, const at::Tensor& right,
                          const at::Tensor& weight) {
  thread_local Scratch scratch;
  at::Tensor gradient = at::empty_like(weight, at::MemoryFormat::Contiguous);
  ForPanels(weight, [&](std::int64_t row, std::int64_t rows) {
    at::Tensor product = scratch.Shaped({rows, right.size(1)});
    at::mm_out(product, left.narrow(1, row, rows).t(), right);
    gradient.narrow(0, row, rows).copy_(product);
  });
  return gradient;
}

at::Tensor Rows(const at::Tensor& tensor) {
  return tensor.reshape({-1, tensor.size(-1)}).to(at::kFloat);
}

// Widens, multiplies in fp32, rounds once to the input's type. With `gelu` of
// the input, which is what is kept.
struct WideLinear : torch::autograd::Function<WideLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, bool gelu) {
    const at::Tensor rows = Rows(gelu ? at::gelu(input, "tanh") : input);
    const bool has_bias = bias.has_value() && bias->defined();
    at::Tensor product = at::empty({rows.size(0), weight.size(0)}, at::kFloat);
    if (has_bias) product.copy_(*bias);
    ForPanels(weight, [&](std::int64_t row, std::int64_t count) {
      product.narrow(1, row, count)
          .addmm_(rows, WidenedRows(weight, row, count).t(),
                  /*beta=*/has_bias ? 1 : 0);
    });
    context->save_for_backward({input, weight});
    context->saved_data["has_bias"] = has_bias;
    context->saved_data["gelu"] = gelu;
    auto shape = input.sizes().vec();
    shape.back() = weight.size(0);
    return product.to(input.scalar_type()).view(shape);
  }

  static variable_list backward(AutogradContext* context,
                                variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& input = saved[0];
    const at::Tensor& weight = saved[1];
    const bool gelu = context->saved_data["gelu"].toBool();
    const at::ScalarType dtype = input.scalar_type();
    const at::Tensor output_gradient = Rows(gradients[0]);
    at::Tensor input_gradient;
    at::Tensor weight_gradient;
    at::Tensor bias_gradient;
    if (context->needs_input_grad(1)) {
      const at::Tensor rows = Rows(gelu ? at::gelu(input, "tanh") : input);
      weight_gradient = WeightGradient(output_gradient, rows, weight);
    }
    if (context->needs_input_grad(0)) {
      at::Tensor sum =
          at::empty({output_gradient.size(0), weight.size(1)}, at::kFloat);
      ForPanels(weight, [&](std::int64_t row, std::int64_t count) {
        sum.addmm_(output_gradient.narrow(1, row, count),
                   WidenedRows(weight, row, count), /*beta=*/row == 0 ? 0 : 1);
      });
      input_gradient = sum.to(dtype).view(input.sizes());
      if (gelu) {
        input_gradient = at::gelu_backward(input_gradient, input, "tanh");
      }
    }
    if (context->saved_data["has_bias"].toBool() &&
        context->needs_input_grad(2)) {
      bias_gradient = output_gradient.sum(0).to(dtype);
    }
    return {input_gradient, weight_gradient, bias_gradient, at::Tensor()};
  }
};

at::Tensor HeadsSideBySide(const at::Tensor& tensor) {
  return tensor.transpose(1, 2).reshape(
      {tensor.size(0), tensor.size(2), tensor.size(1) * tensor.size(3)});
}

// The reverse, in fp32.
at::Tensor ByHead(const at::Tensor& tensor, const at::Tensor& like) {
  return tensor.view({like.size(0), like.size(2), like.size(1), like.size(3)})
      .transpose(1, 2)
      .to(at::kFloat);
}

// Keeps the 16-bit inputs and output between forward and backward, not their
// fp32 copies.
struct WideAttention : torch::autograd::Function<WideAttention> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query,
                            const at::Tensor& key, const at::Tensor& value) {
    auto [output, logsumexp] = at::_scaled_dot_product_flash_attention_for_cpu(
        query.to(at::kFloat), key.to(at::kFloat), value.to(at::kFloat),
        /*dropout_p=*/0.0, /*is_causal=*/true);
    at::Tensor rounded = HeadsSideBySide(output).to(query.scalar_type());
    context->save_for_backward({query, key, value, rounded, logsumexp});
    return rounded;
  }

  static variable_list backward(AutogradContext* context,
                                variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& query = saved[0];
    const at::ScalarType dtype = query.scalar_type();
    auto [query_gradient, key_gradient, value_gradient] =
        at::_scaled_dot_product_flash_attention_for_cpu_backward(
            ByHead(gradients[0].contiguous(), query), query.to(at::kFloat),
            saved[1].to(at::kFloat), saved[2].to(at::kFloat),
            ByHead(saved[3], query), saved[4], /*dropout_p=*/0.0,
            /*is_causal=*/true);
    return {query_gradient.to(dtype), key_gradient.to(dtype),
            value_gradient.to(dtype)};
  }
};

}  // namespace

bool UseWideProducts() {
  static const bool wide = [] {
    if (const std::string choice = Environment("STOWAGE_WIDE_PRODUCTS");
        !choice.empty()) {
      return choice != "0";
    }
    return !__builtin_cpu_supports("avx512bf16");
  }();
  return wide;
}

at::Tensor Linear(const at::Tensor& input, const at::Tensor& weight,
                  const at::Tensor& bias) {
  if (!IsWide(input)) {
    return bias.defined() ? at::linear(input, weight, bias)
                          : at::linear(input, weight);
  }
  return WideLinear::apply(
      input, weight,
      bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt,
      /*gelu=*/false);
}

at::Tensor GeluLinear(const at::Tensor& input, const at::Tensor& weight,
                      const at::Tensor& bias) {
  if (!IsWide(input)) {
    return Linear(at::gelu(input, "tanh"), weight, bias);
  }
  return WideLinear::apply(
      input, weight,
      bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt,
      /*gelu=*/true);
}

at::Tensor CausalAttention(const at::Tensor& query, const at::Tensor& key,
                           const at::Tensor& value) {
  if (!IsWide(query)) {
    return HeadsSideBySide(
        at::scaled_dot_product_attention(query, key, value, {}, 0.0, true));
  }
  return WideAttention::apply(query, key, value);
}

}  // namespace stowage::engine
