// What people see while rank 0 trains: one live line on a terminal, a line
// every few steps elsewhere.

#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "engine/engine.h"

namespace stowage::gpt {

class Progress {
 public:
  Progress(std::int64_t first_step, std::int64_t last_step,
           std::int64_t tokens_per_step);
  // `more` is put at the line's end.
  void Update(const engine::StepResult& result, const std::string& more);
  // Ends the live line.
  void Finish();

 private:
  std::int64_t first_step_;
  std::int64_t last_step_;
  std::int64_t tokens_per_step_;
  bool live_;
  bool line_open_ = false;
  std::chrono::steady_clock::time_point begin_;
  std::chrono::steady_clock::time_point last_print_;
};

}  // namespace stowage::gpt
