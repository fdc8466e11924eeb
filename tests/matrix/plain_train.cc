// The reference of the configuration matrix: the same model, text and
// configuration file in one process of plain LibTorch, without ZeRO, server or
// exchange. Learning rate, betas and loss scale come from the schedule and the
// scaler that the tables of tests/parity/reference check; torch's own AdamW and
// clip_grad_norm_ do the rest.
//
// usage: plain_train DATA STEPS CONFIG RANKS [CONFIG RANKS ...]
// Prints a line for each pair: the losses, separated by blanks.

#include <ATen/ATen.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/status_macros.h"
#include "engine/config/config.h"
#include "engine/precision/loss_scaler.h"
#include "engine/schedule/schedule.h"
#include "engine/zero/coordinator.h"
#include "examples/gpt/model.h"
#include "examples/gpt/plain_builder.h"
#include "examples/gpt/text_data.h"

namespace stowage {
namespace {

namespace config = engine::config;
using torch::optim::AdamWOptions;

// As matrix_test.py gives them to stow-train.
constexpr std::uint64_t kSeed = 7;
const gpt::ModelOptions kModel = {
    .layers = 2, .width = 64, .heads = 4, .context = 32};

absl::StatusOr<engine::precision::LossScaler> ScalerOf(
    const config::Config& settings) {
  engine::precision::LossScalerOptions options;
  if (settings.precision == Dtype::kFp16) {
    options.kind = engine::precision::LossScaleKind::kDynamic;
    options.init_scale =
        std::ldexp(1.0, static_cast<int>(settings.fp16.initial_scale_power));
    options.scale_window = settings.fp16.loss_scale_window;
    options.hysteresis = settings.fp16.hysteresis;
    options.min_scale = settings.fp16.min_loss_scale;
  }
  return engine::precision::LossScaler::Create(options);
}

// fp32 masters beside the model's copies in its precision.
class PlainTrainer {
 public:
  PlainTrainer(const config::Config& settings, const gpt::TextData& data)
      : settings_(settings),
        data_(data),
        dtype_(engine::ToScalarType(settings.precision)),
        builder_(kSeed),
        model_(builder_, kModel) {
    std::vector<at::Tensor> decay;
    std::vector<at::Tensor> no_decay;
    for (const auto& [name, module] : builder_.modules()) {
      for (at::Tensor& parameter : module->parameters()) {
        at::Tensor master = parameter.detach().clone().requires_grad_(true);
        parameter.set_data(parameter.detach().to(dtype_));
        (master.dim() >= 2 ? decay : no_decay).push_back(master);
        masters_.push_back(master);
        copies_.push_back(parameter);
      }
    }
    const auto options = [&](double weight_decay) {
      auto made = std::make_unique<AdamWOptions>(settings.optimizer.lr);
      made->eps(settings.optimizer.eps).weight_decay(weight_decay);
      return made;
    };
    std::vector<torch::optim::OptimizerParamGroup> groups;
    groups.emplace_back(decay, options(settings.optimizer.weight_decay));
    groups.emplace_back(no_decay, options(0));
    optimizer_ = std::make_unique<torch::optim::AdamW>(groups);
  }

  absl::StatusOr<std::vector<double>> Run(int steps) {
    STOWAGE_ASSIGN_OR_RETURN(
        const engine::schedule::Schedule schedule,
        engine::schedule::Schedule::Create(
            settings_.scheduler,
            {{settings_.optimizer.lr, settings_.optimizer.betas}}));
    STOWAGE_ASSIGN_OR_RETURN(engine::precision::LossScaler scaler,
                             ScalerOf(settings_));
    std::vector<double> losses;
    std::int64_t applied = 0;
    for (int step = 0; step < steps; ++step) {
      losses.push_back(Accumulate(scaler.scale()));
      bool finite = true;
      for (const at::Tensor& master : masters_) {
        finite = finite && master.grad().isfinite().all().item<bool>();
      }
      STOWAGE_RETURN_IF_ERROR(scaler.Update(!finite).status());
      if (!finite) continue;
      if (settings_.gradient_clipping > 0) {
        torch::nn::utils::clip_grad_norm_(masters_,
                                          settings_.gradient_clipping);
      }
      Step(schedule, applied++);
    }
    return losses;
  }

