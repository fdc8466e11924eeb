#include "server/core/param_residency.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/check.h"
#include "server/core/memory_plan.h"

namespace stowage::core {
namespace {

constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
// Waits are woken by what changes; this only bounds a lost wake-up.
constexpr std::chrono::milliseconds kLook{100};

}  // namespace

ParamResidency::ParamResidency(const Layout& layout, ParamSegment& params,
                               storage::UnitStore& store, Options options)
    : layout_(layout),
      params_(params),
      store_(store),
      options_(std::move(options)) {
  {
    MutexLock lock(mutex_);
    units_.resize(static_cast<std::size_t>(layout.unit_count()));
    for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
      At(u).bytes = params.unit_bytes(u);
      At(u).has_frozen = HasFrozen(layout.units()[static_cast<std::size_t>(u)]);
    }
  }
  thread_ = std::thread([this] { ThreadMain(); });
}

ParamResidency::~ParamResidency() {
  {
    MutexLock lock(mutex_);
    stop_ = true;
    work_.NotifyAll();
  }
  thread_.join();
}

void ParamResidency::Reset(std::int64_t step) {
  MutexLock lock(mutex_);
  while (!in_flight_.empty() || awaiting_ || Held()) {
    changed_.WaitFor(mutex_, kLook);
  }
  Forget();
  status_ = absl::OkStatus();
  tell_failure_ = false;
  for (Unit& unit : units_) unit.version = step;
}

bool ParamResidency::Held() const {
  return std::any_of(units_.begin(), units_.end(),
                     [](const Unit& unit) { return unit.holds > 0; });
}

void ParamResidency::Forget() {
  requests_.clear();
  for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
    Unit& unit = At(u);
    unit.held_by.assign(unit.held_by.size(), false);
    if (unit.where == Where::kOut) continue;
    params_.FreeUnit(u);
    unit.where = Where::kOut;
    resident_bytes_ -= unit.bytes;
  }
}

void ParamResidency::BeginRun(std::uint64_t epoch, std::int32_t ranks,
                              std::int32_t micro_steps, std::int64_t step) {
  MutexLock lock(mutex_);
  epoch_ = epoch;
  micro_steps_ = micro_steps;
  places_.assign(static_cast<std::size_t>(ranks), Place{.step = step});
  requests_.clear();
  for (Unit& unit : units_) {
    unit.held_by.assign(static_cast<std::size_t>(ranks), false);
  }
  // The first step after a restart finds its first units here.
  std::vector<LeaseGrant> none;
  Pump(&none);
}

void ParamResidency::SetTrace(const std::vector<std::int32_t>& uses) {
  MutexLock lock(mutex_);
  trace_ = uses;
  for (Unit& unit : units_) unit.uses.clear();
  for (std::size_t i = 0; i < trace_.size(); ++i) {
    At(trace_[i]).uses.push_back(static_cast<std::int64_t>(i));
  }
  for (Place& place : places_) place.position = 0;
}

void ParamResidency::DropRank(std::int32_t rank) {
  MutexLock lock(mutex_);
  for (Unit& unit : units_) {
    unit.held_by[static_cast<std::size_t>(rank)] = false;
  }
  requests_.erase(
      std::remove_if(requests_.begin(), requests_.end(),
                     [&](const Request& r) { return r.rank == rank; }),
      requests_.end());
  changed_.NotifyAll();
}

// Follows the rank along the trace: its next use of the unit.
void ParamResidency::Move(std::int32_t rank, std::int32_t unit,
                          std::int64_t step) {
  Place& place = places_[static_cast<std::size_t>(rank)];
  if (place.step != step) place = {.step = step};
  const std::vector<std::int64_t>& uses = At(unit).uses;
  if (uses.empty()) return;
  const auto next = std::lower_bound(uses.begin(), uses.end(), place.position);
  if (next == uses.end()) {
    ++place.pass;
    place.position = uses.front() + 1;
  } else {
    place.position = *next + 1;
  }
}

