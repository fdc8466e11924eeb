// Which units' parameters are in memory when they live on NVMe: leases, reading
// ahead along the trace, eviction, and the place for what an update writes.
//
// A unit that is out has no pages in the parameter segment. Rules:
//   - Units in memory together never exceed the limit; the plan has room for
//     what every rank may lease, one unit that is updated and one that is read.
//   - A leased unit is never evicted. Otherwise the unit goes whose next use is
//     farthest (Belady), the next use being the earliest over the ranks on the
//     trace of one pass, repeated for each micro step. Content that the coming
//     update replaces has no next use.
//   - What a rank asks for is read at once; what the trace says comes next is
//     read ahead, as far as nothing that is needed sooner must go for it, and
//     never what an update is about to replace as a whole.
//   - An update fills a unit's pages, hands it to the ranks that wait for it,
//     and writes it to NVMe meanwhile. For room it waits for such a write
//     rather than evict what is needed sooner than that unit.
//
// One thread of its own takes in what the store has moved.
//
// Source: Belady, "A Study of Replacement Algorithms for a Virtual-Storage
//   Computer".

#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "server/core/param_segment.h"
#include "storage/nvme/unit_store.h"

namespace stowage::core {

// A rank's request that is fulfilled now.
struct LeaseGrant {
  std::uint64_t epoch = 0;
  std::int32_t rank = 0;
  std::int32_t unit = 0;
  std::int64_t step = 0;
};

// Thread safety: thread-safe. Grants that a call returns through `grants` are
//   the caller's to deliver, once it holds no lock.
// Shutdown: the destructor ends what is in flight and joins.
// Errors: the first of the store or of the segment is final until Reset(); it
//   is also told to Options::failed.
class ParamResidency {
 public:
  struct Options {
    std::int64_t limit_bytes = 0;
    // How far to read ahead: so many units, so many bytes.
    std::int32_t ahead_units = 2;
    std::int64_t ahead_bytes = 0;
    // Called by the thread of this object, without a lock.
    std::function<void(const std::vector<LeaseGrant>&)> granted;
    std::function<void(const absl::Status&)> failed;
  };

  // Ownership: layout, segment and store must outlive it. Nothing is in memory
  // at first.
  ParamResidency(const Layout& layout, ParamSegment& params,
                 storage::UnitStore& store, Options options);
  ParamResidency(const ParamResidency&) = delete;
  ParamResidency& operator=(const ParamResidency&) = delete;
  ~ParamResidency();

  // Everything in memory is forgotten, and an error with it; what the store has
  // is of `step`. Requires: no write between Begin and End by another thread.
  // Blocks: for I/O in flight and for the server's own leases.
  void Reset(std::int64_t step);

  // Leases and requests of earlier runs are gone; the server's own leases stay.
  void BeginRun(std::uint64_t epoch, std::int32_t ranks,
                std::int32_t micro_steps, std::int64_t step);
  void SetTrace(const std::vector<std::int32_t>& uses);
  void DropRank(std::int32_t rank);

  void Lease(std::int32_t rank, std::int32_t unit, std::int64_t step,
             std::vector<LeaseGrant>* grants);
  void Unlease(std::int32_t rank, std::int32_t unit);

  // The server's own lease. Blocks: until the unit is in memory.
  absl::Status Hold(std::int32_t unit);
  void LetGo(std::int32_t unit);

  // Makes the unit's pages ready to be overwritten; with `load` they hold its
  // old content. A unit that is being filled already stays so.
  // Errors: kResourceExhausted if there is no room and, with `give_up`, nobody
  //   who could make some.
  // Blocks: until there is room.
  absl::Status BeginWrite(std::int32_t unit, bool load, bool give_up);
  // The unit is that of `step`: leases are granted, its write to NVMe starts.
  void EndWrite(std::int32_t unit, std::int64_t step,
                std::vector<LeaseGrant>* grants);
  // The unit did not change, and is that of `step` too.
  void Advance(std::int32_t unit, std::int64_t step,
               std::vector<LeaseGrant>* grants);
  // Blocks: until all writes are done.
  absl::Status Settle();

