// The flags of stow-train.

#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/config/config.h"
#include "examples/gpt/model.h"

namespace stowage::gpt {

struct Options {
  std::string config;
  std::string data;
  std::int64_t steps =
      100;          // committed steps at the end, resumed ones included
  int ranks = 0;    // 0: torchrun's variables, or one rank
  std::string out;  // empty: nothing is written
  std::string server;
  std::string job;
  bool keep = false;
  std::string save;             // folder of checkpoints; empty: none are made
  std::int64_t save_every = 0;  // steps; 0: at the end only
  std::int64_t save_keep = 0;   // checkpoints left in the folder; 0: all
  std::string resume;           // empty, "latest", a step or a path
  std::string exchange;
  std::string device = "cpu";
  ModelOptions model;
  std::optional<std::int64_t> micro_batch;
  std::optional<std::int64_t> accumulation;
  std::optional<std::int64_t> train_batch;
  std::string precision = "fp16";
  bool precision_set = false;
  std::uint64_t seed = 1;
  std::optional<double> lr;
  std::optional<double> weight_decay;
  std::optional<std::int64_t> warmup_steps;
  std::optional<double> max_grad_norm;
  std::int64_t sample_bytes = 160;  // generated before and after; 0: none
  bool save_weights = true;
  int server_threads = 0;
  int rank_threads = 0;    // of LibTorch in a rank; 0: cores / ranks
  std::string trace_file;  // JSON lines of every step: loss, norm, ...
  std::string log_level = "info";
  bool log_level_set = false;  // by the flag, which wins over the file
};

// Parses the command line. On --help, --version or an error prints it and
// returns the exit code for the process instead of options.
struct ParsedOptions {
  std::optional<Options> options;
  int exit_code = 0;
};
ParsedOptions ParseOptions(int argc, char** argv);

// What fills the configuration's "auto": flags, and the trainer's defaults.
engine::config::TrainerValues MakeTrainerValues(const Options& options,
                                                int world_size);

}  // namespace stowage::gpt
