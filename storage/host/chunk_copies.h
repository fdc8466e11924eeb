// Copy on write, chunk by chunk: what keeps a snapshot's step whole while later
// steps update the same memory in place.
//
// A chunk is *pending* until the snapshot's reader has taken it. An update that
// comes to a pending chunk copies it into a pool first; the reader then takes
// the copy. The pool is bounded: without room the update waits, for the reader
// to give a copy's memory back or to take the chunk itself. The reader never
// waits for an update that waits.
//
// Most chunks are never copied: the reader begins with the commit and works in
// the order of the updates, which come a forward and a backward later.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "storage/host/memory_budget.h"
#include "storage/host/pinned_arena.h"
#include "storage/state_store.h"

namespace stowage::storage {

// Thread safety: BeforeUpdate() by many threads, for different chunks; Take()
//   by one; the rest by any.
class ChunkCopies {
 public:
  // `layout` and the budget outlive the object.
  ChunkCopies(const Layout& layout, const SnapshotOptions& options);
  ChunkCopies(const ChunkCopies&) = delete;
  ChunkCopies& operator=(const ChunkCopies&) = delete;
  ~ChunkCopies() = default;

  // Keeps what `live` holds if the reader still needs it. Cost: one load if it
  // does not.
  void BeforeUpdate(std::int32_t chunk, const StateView& live);

  // Copies the chunk as it was when the snapshot began to `into`.
  // Errors: kCancelled after End().
  absl::Status Take(std::int32_t chunk, const StateView& live,
                    const StateView& into);

  // Nothing is kept any more; memory of copies goes back at once.
  void End();
  bool ended() const { return ended_.load(std::memory_order_acquire); }
  SnapshotStats stats() const;

 private:
  enum class State : std::uint8_t { kPending, kBusy, kCopied, kTaken };

  std::atomic<State>& state(std::int32_t chunk) {
    return states_[static_cast<std::size_t>(chunk)];
  }
  std::int64_t elems(std::int32_t chunk) const {
    return layout_.chunks()[static_cast<std::size_t>(chunk)].elems;
  }
  StateView SlotView(float* slot) const;
  void Copy(std::int32_t chunk, const StateView& from, const StateView& to);
  // A slot of the pool, or nullptr.
  float* TakeSlot() REQUIRES(mutex_);
  bool AddSlab() REQUIRES(mutex_);
  void EndCopy() REQUIRES(mutex_);

  const Layout& layout_;
  const SnapshotOptions options_;
  std::unique_ptr<std::atomic<State>[]> states_;  // by chunk
  std::atomic<bool> ended_{false};

  mutable Mutex mutex_;
  CondVar
      changed_;  // a slot came back, a chunk was taken or copied, or the end
  std::vector<float*> copies_ GUARDED_BY(mutex_);  // by chunk; null: none
  std::vector<PinnedArena> slabs_ GUARDED_BY(mutex_);
  std::vector<float*> free_slots_ GUARDED_BY(mutex_);
  std::int64_t pool_bytes_ GUARDED_BY(mutex_) = 0;
  std::int32_t copying_ GUARDED_BY(mutex_) = 0;  // threads that use slots
  SnapshotStats stats_ GUARDED_BY(mutex_);
};

}  // namespace stowage::storage
