// What every store of a job's masters and moments can do: the seam between the
// optimizer step and the tiers (pinned host memory, later NVMe).
//
// server/core calls it; which tier it is decides nothing about the bits. A step
// is one *pass*: the core announces the order in which it will update the job's
// chunks, then works through *windows*, each a consecutive part of that order
// whose state is resident:
//
//   BeginUpdate(order)
//   while (window = AcquireNext(); !window.empty()):
//     for each position in window (many threads): VerifyChunk(position),
//         if OK: BeforeUpdate(position), kernel on View(position), then
//         ChunkUpdated(position)
//     Release(window)
//   Commit(record)            // or Abandon()
//
// An optimizer that has to read all of the state before it may change any
// (Lamb) makes a *scan* first: BeginScan(order), windows as above in which
// nothing is written and ChunkUpdated() not called, EndScan().
//
// A host store returns one window, the whole order, so the pass costs nothing.
// A store on disk returns about a sub-group at a time: it reads ahead while the
// caller computes and writes back after Release().
//
// The committed record (step, applied steps, client state) lives in the store,
// because it must move together with the tensors.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"
#include "common/layout.h"

namespace stowage::storage {

class MemoryBudget;

// What a commit makes true, all of it or nothing.
struct CommitRecord {
  std::int64_t step = 0;           // committed steps, skipped ones included
  std::int64_t applied_steps = 0;  // Adam's t
  std::string client_state;

  friend bool operator==(const CommitRecord&, const CommitRecord&) = default;
};

// First elements of a chunk's fp32 arrays; each is 64-byte aligned and as long
// as the chunk (Layout::Chunk::elems).
struct StateView {
  float* master = nullptr;
  float* moment1 = nullptr;
  float* moment2 = nullptr;
};

// Positions [begin, end) of the announced order.
struct UpdateWindow {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool empty() const { return begin >= end; }
};

// What a snapshot cost those who went on stepping.
struct SnapshotStats {
  std::int64_t copied_bytes = 0;      // by updates, before they overwrote them
  std::int64_t copies_bytes_max = 0;  // of memory for that, at once
  std::int64_t waits = 0;             // of updates, for the snapshot's reader
  double wait_seconds = 0;            // summed over threads
};

// The state of one committed step, to be read while later passes run: they are
// not in it. Read by one thread, chunk by chunk; what has been read costs later
// passes nothing any more, so read in the order of the passes.
// Thread safety: Read() by one thread, while another uses the store; End() and
//   stats() by any.
// Ownership: must be destroyed before its store.
class StateSnapshot {
 public:
  StateSnapshot() = default;
  StateSnapshot(const StateSnapshot&) = delete;
  StateSnapshot& operator=(const StateSnapshot&) = delete;
  virtual ~StateSnapshot() = default;  // ends it

  // Copies out a chunk's masters and moments (StateView's arrays, each as long
  // as the chunk); once for each chunk of the layout, in any order.
  // Errors: kCancelled after End(); those of the store.
  virtual absl::Status Read(std::int32_t chunk, const StateView& into) = 0;

  // Nothing more will be read: nobody waits for this snapshot any more.
  // Idempotent.
  virtual void End() = 0;
  virtual SnapshotStats stats() const = 0;
};

struct SnapshotOptions {
  // Copies that updates have to make take memory from here, at most so much;
  // without room an update waits for the snapshot's reader.
  MemoryBudget* budget = nullptr;
  std::int64_t copies_bytes_max = 0;
};

// Ownership: of the state's memory or files; views are valid from the
//   AcquireNext() that covers them to the Release() of that window.
// Thread safety: externally synchronized, except that VerifyChunk(), View() and
//   ChunkUpdated() may be called from many threads for different positions of
//   an acquired window.
// Errors: an I/O error is typed and final for the pass (kDataLoss for torn or
//   missing data, kResourceExhausted for space); the caller then Abandon()s.
class StateStore {
 public:
  StateStore() = default;
  StateStore(const StateStore&) = delete;
  StateStore& operator=(const StateStore&) = delete;
  virtual ~StateStore() = default;