void ParamResidency::Lease(std::int32_t rank, std::int32_t unit,
                           std::int64_t step, std::vector<LeaseGrant>* grants) {
  MutexLock lock(mutex_);
  Move(rank, unit, step);
  At(unit).last_touch = ++touches_;
  const auto same = std::find_if(
      requests_.begin(), requests_.end(), [&](const Request& request) {
        return request.rank == rank && request.unit == unit;
      });
  if (same == requests_.end()) {
    requests_.push_back({rank, unit, step});
  } else {
    same->step = step;
  }
  Pump(grants);
}

void ParamResidency::Unlease(std::int32_t rank, std::int32_t unit) {
  MutexLock lock(mutex_);
  // A request that has not been granted is taken back with it.
  requests_.erase(std::remove_if(requests_.begin(), requests_.end(),
                                 [&](const Request& r) {
                                   return r.rank == rank && r.unit == unit;
                                 }),
                  requests_.end());
  std::vector<bool>::reference held =
      At(unit).held_by[static_cast<std::size_t>(rank)];
  if (!held) return;
  held = false;
  // Others may have waited for the room: the thread looks again.
  work_.NotifyOne();
  changed_.NotifyAll();
}

absl::Status ParamResidency::Hold(std::int32_t unit) {
  MutexLock lock(mutex_);
  ++At(unit).holds;
  while (status_.ok() && !InMemory(At(unit))) {
    if (At(unit).where == Where::kOut) StartRead(unit, -1);
    if (!InMemory(At(unit))) changed_.WaitFor(mutex_, kLook);
  }
  if (!status_.ok()) {
    --At(unit).holds;
    changed_.NotifyAll();
  }
  return status_;
}

void ParamResidency::LetGo(std::int32_t unit) {
  MutexLock lock(mutex_);
  --At(unit).holds;
  work_.NotifyOne();
  changed_.NotifyAll();
}

absl::Status ParamResidency::BeginWrite(std::int32_t unit, bool load,
                                        bool give_up) {
  MutexLock lock(mutex_);
  // What is read for this writer must not be evicted again before it wakes.
  ++At(unit).writers_waiting;
  absl::Status status = AwaitWritable(unit, load, give_up);
  --At(unit).writers_waiting;
  return status;
}

absl::Status ParamResidency::AwaitWritable(std::int32_t unit, bool load,
                                           bool give_up) {
  Unit& state = At(unit);
  while (status_.ok()) {
    if (state.where == Where::kFilling) return absl::OkStatus();
    if (state.where == Where::kIn) {
      state.where = Where::kFilling;
      return absl::OkStatus();
    }
    if (state.where == Where::kOut) {
      if (load) {
        if (StartRead(unit, -1)) continue;
      } else if (MakeRoom(state.bytes, -1, /*patient=*/true)) {
        if (absl::Status s = params_.PlaceUnit(unit); !s.ok()) {
          Fail(s);
          break;
        }
        params_.ClearPadding(unit);  // all else is written
        resident_bytes_ += state.bytes;
        resident_bytes_max_ = std::max(resident_bytes_max_, resident_bytes_);
        state.where = Where::kFilling;
        return absl::OkStatus();
      }
      if (status_.ok() && give_up && in_flight_.empty()) {
        return absl::ResourceExhaustedError(absl::StrCat(
            "unit \"", layout_.units()[static_cast<std::size_t>(unit)].name,
            "\": no room among the ", HumanBytes(options_.limit_bytes),
            " of parameters in memory: too many units are filled at once; "
            "fill one after another, or raise stowage.memory_budget"));
      }
    }
    changed_.WaitFor(mutex_, kLook);
  }
  return status_;
}

void ParamResidency::EndWrite(std::int32_t unit, std::int64_t step,
                              std::vector<LeaseGrant>* grants) {
  MutexLock lock(mutex_);
  Unit& state = At(unit);
  if (!status_.ok()) return;
  STOWAGE_CHECK(state.where == Where::kFilling);
  state.version = step;
  state.last_touch = ++touches_;
  const absl::Status started = store_.StartWrite(
      unit, {params_.param(unit, 0), static_cast<std::size_t>(state.bytes)});
  if (!started.ok()) {
    Fail(started);
    return;
  }
  state.where = Where::kSaving;
  in_flight_.push_back(unit);
  work_.NotifyOne();
  Pump(grants);
}

void ParamResidency::Advance(std::int32_t unit, std::int64_t step,
                             std::vector<LeaseGrant>* grants) {
  MutexLock lock(mutex_);
  At(unit).version = step;
  Pump(grants);
}

