// Which units a rank holds gathered: what to fetch, prefetch, keep and release.
//
// Pure bookkeeping over unit indices and element counts; the coordinator
// carries the decisions out. Tested by exhaustion over all small traces.
//
// Rules, with n(u) the non-persistent elements of unit u:
//   - The limit is max(max_live_elems, largest need), where the need of a use
//     is the unit and the units it borrows. Gathered elements never exceed it
//     (persistent parameters come on top; they are never released).
//   - After a use, a unit is kept if its next use lies less than
//     max_reuse_distance_elems away (elements of the uses in between), else
//     released. Off the trace it is released at once.
//   - When a use needs room, kept and prefetched units that are not in use are
//     released, farthest next use first (Belady's rule).
//   - After a fetch, the coming uses are prefetched in order until
//     prefetch_bucket_elems elements or more are under way ahead of their use
//     (the last unit may exceed it), or the limit is reached; nothing is
//     released to make room for a prefetch.
//
// Thread safety: externally synchronized.
// Source: Belady, "A Study of Replacement Algorithms for a Virtual-Storage
//   Computer"; DeepSpeed's keys of the same names.

#pragma once

#include <cstdint>
#include <vector>

#include "engine/plan/use_trace.h"

namespace stowage::plan {

struct LiveLimits {
  std::int64_t max_live_elems = 1'000'000'000;
  std::int64_t max_reuse_distance_elems = 1'000'000'000;
  std::int64_t prefetch_bucket_elems = 50'000'000;
};

class LivePlan {
 public:
  struct Unit {
    std::int64_t elems = 0;             // non-persistent
    std::vector<std::int32_t> borrows;  // units whose parameters it also reads
  };

  // What the coordinator is to do, in this order.
  struct Actions {
    std::vector<std::int32_t> release;
    std::vector<std::int32_t> fetch;     // needed now
    std::vector<std::int32_t> prefetch;  // may come later
  };

  LivePlan(LiveLimits limits, std::vector<Unit> units);

  // A use of `unit` begins (its forward or its backward).
  Actions BeginUse(std::int32_t unit);
  // Uses outside the trace (evaluation): fetches, releases at the end, never
  // prefetches, leaves the trace's position alone.
  Actions BeginUntracedUse(std::int32_t unit);
  // Ends a use; `release` is filled only.
  Actions EndUse(std::int32_t unit);
  Actions EndUntracedUse(std::int32_t unit);

  // The pass (forward and backward) is over: uses still open are closed, and
  // what the next pass does not want soon is released.
  Actions EndPass();

  // The coordinator did not start this prefetch after all.
  void CancelPrefetch(std::int32_t unit);

  bool IsLive(std::int32_t unit) const { return At(unit).live; }
  std::int64_t live_elems() const { return live_elems_; }
  std::int64_t limit_elems() const { return limit_elems_; }
  const UseTrace& trace() const { return trace_; }
  void RestoreTrace(std::vector<std::int32_t> uses);

 private:
  struct State {
    bool live = false;
    int active = 0;  // uses open, as itself or as borrowed
    // Indices in the trace of its uses (borrowed ones too), ascending.
    std::vector<std::int64_t> uses;
  };

  State& At(std::int32_t unit) {
    return states_[static_cast<std::size_t>(unit)];
  }
  const State& At(std::int32_t unit) const {
    return states_[static_cast<std::size_t>(unit)];
  }
  const Unit& UnitAt(std::int32_t unit) const {
    return units_[static_cast<std::size_t>(unit)];
  }
  std::int64_t NextUse(std::int32_t unit) const;
  bool Reused(std::int32_t unit) const;
  void IndexTrace();
  void Release(std::int32_t unit, Actions& actions);
  void FetchOne(std::int32_t unit, std::int64_t keep_for, Actions& actions);
  void Fetch(std::int32_t unit, Actions& actions);
  void Prefetch(Actions& actions);
  void Unpin(std::int32_t unit, bool traced, Actions& actions);

  LiveLimits limits_;
  std::vector<Unit> units_;
  std::vector<State> states_;
  UseTrace trace_;
  std::int64_t limit_elems_ = 0;
  std::int64_t live_elems_ = 0;
  // Sum of elements of uses before index i of the trace: distances in O(1).
  std::vector<std::int64_t> distance_;
};

}  // namespace stowage::plan
