// A snapshot of a store on NVMe: the places of one commit are read while later
// passes write to others.
//
// Three cases, by what the commit's table says of an extent:
//   a place     read from the file; a pass that is about to write there (the
//               commit is not kept any more) waits until it has been read
//   zero        nothing to read
//   memory      (durability `memory`, cached) updated in place: copied first,
//   as
//               in memory (storage/host/chunk_copies.h)
//
// An extent has one place more than there are kept steps, so that a pass waits
// only if reading takes longer than the steps that the store keeps.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "storage/host/chunk_copies.h"
#include "storage/nvme/manifest.h"
#include "storage/nvme/store_files.h"
#include "storage/state_store.h"

namespace stowage::storage {

// What store and snapshot share. Thread safety: thread-safe.
class SnapshotPins {
 public:
  SnapshotPins(const Layout& layout, const ExtentMap& map, PlaceTable table,
               const SnapshotOptions& options);
  SnapshotPins(const SnapshotPins&) = delete;
  SnapshotPins& operator=(const SnapshotPins&) = delete;
  ~SnapshotPins() = default;

  const PlaceTable& table() const { return table_; }
  ChunkCopies& copies() { return copies_; }
  bool InMemory(std::int32_t extent) const {
    return table_.places[static_cast<std::size_t>(extent)] == kPlaceMemory;
  }

  // Before `place` of the extent is written.
  // Blocks: while it is still to be read.
  void AwaitPlace(std::int32_t extent, std::uint8_t place);
  // The extent's chunk was read.
  void ChunkRead(std::int32_t extent);

  void End();
  bool ended() const { return copies_.ended(); }
  SnapshotStats stats() const;

 private:
  const PlaceTable table_;
  ChunkCopies copies_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<std::int64_t> chunks_left_ GUARDED_BY(mutex_);  // by extent
  std::int64_t waits_ GUARDED_BY(mutex_) = 0;
  double wait_seconds_ GUARDED_BY(mutex_) = 0;
};

class NvmeSnapshot final : public StateSnapshot {
 public:
  // What it refers to outlives it. `homes`: by extent, the memory of those that
  // are in memory only.
  NvmeSnapshot(const ExtentFiles& files, const FaultNames& names,
               bool checksums, std::shared_ptr<SnapshotPins> pins,
               std::vector<std::byte*> homes);
  NvmeSnapshot(const NvmeSnapshot&) = delete;
  NvmeSnapshot& operator=(const NvmeSnapshot&) = delete;
  ~NvmeSnapshot() override { pins_->End(); }

  absl::Status Read(std::int32_t chunk, const StateView& into) override;
  void End() override { pins_->End(); }
  SnapshotStats stats() const override { return pins_->stats(); }

 private:
  absl::Status Load(std::int32_t extent);

  const ExtentFiles& files_;
  const FaultNames& names_;
  const bool checksums_;
  const std::shared_ptr<SnapshotPins> pins_;  // with the store
  const std::vector<std::byte*> homes_;
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> buffer_;  // of one extent
  std::int32_t loaded_ = -1;
};

}  // namespace stowage::storage
