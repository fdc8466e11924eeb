#include "examples/gpt/model.h"

#include <ATen/ATen.h>

#include <cmath>

#include "engine/layers/linear.h"

namespace stowage::gpt {
namespace {

at::Tensor Normal(std::initializer_list<std::int64_t> shape, double deviation) {
  const at::NoGradGuard no_gradients;
  return at::empty(shape).normal_(0.0, deviation);
}

constexpr double kDeviation = 0.02;
constexpr double kNormEpsilon = 1e-5;

}  // namespace

EmbedImpl::EmbedImpl(const ModelOptions& options) {
  token_ = register_parameter("token",
                              Normal({kVocabulary, options.width}, kDeviation));
  position_ = register_parameter(
      "position", Normal({options.context, options.width}, kDeviation),
      /*requires_grad=*/!options.freeze_positions);
}

at::Tensor EmbedImpl::forward(const at::Tensor& tokens_BT) {
  return at::embedding(token_, tokens_BT) +
         position_.narrow(0, 0, tokens_BT.size(1));
}

BlockImpl::BlockImpl(const ModelOptions& options, std::int64_t /*index*/)
    : heads_(options.heads) {
  const std::int64_t d = options.width;
  const double residual =
      kDeviation / std::sqrt(2.0 * static_cast<double>(options.layers));
  norm1_weight_ = register_parameter("norm1_weight", at::ones({d}));
  norm1_bias_ = register_parameter("norm1_bias", at::zeros({d}));
  qkv_weight_ =
      register_parameter("qkv_weight", Normal({3 * d, d}, kDeviation));
  qkv_bias_ = register_parameter("qkv_bias", at::zeros({3 * d}));
  proj_weight_ = register_parameter("proj_weight", Normal({d, d}, residual));
  proj_bias_ = register_parameter("proj_bias", at::zeros({d}));
  norm2_weight_ = register_parameter("norm2_weight", at::ones({d}));
  norm2_bias_ = register_parameter("norm2_bias", at::zeros({d}));
  fc_weight_ = register_parameter("fc_weight", Normal({4 * d, d}, kDeviation));
  fc_bias_ = register_parameter("fc_bias", at::zeros({4 * d}));
  out_weight_ = register_parameter("out_weight", Normal({d, 4 * d}, residual));
  out_bias_ = register_parameter("out_bias", at::zeros({d}));
}

at::Tensor BlockImpl::forward(const at::Tensor& x_BTD) {
  const std::int64_t batch = x_BTD.size(0);
  const std::int64_t tokens = x_BTD.size(1);
  const std::int64_t width = x_BTD.size(2);
  at::Tensor h =
      at::layer_norm(x_BTD, {width}, norm1_weight_, norm1_bias_, kNormEpsilon);
  const at::Tensor qkv = engine::Linear(h, qkv_weight_, qkv_bias_)
                             .view({batch, tokens, 3, heads_, width / heads_})
                             .permute({2, 0, 3, 1, 4});
  h = engine::CausalAttention(qkv[0], qkv[1], qkv[2]);
  const at::Tensor x = x_BTD + engine::Linear(h, proj_weight_, proj_bias_);
  h = at::layer_norm(x, {width}, norm2_weight_, norm2_bias_, kNormEpsilon);
  h = engine::Linear(h, fc_weight_, fc_bias_);
  return x + engine::GeluLinear(h, out_weight_, out_bias_);
}

HeadImpl::HeadImpl(const ModelOptions& options, const at::Tensor& tied) {
  norm_weight_ = register_parameter("norm_weight", at::ones({options.width}));
  norm_bias_ = register_parameter("norm_bias", at::zeros({options.width}));
  weight_ = register_parameter(
      "weight",
      tied.defined() ? tied : Normal({kVocabulary, options.width}, kDeviation));
}

at::Tensor HeadImpl::forward(const at::Tensor& x_BTD) {
  const at::Tensor h = at::layer_norm(x_BTD, {x_BTD.size(-1)}, norm_weight_,
                                      norm_bias_, kNormEpsilon);
  return engine::Linear(h, weight_, at::Tensor());
}

at::Tensor Loss(const at::Tensor& logits_BTV, const at::Tensor& targets_BT) {
  return at::cross_entropy_loss(
      logits_BTV.reshape({-1, logits_BTV.size(-1)}).to(at::kFloat),
      targets_BT.reshape({-1}));
}

}  // namespace stowage::gpt