  // Bytes of memory that the store keeps pinned, as counted in the budget.
  virtual std::int64_t pinned_bytes() const = 0;

  // Sets masters [begin, begin + values.size()) of the unit's trainable prefix;
  // their moments become zero. Only before the first Commit().
  // Errors: kInvalidArgument for a range outside the prefix;
  //   kFailedPrecondition after a commit or inside a pass.
  virtual absl::Status Put(std::int32_t unit_index, std::int64_t begin_elems,
                           std::span<const float> values) = 0;

  // Sets moments [begin, begin + values.size()) of a unit whose masters were
  // Put() there; `kind` is kMoment1 or kMoment2. Errors: as Put().
  virtual absl::Status PutMoment(std::int32_t unit_index, StateKind kind,
                                 std::int64_t begin_elems,
                                 std::span<const float> values) = 0;

  // Copies out what was committed (or put). `kind` is not kParam.
  // Errors: as Put(); kFailedPrecondition inside a pass.
  virtual absl::Status Read(std::int32_t unit_index, StateKind kind,
                            std::int64_t begin_elems, std::span<float> out) = 0;

  // Starts a pass over `chunk_order`: indices into Layout::chunks(), each at
  // most once. The span must stay valid until Commit() or Abandon().
  virtual absl::Status BeginUpdate(
      std::span<const std::int32_t> chunk_order) = 0;

  // Starts a pass that changes nothing, over an order as BeginUpdate()'s. The
  // span must stay valid until EndScan(), which ends it, also after an error.
  virtual absl::Status BeginScan(std::span<const std::int32_t> chunk_order) = 0;
  // Returns: the pass's first error; the state is that of committed() anyway.
  virtual absl::Status EndScan() = 0;

  // The next resident part of the order; empty when the pass is through.
  // Windows may overlap in time up to what the store can keep resident; a store
  // that has no room waits for a Release().
  // Blocks: for I/O.
  virtual absl::StatusOr<UpdateWindow> AcquireNext() = 0;

  // Requires: `position` lies in a window acquired and not yet released.
  virtual StateView View(std::int64_t position) = 0;

  // Checks that the chunk's bytes are those that were written; called by the
  // thread that is about to update it, so that checking also brings them into
  // that core's cache. After an error no kernel may run on the chunk, and the
  // pass must be abandoned.
  // Errors: kDataLoss.
  virtual absl::Status VerifyChunk(std::int64_t /*position*/) {
    return absl::OkStatus();
  }

  // Told by the thread that is about to update the chunk, after VerifyChunk():
  // a snapshot that has not read it yet keeps what it holds.
  // Blocks: while the snapshot has no room for it (SnapshotOptions).
  virtual void BeforeUpdate(std::int64_t /*position*/) {}

  // Told by the thread that has just updated the chunk, while its bytes are in
  // that core's cache: the place for checksums.
  virtual void ChunkUpdated(std::int64_t /*position*/) {}

  // Between passes, now and then, by the caller who uses the store: lets a
  // store that reads ahead for the next pass go on with it. Does not wait.
  virtual void KeepReading() {}

  // Hands a window back, in the order of acquisition; all of it was updated, or
  // in a scan none.
  virtual absl::Status Release(const UpdateWindow& window) = 0;

  // Ends the pass (all windows released), or, without one, a skipped step: from
  // here on the state is that of `record`.
  // Blocks: as durable as the job asked for when it returns.
  virtual absl::Status Commit(const CommitRecord& record) = 0;

  // Ends the pass without a commit. Returns: OK if the state is again that of
  // committed(); kDataLoss if the store updates in place and any window was
  // acquired: then the state is of no step.
  virtual absl::Status Abandon() = 0;

  virtual const CommitRecord& committed() const = 0;

  // Begins a snapshot of committed(). Cost: a byte for each chunk.
  // Requires: no pass is running.
  // Errors: kFailedPrecondition while another one is being read, or before the
  //   first commit of a store that has none.
  virtual absl::StatusOr<std::unique_ptr<StateSnapshot>> BeginSnapshot(
      const SnapshotOptions& options) = 0;
};

}  // namespace stowage::storage
