#include "engine/plan/use_trace.h"

#include <utility>

namespace stowage::plan {

std::int64_t UseTrace::Use(std::int32_t unit) {
  if (state_ == State::kRecording) {
    uses_.push_back(unit);
    return -1;
  }
  if (state_ == State::kDeparted) return -1;
  if (position_ >= static_cast<std::int64_t>(uses_.size()) ||
      uses_[static_cast<std::size_t>(position_)] != unit) {
    state_ = State::kDeparted;
    return -1;
  }
  return position_++;
}

void UseTrace::EndPass() {
  if (state_ == State::kDeparted) {
    uses_.clear();
    state_ = State::kRecording;
  } else if (!uses_.empty()) {
    state_ = State::kFollowing;
  }
  position_ = 0;
}

void UseTrace::Restore(std::vector<std::int32_t> uses) {
  uses_ = std::move(uses);
  state_ = uses_.empty() ? State::kRecording : State::kFollowing;
  position_ = 0;
}

}  // namespace stowage::plan
