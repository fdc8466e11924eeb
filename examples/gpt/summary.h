// summary.json, and the tables that end a run.

#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "examples/gpt/model.h"

namespace stowage::gpt {

struct RunFacts {
  std::int64_t parameters = 0;
  int ranks = 1;
  std::int64_t first_step = 0;  // steps committed before this run
  double first_loss = 0;
  double final_loss = 0;
  std::vector<double> step_ms;  // whole steps, this run
  std::vector<double> forward_ms;
  std::vector<double> backward_ms;
  std::vector<double> exposed_ms;  // waiting for versions and verdict
  double tokens_per_second = 0;
  std::int64_t tokens_per_step = 0;
  ServerInfo server;
  JobInfo job;
  engine::HeldBytes held;
  ModelOptions model;
  std::int64_t rank_private_bytes = 0;  // of rank 0's process, at the end
  int rank_threads = 0;
};

double Median(std::vector<double> values);

// Writes DIR/summary.json.
absl::Status WriteSummary(const std::string& path, const RunFacts& facts,
                          const engine::Engine& engine,
                          const std::string& config_resolved);

// Where every byte of state lived, how long each phase took, what stowd did.
void PrintTables(const RunFacts& facts, const engine::Engine& engine);

}  // namespace stowage::gpt
