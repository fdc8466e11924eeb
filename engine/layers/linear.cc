
#include "engine/layers/linear.h"

#include <ATen/ATen.h>
#include <ATen/cpu/Utils.h>
#include <torch/csrc/autograd/custom_function.h>

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

// fp32 memory of one shape after the other. Not a tensor for each, because the
// allocator hardly gives such a large block to the next layer again: a rank
// would hold all of them in passing.
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

// `weight` in fp32, valid until this thread's next call.
at::Tensor Widened(const at::Tensor& weight) {
  thread_local Scratch scratch;
  const at::NoGradGuard no_grad;
  return scratch.Shaped(weight.sizes()).copy_(weight);
}

// left^T x right, rounded to `dtype`.
at::Tensor WeightGradient(const at::Tensor& left, const at::Tensor& right,
                          at::ScalarType dtype) {
  thread_local Scratch scratch;
  const at::NoGradGuard no_grad;
  at::Tensor product = scratch.Shaped({left.size(1), right.size(1)});
  return at::mm_out(product, left.t(), right).to(dtype);
}

// Widens, multiplies in fp32, rounds once to the input's type.
struct WideLinear : torch::autograd::Function<WideLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias) {
    const at::Tensor rows = input.reshape({-1, input.size(-1)}).to(at::kFloat);
    const at::Tensor wide = Widened(weight);
    at::Tensor product;
    const bool has_bias = bias.has_value() && bias->defined();
    if (has_bias) {
      product = at::addmm(bias->to(at::kFloat), rows, wide.t());
    } else {
      product = at::mm(rows, wide.t());
    }
    context->save_for_backward({input, weight});
    context->saved_data["has_bias"] = has_bias;
    auto shape = input.sizes().vec();
    shape.back() = weight.size(0);
    return product.to(input.scalar_type()).view(shape);
  }

  static variable_list backward(AutogradContext* context,
                                variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& input = saved[0];
    const at::Tensor& weight = saved[1];
    const at::ScalarType dtype = input.scalar_type();
    const at::Tensor output_gradient =
        gradients[0].reshape({-1, weight.size(0)}).to(at::kFloat);
    at::Tensor input_gradient;
    at::Tensor weight_gradient;
    at::Tensor bias_gradient;
    if (context->needs_input_grad(1)) {
      const at::Tensor rows =
          input.reshape({-1, input.size(-1)}).to(at::kFloat);
      weight_gradient = WeightGradient(output_gradient, rows, dtype);
    }
    if (context->needs_input_grad(0)) {
      input_gradient = at::mm(output_gradient, Widened(weight))
                           .to(dtype)
                           .view(input.sizes());
    }
    if (context->saved_data["has_bias"].toBool() &&
        context->needs_input_grad(2)) {
      bias_gradient = output_gradient.sum(0).to(dtype);
    }
    return {input_gradient, weight_gradient, bias_gradient};
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
  if (!IsHalf(input) || !UseWideProducts()) {
    return bias.defined() ? at::linear(input, weight, bias)
                          : at::linear(input, weight);
  }
  return WideLinear::apply(
      input, weight,
      bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
}

at::Tensor CausalAttention(const at::Tensor& query, const at::Tensor& key,
                           const at::Tensor& value) {
  if (!IsHalf(query) || !UseWideProducts()) {
    return at::scaled_dot_product_attention(query, key, value, {}, 0.0, true);
  }
  return at::scaled_dot_product_attention(query.to(at::kFloat),
                                          key.to(at::kFloat),
                                          value.to(at::kFloat), {}, 0.0, true)
      .to(query.scalar_type());
}

}  // namespace stowage::engine
