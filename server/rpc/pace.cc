#include "server/rpc/pace.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace stowage::rpc {

Pace::Pace(PaceOptions options)
    : options_(std::move(options)),
      between_(std::chrono::duration_cast<Clock::duration>(
          std::chrono::duration<double>(1 / options_.per_second))) {}

absl::Status Pace::Take() {
  const MutexLock lock(mutex_);
  const auto now = Clock::now();
  // Turns that nobody took are kept, up to the burst.
  const auto turn = std::max(next_, now - between_ * (options_.burst - 1));
  if (turn <= now || stopped_) {
    next_ = turn + between_;
    if (now - turn > between_ * (options_.burst / 2)) logged_ = false;
    return absl::OkStatus();
  }
  if (turn - now > options_.wait_max || waiting_ >= options_.waiting_max) {
    absl::Status status = absl::ResourceExhaustedError(
        absl::StrCat("the server takes ", options_.per_second, " ",
                     options_.what, " a second and gets more; try later"));
    if (!std::exchange(logged_, true)) {
      log::Warning("flood", {{"reason", status.message()}});
    }
    return status;
  }
  next_ = turn + between_;
  ++waiting_;
  while (!stopped_ && Clock::now() < turn) {
    stopped_changed_.WaitFor(mutex_, turn - Clock::now());
  }
  --waiting_;
  return absl::OkStatus();
}

void Pace::Stop() {
  const MutexLock lock(mutex_);
  stopped_ = true;
  stopped_changed_.NotifyAll();
}

}  // namespace stowage::rpc
