// Masters and moments in pinned memory of the server.
//
// The state of the whole job is resident, so an update pass is one window and
// acquire and release do nothing. It updates in place: a pass that is abandoned
// after it began leaves no committed step behind (durability `memory` promises
// to survive the trainer, not the server).

#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "common/layout.h"
#include "storage/host/chunk_copies.h"
#include "storage/host/memory_budget.h"
#include "storage/host/pinned_arena.h"
#include "storage/state_store.h"

namespace stowage::storage {

class HostStore final : public StateStore {
 public:
  // Bytes that a store for `layout` pins.
  static std::int64_t PinnedBytes(const Layout& layout);

  // `layout` must outlive the store; `reservation` holds PinnedBytes(layout).
  // Errors: as PinnedArena::Create().
  static absl::StatusOr<std::unique_ptr<HostStore>> Create(
      const Layout& layout, bool lock_memory, MemoryBudget* budget,
      MemoryReservation reservation);

  std::int64_t pinned_bytes() const override { return arena_.mapped_bytes(); }
  absl::Status Put(std::int32_t unit_index, std::int64_t begin_elems,
                   std::span<const float> values) override;
  absl::Status PutMoment(std::int32_t unit_index, StateKind kind,
                         std::int64_t begin_elems,
                         std::span<const float> values) override;
  absl::Status Read(std::int32_t unit_index, StateKind kind,
                    std::int64_t begin_elems, std::span<float> out) override;
  absl::Status BeginUpdate(std::span<const std::int32_t> chunk_order) override;
  absl::Status BeginScan(std::span<const std::int32_t> chunk_order) override;
  absl::Status EndScan() override;
  absl::StatusOr<UpdateWindow> AcquireNext() override;
  StateView View(std::int64_t position) override;
  void BeforeUpdate(std::int64_t position) override;
  absl::Status Release(const UpdateWindow& window) override;
  absl::Status Commit(const CommitRecord& record) override;
  absl::Status Abandon() override;
  const CommitRecord& committed() const override { return committed_; }
  absl::StatusOr<std::unique_ptr<StateSnapshot>> BeginSnapshot(
      const SnapshotOptions& options) override;

 private:
  class Snapshot;

  HostStore(const Layout& layout, PinnedArena arena);
  absl::Status CheckRange(std::int32_t unit_index, std::int64_t begin_elems,
                          std::int64_t elems) const;
  float* Array(StateKind kind) const;
  StateView ChunkView(std::int32_t chunk) const;

  const Layout& layout_;
  PinnedArena arena_;
  float* master_ = nullptr;  // layout.state_elems() each
  float* moment1_ = nullptr;
  float* moment2_ = nullptr;
  CommitRecord committed_;
  // Shared with the snapshot that is being read; null if there is none.
  std::shared_ptr<ChunkCopies> copies_;

  std::span<const std::int32_t> order_;
  bool in_pass_ = false;
  bool acquired_ = false;
  bool released_ = false;
};

}  // namespace stowage::storage
