// The order in which one micro step uses units, learnt in the first pass.
//
// A pass is one forward and its backward. The trace drives prefetch, release
// and eviction (plan/live_plan.h). A pass that leaves the trace is still right,
// only slower: it goes on without prefetch, and the next pass is recorded
// anew. A pass that stops early is no departure.
//
// Thread safety: externally synchronized.
// Source: DeepSpeed's partitioned parameter coordinator (behaviour only).

#pragma once

#include <cstdint>
#include <vector>

namespace stowage::plan {

class UseTrace {
 public:
  enum class State : std::uint8_t {
    kRecording,  // this pass is being recorded
    kFollowing,  // this pass follows the trace so far
    kDeparted,   // this pass left the trace; the next one records
  };

  State state() const { return state_; }

  // Uses of the recorded pass, oldest first; meaningless while recording.
  const std::vector<std::int32_t>& uses() const { return uses_; }
  // Index in uses() of the next use expected while following.
  std::int64_t position() const { return position_; }

  // A unit is about to be used. Returns its index in the trace, or -1 when
  // the pass is not following one.
  std::int64_t Use(std::int32_t unit);

  // The pass is over: a recording becomes the trace, a departed pass makes the
  // next one record. An empty recording stays a recording.
  void EndPass();

  // Takes a trace from an earlier run of the job.
  void Restore(std::vector<std::int32_t> uses);

 private:
  State state_ = State::kRecording;
  std::vector<std::int32_t> uses_;
  std::int64_t position_ = 0;
};

}  // namespace stowage::plan
