// The flags that stand for a trainer where none runs: what fills "auto".
//
// Names and defaults are stow-train's, so that what `stowctl config explain`
// shows is what `stow-train` with the same flags does. What no default can
// stand for (learning rate, micro batch, hidden size, number of steps) stays
// open: "auto" is then an error that names the flag.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/config/config.h"
#include <CLI/CLI.hpp>

namespace stowage::cli {

struct TrainerFlags {
  std::int64_t world_size = 1;
  std::optional<std::int64_t> micro_batch;
  std::optional<std::int64_t> accumulation;
  std::optional<std::int64_t> train_batch;
  std::optional<std::int64_t> hidden_size;
  std::optional<std::int64_t> steps;
  std::optional<std::int64_t> warmup_steps;
  std::optional<double> lr;
  std::vector<double> betas;  // none or two
  std::optional<double> eps;
  std::optional<double> weight_decay;
  std::optional<double> max_grad_norm;
  std::optional<std::string> precision;

  engine::config::TrainerValues Values() const;
};

// Adds the flags to `command`. Ownership: the result lives as long as the
// command's callbacks hold it.
std::shared_ptr<TrainerFlags> AddTrainerFlags(CLI::App& command);

}  // namespace stowage::cli
