// Waits for the reasons to stop: SIGTERM, SIGINT, the parent's end.
//
// Signals are blocked in all threads and read from a descriptor, so that
// nothing runs in a signal handler.
//
// Source: signalfd(2); poll(2).

#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/unique_fd.h"

namespace stowage {

// Thread safety: one thread: main. Create before any other thread starts:
// threads inherit the blocked signals.
class StopSignal {
 public:
  // `parent_fd`: read end of a pipe whose other end the parent holds; -1: none.
  static absl::StatusOr<StopSignal> Create(int parent_fd);

  // Returns: why to stop, for the log. Blocks: until then.
  std::string Wait();

 private:
  StopSignal() = default;
  UniqueFd signals_;
  int parent_fd_ = -1;
};

}  // namespace stowage
