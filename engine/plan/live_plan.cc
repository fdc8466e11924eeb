#include "engine/plan/live_plan.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/check.h"

namespace stowage::plan {
namespace {
constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
}  // namespace

LivePlan::LivePlan(LiveLimits limits, std::vector<Unit> units)
    : limits_(limits), units_(std::move(units)), states_(units_.size()) {
  limit_elems_ = limits_.max_live_elems;
  for (const Unit& unit : units_) {
    std::int64_t need = unit.elems;
    for (const std::int32_t other : unit.borrows) need += UnitAt(other).elems;
    limit_elems_ = std::max(limit_elems_, need);
  }
}

void LivePlan::RestoreTrace(std::vector<std::int32_t> uses) {
  trace_.Restore(std::move(uses));
  IndexTrace();
}

void LivePlan::IndexTrace() {
  for (State& state : states_) state.uses.clear();
  distance_.assign(1, 0);
  if (trace_.state() != UseTrace::State::kFollowing) return;
  std::int64_t index = 0;
  for (const std::int32_t unit : trace_.uses()) {
    At(unit).uses.push_back(index);
    std::int64_t elems = UnitAt(unit).elems;
    for (const std::int32_t other : UnitAt(unit).borrows) {
      At(other).uses.push_back(index);
      elems += UnitAt(other).elems;
    }
    distance_.push_back(distance_.back() + elems);
    ++index;
  }
}

// The index of the unit's next use counted from the trace's position, going
// round into the next pass (then index + length); kNever off the trace.
std::int64_t LivePlan::NextUse(std::int32_t unit) const {
  if (trace_.state() != UseTrace::State::kFollowing) return kNever;
  const std::vector<std::int64_t>& uses = At(unit).uses;
  if (uses.empty()) return kNever;
  const auto next =
      std::lower_bound(uses.begin(), uses.end(), trace_.position());
  if (next != uses.end()) return *next;
  return uses.front() + static_cast<std::int64_t>(trace_.uses().size());
}

bool LivePlan::Reused(std::int32_t unit) const {
  const std::int64_t next = NextUse(unit);
  if (next == kNever) return false;
  const auto length = static_cast<std::int64_t>(trace_.uses().size());
  // A unit whose next use is in the next pass has a new version by then.
  if (next >= length) return false;
  const std::int64_t between =
      distance_[static_cast<std::size_t>(next)] -
      distance_[static_cast<std::size_t>(trace_.position())];
  return between < limits_.max_reuse_distance_elems;
}

void LivePlan::Release(std::int32_t unit, Actions& actions) {
  State& state = At(unit);
  STOWAGE_CHECK(state.live && state.active == 0);
  state.live = false;
  live_elems_ -= UnitAt(unit).elems;
  actions.release.push_back(unit);
}

// Makes `unit` live, evicting idle units, farthest next use first, but never
// one that the use of `keep_for` needs.
void LivePlan::FetchOne(std::int32_t unit, std::int64_t keep_for,
                        Actions& actions) {
  State& state = At(unit);
  if (state.live) return;
  const std::int64_t elems = UnitAt(unit).elems;
  const auto needed = [&](std::int32_t other) {
    if (other == keep_for) return true;
    const auto& borrows = UnitAt(static_cast<std::int32_t>(keep_for)).borrows;
    return std::find(borrows.begin(), borrows.end(), other) != borrows.end();
  };
  while (live_elems_ + elems > limit_elems_) {
    std::int32_t victim = -1;
    std::int64_t victim_next = -1;
    for (std::int32_t u = 0; u < static_cast<std::int32_t>(states_.size());
         ++u) {
      if (!At(u).live || At(u).active > 0 || needed(u)) continue;
      const std::int64_t next = NextUse(u);
      if (next > victim_next) {
        victim = u;
        victim_next = next;
      }
    }
    if (victim < 0) break;  // nested uses need more than the limit: allowed
    Release(victim, actions);
  }
  state.live = true;
  live_elems_ += elems;
  actions.fetch.push_back(unit);
}

void LivePlan::Fetch(std::int32_t unit, Actions& actions) {
  FetchOne(unit, unit, actions);
  ++At(unit).active;
  for (const std::int32_t other : UnitAt(unit).borrows) {
    FetchOne(other, unit, actions);
    ++At(other).active;
  }
}

void LivePlan::Prefetch(Actions& actions) {
  if (trace_.state() != UseTrace::State::kFollowing) return;
  const std::vector<std::int32_t>& uses = trace_.uses();
  std::int64_t ahead = 0;
  for (auto i = static_cast<std::size_t>(trace_.position()); i < uses.size();
       ++i) {
    // The last one may exceed the bucket: a unit larger than it, as most are
    // with "auto", would else never be prefetched.
    if (ahead >= limits_.prefetch_bucket_elems) return;
    const std::int32_t unit = uses[i];
    std::vector<std::int32_t> wanted{unit};
    const auto& borrows = UnitAt(unit).borrows;
    wanted.insert(wanted.end(), borrows.begin(), borrows.end());
    for (const std::int32_t u : wanted) {
      const std::int64_t elems = UnitAt(u).elems;
      if (At(u).active > 0) continue;
      if (!At(u).live) {
        if (live_elems_ + elems > limit_elems_) return;
        At(u).live = true;
        live_elems_ += elems;
        actions.prefetch.push_back(u);
      }
      ahead += elems;
    }
  }
}

LivePlan::Actions LivePlan::BeginUse(std::int32_t unit) {
  Actions actions;
  const bool following = trace_.state() == UseTrace::State::kFollowing;
  trace_.Use(unit);
  if (following && trace_.state() == UseTrace::State::kDeparted) {
    // What was kept or prefetched for a future that will not come.
    for (std::int32_t u = 0; u < static_cast<std::int32_t>(states_.size());
         ++u) {
      if (At(u).live && At(u).active == 0 && u != unit) Release(u, actions);
    }
  }
  Fetch(unit, actions);
  Prefetch(actions);
  return actions;
}

LivePlan::Actions LivePlan::BeginUntracedUse(std::int32_t unit) {
  Actions actions;
  Fetch(unit, actions);
  return actions;
}

void LivePlan::Unpin(std::int32_t unit, bool traced, Actions& actions) {
  State& state = At(unit);
  STOWAGE_CHECK(state.active > 0);
  if (--state.active > 0) return;
  if (!traced || !Reused(unit)) Release(unit, actions);
}

LivePlan::Actions LivePlan::EndUse(std::int32_t unit) {
  Actions actions;
  for (const std::int32_t other : UnitAt(unit).borrows) {
    Unpin(other, true, actions);
  }
  Unpin(unit, true, actions);
  return actions;
}

LivePlan::Actions LivePlan::EndUntracedUse(std::int32_t unit) {
  Actions actions;
  for (const std::int32_t other : UnitAt(unit).borrows) {
    Unpin(other, false, actions);
  }
  Unpin(unit, false, actions);
  return actions;
}

LivePlan::Actions LivePlan::EndPass() {
  Actions actions;
  for (std::int32_t u = 0; u < static_cast<std::int32_t>(states_.size()); ++u) {
    At(u).active = 0;
    // The next pass reads another version, or may be long in coming.
    if (At(u).live) Release(u, actions);
  }
  const bool reindex = trace_.state() != UseTrace::State::kFollowing;
  trace_.EndPass();
  if (reindex) IndexTrace();
  return actions;
}

void LivePlan::CancelPrefetch(std::int32_t unit) {
  State& state = At(unit);
  if (!state.live || state.active > 0) return;
  state.live = false;
  live_elems_ -= UnitAt(unit).elems;
}

}  // namespace stowage::plan
