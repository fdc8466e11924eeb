
#include "engine/layers/linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "engine/layers/half_products.h"

namespace stowage::engine {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A GPU has the instructions.
bool IsWide(const at::Tensor& tensor) {
  return tensor.is_cpu() && IsHalf(tensor) && UseWideProducts();
}

// What backward makes has no graph of its own.
void CheckOnce() {
  TORCH_CHECK(!at::GradMode::is_enabled(),
              "16-bit linear layers and attention can be differentiated once "
              "on this CPU; STOWAGE_WIDE_PRODUCTS=0 chooses LibTorch's");
}

// Sums in fp32, rounded once to the input's type. With `gelu` of the input,
// which is what is kept.
struct WideLinear : torch::autograd::Function<WideLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, bool gelu) {
    context->save_for_backward({input, weight});
    context->saved_data["has_bias"] = bias.has_value();
    context->saved_data["gelu"] = gelu;
    auto shape = input.sizes().vec();
    shape.back() = weight.size(0);
    return HalfProduct(gelu ? HalfGelu(input) : input, weight,
                       bias.value_or(at::Tensor()))
        .view(shape);
  }

  static variable_list backward(AutogradContext* context,
                                variable_list gradients) {
    CheckOnce();
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& input = saved[0];
    const at::Tensor& weight = saved[1];
    const at::Tensor& gradient = gradients[0];
    const bool gelu = context->saved_data["gelu"].toBool();
    at::Tensor input_gradient;
    at::Tensor weight_gradient;
    at::Tensor bias_gradient;
    if (context->needs_input_grad(1)) {
      weight_gradient =
          HalfWeightGradient(gradient, gelu ? HalfGelu(input) : input);
    }
    if (context->needs_input_grad(0)) {
      input_gradient = HalfInputGradient(gradient, weight).view(input.sizes());
      if (gelu) {
        input_gradient = HalfGeluBackward(input_gradient, input);
      }
    }
    if (context->saved_data["has_bias"].toBool() &&
        context->needs_input_grad(2)) {
      bias_gradient = gradient.reshape({-1, gradient.size(-1)})
                          .sum(0, /*keepdim=*/false, at::kFloat)
                          .to(gradient.scalar_type());
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
    CheckOnce();
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

bool UseWideProducts() { return ChooseProductWay() != ProductWay::kTorch; }

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