absl::Status ParamResidency::Settle() {
  MutexLock lock(mutex_);
  const auto saving = [this]() REQUIRES(mutex_) {
    return std::any_of(units_.begin(), units_.end(), [](const Unit& unit) {
      return unit.where == Where::kSaving;
    });
  };
  while (status_.ok() && saving()) changed_.WaitFor(mutex_, kLook);
  return status_;
}

std::int64_t ParamResidency::resident_bytes() const {
  MutexLock lock(mutex_);
  return resident_bytes_;
}

std::int64_t ParamResidency::resident_bytes_max() const {
  MutexLock lock(mutex_);
  return resident_bytes_max_;
}

// Uses until the unit's present content is used again; kNever if it will be
// replaced before that.
std::int64_t ParamResidency::Distance(const Unit& unit) const {
  if (trace_.empty()) return touches_ - unit.last_touch;
  if (unit.uses.empty()) return kNever;
  const auto length = static_cast<std::int64_t>(trace_.size());
  std::int64_t nearest = kNever;
  for (const Place& place : places_) {
    const auto next =
        std::lower_bound(unit.uses.begin(), unit.uses.end(), place.position);
    const bool of_next_step = unit.version > place.step;
    if (next != unit.uses.end() && !of_next_step) {
      nearest = std::min(nearest, *next - place.position);
    } else if (of_next_step || place.pass + 1 < micro_steps_) {
      nearest = std::min(nearest, length - place.position + unit.uses.front());
    }
  }
  return nearest;
}

bool ParamResidency::Wanted(std::int32_t unit) const {
  return std::any_of(requests_.begin(), requests_.end(),
                     [&](const Request& r) { return r.unit == unit; });
}

// True if a unit that is `where` may go, now or as soon as it is saved.
bool ParamResidency::Evictable(std::int32_t unit, Where where) const {
  const Unit& state = units_[static_cast<std::size_t>(unit)];
  const auto& leases = state.held_by;
  return state.where == where && state.holds == 0 &&
         std::find(leases.begin(), leases.end(), true) == leases.end() &&
         state.writers_waiting == 0 && state.bytes > 0 && !Wanted(unit);
}

// What is in memory and used farthest away, beyond `keep_within`; or -1.
std::int32_t ParamResidency::Victim(std::int64_t keep_within) const {
  std::int32_t victim = -1;
  std::int64_t farthest = keep_within;
  for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
    if (!Evictable(u, Where::kIn)) continue;
    const std::int64_t distance = Distance(units_[static_cast<std::size_t>(u)]);
    if (distance > farthest) {
      victim = u;
      farthest = distance;
    }
  }
  return victim;
}

// True if something that is used later than `victim` is about to be saved.
bool ParamResidency::BetterOneIsSaving(std::int32_t victim) const {
  if (trace_.empty()) return false;
  const auto distance = [this](std::int32_t u) REQUIRES(mutex_) {
    return Distance(units_[static_cast<std::size_t>(u)]);
  };
  const std::int64_t of_victim = distance(victim);
  for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
    if (Evictable(u, Where::kSaving) && distance(u) > of_victim) return true;
  }
  return false;
}

// Evicts until `bytes` fit; only units whose next use is farther away than
// `keep_within`. Returns: false if that is not enough (what went is gone), or,
// `patient`, while something better to evict is being saved.
bool ParamResidency::MakeRoom(std::int64_t bytes, std::int64_t keep_within,
                              bool patient) {
  while (resident_bytes_ + bytes > options_.limit_bytes) {
    const std::int32_t victim = Victim(keep_within);
    if (victim < 0 || (patient && BetterOneIsSaving(victim))) return false;
    params_.FreeUnit(victim);
    At(victim).where = Where::kOut;
    resident_bytes_ -= At(victim).bytes;
  }
  return true;
}