  std::int64_t resident_bytes() const;
  std::int64_t resident_bytes_max() const;

 private:
  enum class Where : std::uint8_t { kOut, kReading, kIn, kFilling, kSaving };
  struct Unit {
    Where where = Where::kOut;
    std::int64_t bytes = 0;
    std::int64_t version = 0;          // of what memory or else the store has
    std::int32_t holds = 0;            // by the server
    bool has_frozen = false;           // an update reads it first
    std::int32_t writers_waiting = 0;  // in BeginWrite()
    std::vector<bool> held_by;         // by rank: it has a lease
    std::vector<std::int64_t> uses;    // positions in the trace, ascending
    std::int64_t last_touch = 0;       // for passes without a trace
  };
  struct Request {
    std::int32_t rank = 0;
    std::int32_t unit = 0;
    std::int64_t step = 0;
  };
  // Where a rank is on the trace.
  struct Place {
    std::int64_t step = 0;
    std::int32_t pass = 0;
    std::int64_t position = 0;
  };

  Unit& At(std::int32_t unit) REQUIRES(mutex_) {
    return units_[static_cast<std::size_t>(unit)];
  }
  bool InMemory(const Unit& unit) const REQUIRES(mutex_) {
    return unit.where == Where::kIn || unit.where == Where::kSaving;
  }
  void Forget() REQUIRES(mutex_);
  void Move(std::int32_t rank, std::int32_t unit, std::int64_t step)
      REQUIRES(mutex_);
  std::int64_t Distance(const Unit& unit) const REQUIRES(mutex_);
  bool Wanted(std::int32_t unit) const REQUIRES(mutex_);
  absl::Status AwaitWritable(std::int32_t unit, bool load, bool give_up)
      REQUIRES(mutex_);
  bool Held() const REQUIRES(mutex_);
  bool Evictable(std::int32_t unit, Where where) const REQUIRES(mutex_);
  std::int32_t Victim(std::int64_t keep_within) const REQUIRES(mutex_);
  bool BetterOneIsSaving(std::int32_t victim) const REQUIRES(mutex_);
  bool MakeRoom(std::int64_t bytes, std::int64_t keep_within,
                bool patient = false) REQUIRES(mutex_);
  bool StartRead(std::int32_t unit, std::int64_t keep_within) REQUIRES(mutex_);
  void Pump(std::vector<LeaseGrant>* grants) REQUIRES(mutex_);
  bool AllMade(std::int64_t step) const REQUIRES(mutex_);
  void ReadAhead() REQUIRES(mutex_);
  void Fail(const absl::Status& status) REQUIRES(mutex_);
  void ThreadMain();

  const Layout& layout_;
  ParamSegment& params_;
  storage::UnitStore& store_;
  const Options options_;

  mutable Mutex mutex_;
  CondVar work_;     // the thread waits here
  CondVar changed_;  // the others
  std::vector<Unit> units_ GUARDED_BY(mutex_);
  std::vector<std::int32_t> trace_ GUARDED_BY(mutex_);
  std::vector<Place> places_ GUARDED_BY(mutex_);  // by rank
  std::uint64_t epoch_ GUARDED_BY(mutex_) = 0;
  std::int32_t micro_steps_ GUARDED_BY(mutex_) = 1;
  std::deque<Request> requests_ GUARDED_BY(mutex_);  // one a rank and unit
  std::deque<std::int32_t> in_flight_ GUARDED_BY(mutex_);
  bool awaiting_ GUARDED_BY(mutex_) = false;  // the thread is in Await()
  std::int64_t resident_bytes_ GUARDED_BY(mutex_) = 0;
  std::int64_t resident_bytes_max_ GUARDED_BY(mutex_) = 0;
  std::int64_t touches_ GUARDED_BY(mutex_) = 0;
  absl::Status status_ GUARDED_BY(mutex_);
  bool tell_failure_ GUARDED_BY(mutex_) = false;
  bool stop_ GUARDED_BY(mutex_) = false;

  std::thread thread_;  // last
};

}  // namespace stowage::core
