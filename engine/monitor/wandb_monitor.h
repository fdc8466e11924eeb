// Weights & Biases, through its own Python client in a process beside training.
//
// The helper (wandb_helper.py) gets one packet per step through a socket whose
// buffer is the only queue: a packet that does not fit is dropped and counted,
// nothing ever waits. A helper that cannot be started, has no wandb package or
// ends early costs its numbers and one line in the log, not the run.

#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/monitor/monitor.h"

namespace stowage::engine::monitor {

struct WandbOptions {
  std::string python = "python3";  // looked for in PATH if it has no '/'
  std::string project = "deepspeed";
  std::string group;                  // empty: none
  std::string team;                   // empty: wandb's default entity
  std::string directory;              // of wandb's files and wandb-helper.log
  std::string config_json = "{}";     // shown with the run
  std::int64_t queue_bytes = 262144;  // of the socket
};

// Errors: kInvalidArgument if the directory cannot be made. That the helper
//   cannot be started is no error here: WriteEvents() says so.
absl::StatusOr<std::unique_ptr<Monitor>> CreateWandbMonitor(
    const WandbOptions& options);

}  // namespace stowage::engine::monitor
