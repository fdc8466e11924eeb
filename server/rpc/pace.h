// How often something may begin: so many at once, then so many a second. What
// comes faster waits its turn on its own thread, and is refused if that would
// take long or too many wait already: a flood costs the one who makes it time,
// not the server its cores, and not the jobs beside it their steps.
//
// Source: the generic cell rate algorithm (ITU-T I.371, annex A), as a schedule
//   of turns.

#pragma once

#include <chrono>
#include <string>

#include "absl/status/status.h"
#include "common/mutex.h"

namespace stowage::rpc {

struct PaceOptions {
  std::string what;         // "new sessions": for messages
  double per_second = 100;  // once the burst is used up
  int burst = 100;
  int waiting_max = 16;
  std::chrono::milliseconds wait_max{2000};
};

// Thread safety: thread-safe.
class Pace {
 public:
  explicit Pace(PaceOptions options);
  Pace(const Pace&) = delete;
  Pace& operator=(const Pace&) = delete;
  ~Pace() = default;

  // Returns when it is the caller's turn.
  // Errors: kResourceExhausted, with the rate.
  // Blocks: for at most wait_max, or until Stop().
  absl::Status Take();

  // Nobody waits any more: every turn is now.
  void Stop();

 private:
  using Clock = std::chrono::steady_clock;

  const PaceOptions options_;
  const Clock::duration between_;
  Mutex mutex_;
  CondVar stopped_changed_;
  bool stopped_ GUARDED_BY(mutex_) = false;
  int waiting_ GUARDED_BY(mutex_) = 0;
  Clock::time_point next_ GUARDED_BY(mutex_);  // the next one's turn
  // A flood is one line in the log, until it is over.
  bool logged_ GUARDED_BY(mutex_) = false;
};

}  // namespace stowage::rpc
