// When stow-train saves, and what people see of it.

#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint_spec.h"
#include "engine/engine.h"
#include "examples/gpt/options.h"

namespace stowage::gpt {

// What --save and --resume come to: an absolute folder to save to (empty:
// none), and where the state comes from.
struct CheckpointPlan {
  std::string folder;
  LoadSpec load;

  // What a private server must be allowed to use.
  std::vector<std::string> roots() const;
};

// Errors: kInvalidArgument for flags that do not fit together.
absl::StatusOr<CheckpointPlan> PlanCheckpoints(const Options& options);

// Rank 0's view of the saves of a run. A save that is still being written when
// the next is due makes that one be left out, with a line that says so:
// training does not wait. Nor does a save that fails end it, but the last one.
class Checkpoints {
 public:
  Checkpoints(const Options& options, std::string folder,
              engine::Engine& engine);

  // After each step. Returns: what to show of a save that runs, or "".
  absl::StatusOr<std::string> AfterStep();

  // Saves the last step, if it was not, and waits for its end.
  absl::Status Finish();

  // Milliseconds that each save held the loop up (its request).
  double request_ms_max() const { return request_ms_max_; }

 private:
  absl::Status Begin();
  absl::StatusOr<std::string> Look();
  void Tell(const SaveInfo& save);

  const Options& options_;
  const std::string folder_;  // empty: nothing is saved
  engine::Engine& engine_;
  bool running_ = false;
  std::int64_t last_saved_ = -1;  // step
  std::chrono::steady_clock::time_point last_look_;
  std::string failed_;     // why the last one failed; empty: it did not
  double request_ms_ = 0;  // of the one that runs
  double request_ms_max_ = 0;
};

}  // namespace stowage::gpt
