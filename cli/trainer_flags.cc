#include "cli/trainer_flags.h"

#include <algorithm>

#include "common/dtype.h"

namespace stowage::cli {

std::shared_ptr<TrainerFlags> AddTrainerFlags(CLI::App& command) {
  auto flags = std::make_shared<TrainerFlags>();
  CLI::Option_group* group = command.add_option_group(
      "the trainer's values (fill \"auto\" in the file)");
  group->add_option("--world-size,--ranks", flags->world_size, "Ranks")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  group->add_option("--hidden-size,--width", flags->hidden_size,
                    "The model's hidden size");
  group->add_option("--micro-batch", flags->micro_batch,
                    "Samples of a rank in a micro step");
  group->add_option("--accumulation", flags->accumulation,
                    "Micro steps of a step; default 1");
  group->add_option("--train-batch", flags->train_batch, "Samples of a step");
  group->add_option("--lr", flags->lr, "Learning rate");
  group->add_option("--betas", flags->betas, "Adam's betas; default 0.9 0.999")
      ->expected(2)
      ->delimiter(',');
  group->add_option("--eps", flags->eps, "Adam's eps; default 1e-8");
  group->add_option("--weight-decay", flags->weight_decay, "Default 0.01");
  group->add_option("--warmup-steps", flags->warmup_steps,
                    "Default a fifth of --steps, else 1");
  group->add_option("--steps", flags->steps, "Optimizer steps of the run")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40));
  group->add_option("--max-grad-norm", flags->max_grad_norm, "Default 1.0");
  group
      ->add_option("--precision", flags->precision,
                   "fp16 (default), bf16 or fp32")
      ->check(CLI::IsMember({"fp16", "bf16", "fp32"}));
  return flags;
}

engine::config::TrainerValues TrainerFlags::Values() const {
  using engine::config::TrainerValue;
  engine::config::TrainerValues values;
  const auto given = [](const auto& flag, auto* value) {
    if (flag) *value = {*flag, true};
  };
  values.world_size = world_size;
  given(micro_batch, &values.micro_batch);
  given(train_batch, &values.train_batch_size);
  given(hidden_size, &values.hidden_size);
  given(lr, &values.lr);
  values.gradient_accumulation_steps = {accumulation.value_or(1),
                                        accumulation.has_value()};
  values.betas = TrainerValue<engine::schedule::Betas>(
      betas.size() == 2 ? engine::schedule::Betas{betas[0], betas[1]}
                        : engine::schedule::Betas{},
      betas.size() == 2);
  values.eps = {eps.value_or(1e-8), eps.has_value()};
  values.weight_decay = {weight_decay.value_or(0.01), weight_decay.has_value()};
  values.max_grad_norm = {max_grad_norm.value_or(1.0),
                          max_grad_norm.has_value()};
  if (steps) {
    values.total_num_steps = {*steps, false};
    values.warmup_num_steps = {std::max<std::int64_t>(1, *steps / 5), false};
  }
  // Without any, as transformers' Trainer: no warm-up, which counts as 1.
  if (!steps) values.warmup_num_steps = {1, false};
  given(warmup_steps, &values.warmup_num_steps);
  values.precision = {ParseDtype(precision.value_or("fp16")).value(),
                      precision.has_value()};
  // What --train-batch leaves for one rank's micro step, as stow-train.
  if (train_batch && !micro_batch) {
    values.micro_batch = {
        std::max<std::int64_t>(
            1, *train_batch / (world_size * accumulation.value_or(1))),
        false};
  }
  return values;
}

}  // namespace stowage::cli