// Returns: false if there is no room, or on an error.
bool ParamResidency::StartRead(std::int32_t unit, std::int64_t keep_within) {
  Unit& state = At(unit);
  if (!MakeRoom(state.bytes, keep_within)) return false;
  absl::Status status = params_.PlaceUnit(unit);
  if (status.ok()) {
    resident_bytes_ += state.bytes;
    resident_bytes_max_ = std::max(resident_bytes_max_, resident_bytes_);
    state.where = Where::kReading;
    status = store_.StartRead(
        unit, {params_.param(unit, 0), static_cast<std::size_t>(state.bytes)});
  }
  if (!status.ok()) {
    Fail(status);
    return false;
  }
  in_flight_.push_back(unit);
  work_.NotifyOne();
  return true;
}

void ParamResidency::Pump(std::vector<LeaseGrant>* grants) {
  if (!status_.ok()) return;
  for (auto at = requests_.begin(); at != requests_.end();) {
    Unit& unit = At(at->unit);
    if (!InMemory(unit) || unit.version < at->step) {
      ++at;
      continue;
    }
    unit.held_by[static_cast<std::size_t>(at->rank)] = true;
    grants->push_back({epoch_, at->rank, at->unit, at->step});
    at = requests_.erase(at);
  }
  for (const Request& request : requests_) {
    const Unit& unit = At(request.unit);
    if (unit.where == Where::kOut && unit.version >= request.step) {
      StartRead(request.unit, -1);
    }
  }
  if (status_.ok()) ReadAhead();
}

// True if the update that makes `step` is done with all that ranks use.
bool ParamResidency::AllMade(std::int64_t step) const {
  return std::all_of(units_.begin(), units_.end(), [&](const Unit& unit) {
    return unit.uses.empty() || unit.version >= step;
  });
}

void ParamResidency::ReadAhead() {
  // Whoever waits to write gets the room that reads in flight hold.
  if (std::any_of(units_.begin(), units_.end(),
                  [](const Unit& unit) { return unit.writers_waiting > 0; })) {
    return;
  }
  const auto length = static_cast<std::int64_t>(trace_.size());
  for (const Place& place : places_) {
    std::int32_t units = 0;
    std::int64_t bytes = 0;
    for (std::int64_t i = 0; i < length && units < options_.ahead_units; ++i) {
      const std::int64_t at = place.position + i;
      const std::int32_t u = trace_[static_cast<std::size_t>(at % length)];
      const Unit& unit = At(u);
      const bool next_step = at >= length && place.pass + 1 >= micro_steps_;
      // Until then the update takes the room, and what is read goes again.
      if (next_step && !AllMade(place.step + 1)) break;
      if (!next_step && unit.version > place.step) continue;  // no use of it
      // The update brings it, and needs no more of the old one than what is
      // frozen.
      const bool coming = !next_step && unit.version < place.step;
      const bool to_read =
          unit.where == Where::kOut && (!coming || unit.has_frozen);
      if (coming || to_read || unit.where == Where::kReading) {
        ++units;
        bytes += unit.bytes;
      }
      if (!to_read) continue;
      if (bytes > options_.ahead_bytes && units > 1) break;
      if (!StartRead(u, i)) break;
    }
  }
}

void ParamResidency::Fail(const absl::Status& status) {
  if (!status_.ok()) return;
  status_ = status;
  tell_failure_ = true;
  work_.NotifyAll();
  changed_.NotifyAll();
}

void ParamResidency::ThreadMain() {
  MutexLock lock(mutex_);
  for (;;) {
    std::vector<LeaseGrant> grants;
    absl::Status failure;
    if (!in_flight_.empty()) {
      const std::int32_t unit = in_flight_.front();
      awaiting_ = true;
      mutex_.Unlock();
      const absl::Status status = store_.Await(unit);
      mutex_.Lock();
      awaiting_ = false;
      in_flight_.pop_front();
      // A unit that is only half in is dropped by Reset().
      if (status.ok()) {
        At(unit).where = Where::kIn;
      } else {
        Fail(status);
      }
    } else if (stop_) {
      return;
    } else if (!tell_failure_) {
      work_.WaitFor(mutex_, kLook);
    }
    Pump(&grants);
    if (std::exchange(tell_failure_, false)) failure = status_;
    changed_.NotifyAll();
    if (grants.empty() && failure.ok()) continue;
    mutex_.Unlock();
    if (!grants.empty()) options_.granted(grants);
    if (!failure.ok()) options_.failed(failure);
    mutex_.Lock();
  }
}

}  // namespace stowage::core