 private:
  // One step's mean gradient in the masters. Returns: the mean loss.
  double Accumulate(double scale) {
    for (at::Tensor& master : masters_) {
      master.mutable_grad() = at::zeros_like(master);
    }
    const std::int64_t micro = settings_.train_micro_batch_size_per_gpu;
    const std::int64_t micros = settings_.train_batch_size / micro;
    double loss_sum = 0;
    for (std::int64_t j = 0; j < micros; ++j) {
      at::Tensor tokens = at::empty({micro, kModel.context}, at::kLong);
      at::Tensor targets = at::empty({micro, kModel.context}, at::kLong);
      for (std::int64_t b = 0; b < micro; ++b, ++sample_) {
        const unsigned char* window = data_.Sample(sample_);
        for (std::int64_t t = 0; t < kModel.context; ++t) {
          tokens[b][t] = static_cast<std::int64_t>(window[t]);
          targets[b][t] = static_cast<std::int64_t>(window[t + 1]);
        }
      }
      const at::Tensor loss = gpt::Loss(model_(tokens), targets);
      loss.backward(at::full_like(loss, scale));
      loss_sum += loss.item<double>();
      for (std::size_t p = 0; p < copies_.size(); ++p) {
        masters_[p].mutable_grad() += copies_[p].grad().to(at::kFloat);
        copies_[p].mutable_grad().reset();
      }
    }
    for (at::Tensor& master : masters_) {
      master.mutable_grad().div_(scale * static_cast<double>(micros));
    }
    return loss_sum / static_cast<double>(micros);
  }

  void Step(const engine::schedule::Schedule& schedule, std::int64_t applied) {
    for (auto& group : optimizer_->param_groups()) {
      auto& options = static_cast<AdamWOptions&>(group.options());
      const engine::schedule::Betas betas = schedule.BetasAt(applied, 0);
      options.lr(schedule.Lr(applied, 0));
      options.betas({betas.beta1, betas.beta2});
    }
    optimizer_->step();
    for (std::size_t p = 0; p < copies_.size(); ++p) {
      copies_[p].set_data(masters_[p].detach().to(dtype_));
    }
  }

  const config::Config& settings_;
  const gpt::TextData& data_;
  const at::ScalarType dtype_;
  gpt::PlainBuilder builder_;
  gpt::Model<gpt::PlainBuilder> model_;
  std::vector<at::Tensor> masters_;
  std::vector<at::Tensor> copies_;
  std::unique_ptr<torch::optim::AdamW> optimizer_;
  std::int64_t sample_ = 0;
};

absl::StatusOr<std::vector<double>> Losses(const std::string& file, int ranks,
                                           int steps,
                                           const gpt::TextData& data) {
  STOWAGE_ASSIGN_OR_RETURN(const config::Document document,
                           config::ReadConfigFile(file));
  config::TrainerValues values;
  values.world_size = ranks;
  STOWAGE_ASSIGN_OR_RETURN(const config::Resolution resolution,
                           config::Resolve(document, values));
  PlainTrainer trainer(resolution.config, data);
  return trainer.Run(steps);
}

int Main(int argc, char** argv) {
  if (argc < 5 || argc % 2 == 0) {
    std::fprintf(stderr,
                 "usage: plain_train DATA STEPS CONFIG RANKS [CONFIG RANKS "
                 "...]\n");
    return 2;
  }
  at::set_num_threads(1);
  const auto data = gpt::TextData::Load(argv[1], kModel.context, kSeed);
  if (!data.ok()) {
    std::fprintf(stderr, "%s\n", data.status().ToString().c_str());
    return 2;
  }
  for (int i = 3; i + 1 < argc; i += 2) {
    const auto losses =
        Losses(argv[i], std::atoi(argv[i + 1]), std::atoi(argv[2]), *data);
    if (!losses.ok()) {
      std::fprintf(stderr, "%s\n", losses.status().ToString().c_str());
      return 1;
    }
    for (const double loss : *losses) std::printf("%.17g ", loss);
    std::printf("\n");
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace stowage

int main(int argc, char** argv) { return stowage::Main(argc, argv); }
