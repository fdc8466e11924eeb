// A small byte-level GPT, built unit by unit.
//
// embed -> blocks -> head; each is one unit. The builder decides what a unit
// is: the engine's (ZeRO) or a plain one (PlainBuilder: the same model in one
// process, for parity tests and benchmarks).
//
// Shapes: B samples, T tokens, D width, H heads, V = 256 bytes.
// Source: Radford et al., "Language Models are Unsupervised Multitask
//   Learners", section "Model".

#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace stowage::gpt {

inline constexpr std::int64_t kVocabulary = 256;

struct ModelOptions {
  std::int64_t layers = 6;
  std::int64_t width = 384;
  std::int64_t heads = 6;
  std::int64_t context = 128;     // tokens
  bool tied = false;              // the head reads the token embedding
  bool freeze_positions = false;  // position embeddings are not trained
};

// tokens_BT (int64) -> x_BTD.
class EmbedImpl : public torch::nn::Module {
 public:
  explicit EmbedImpl(const ModelOptions& options);
  at::Tensor forward(const at::Tensor& tokens_BT);
  const at::Tensor& token_weight() const { return token_; }

 private:
  at::Tensor token_;     // V x D
  at::Tensor position_;  // context x D
};

// x_BTD -> x_BTD: attention and MLP, each behind a norm and around a residual.
class BlockImpl : public torch::nn::Module {
 public:
  BlockImpl(const ModelOptions& options, std::int64_t index);
  at::Tensor forward(const at::Tensor& x_BTD);

 private:
  std::int64_t heads_;
  at::Tensor norm1_weight_, norm1_bias_, qkv_weight_, qkv_bias_;
  at::Tensor proj_weight_, proj_bias_, norm2_weight_, norm2_bias_;
  at::Tensor fc_weight_, fc_bias_, out_weight_, out_bias_;
};

// x_BTD -> logits_BTV.
class HeadImpl : public torch::nn::Module {
 public:
  // `tied`: the token embedding to read, or undefined for an own weight.
  HeadImpl(const ModelOptions& options, const at::Tensor& tied);
  at::Tensor forward(const at::Tensor& x_BTD);

 private:
  at::Tensor norm_weight_, norm_bias_, weight_;
};

// Mean cross entropy in fp32 of predicting targets_BT.
at::Tensor Loss(const at::Tensor& logits_BTV, const at::Tensor& targets_BT);

// Builder: AddUnit<M>(name, std::function<std::shared_ptr<M>()>) returns
// something callable like M::forward, with module().
template <typename Builder>
class Model {
 public:
  template <typename M>
  using Unit = decltype(std::declval<Builder&>().template AddUnit<M>(
      std::string(), std::function<std::shared_ptr<M>()>()));

  Model(Builder& builder, const ModelOptions& options)
      : embed_(builder.template AddUnit<EmbedImpl>("embed", [options] {
          return std::make_shared<EmbedImpl>(options);
        })) {
    for (std::int64_t i = 0; i < options.layers; ++i) {
      blocks_.push_back(builder.template AddUnit<BlockImpl>(
          "block." + std::to_string(i),
          [options, i] { return std::make_shared<BlockImpl>(options, i); }));
    }
    const at::Tensor tied =
        options.tied ? embed_.module().token_weight() : at::Tensor();
    head_ = builder.template AddUnit<HeadImpl>("head", [options, tied] {
      return std::make_shared<HeadImpl>(options, tied);
    });
  }

  // tokens_BT -> logits_BTV.
  at::Tensor operator()(const at::Tensor& tokens_BT) {
    at::Tensor x = embed_(tokens_BT);
    for (auto& block : blocks_) x = block(x);
    return head_(x);
  }

 private:
  Unit<EmbedImpl> embed_;
  std::vector<Unit<BlockImpl>> blocks_;
  Unit<HeadImpl> head_;
};

}  // namespace stowage::gpt
