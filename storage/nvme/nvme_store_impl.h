// NvmeStore over extents: the pass, its pipeline and cache, and the commit.
//
// A pass cuts the announced order into *windows*: consecutive positions whose
// extents fit in one slot. A slot goes round
//   free -> reading -> (acquired by the caller) -> writing -> free
// and slots are filled in the order of the pass, as far ahead as there are free
// ones. Extents of the cache have a home of their own and take no slot.
//
// The first windows of the next pass are read *early*, as many as there are
// slots, from the last writes of a pass on: the order is almost always the
// same, and the disk has nothing to do while the ranks compute. A pass in that
// order takes them over; anything else drops them.
//
// Two tables say where bytes are: `table_`, of the last commit, and `next_`, of
// the pass. Nothing that a kept commit refers to is ever written to.

#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout.h"
#include "storage/host/pinned_arena.h"
#include "storage/nvme/io/transfer_queue.h"
#include "storage/nvme/manifest.h"
#include "storage/nvme/memory_plan.h"
#include "storage/nvme/nvme_snapshot.h"
#include "storage/nvme/nvme_store.h"
#include "storage/nvme/place_book.h"
#include "storage/nvme/store_files.h"
#include "storage/nvme/unit_store_impl.h"

namespace stowage::storage {

class NvmeStoreImpl final : public NvmeStore {
 public:
  // What Create() and Open() have made; the layout outlives the store.
  struct Parts {
    NvmeStoreOptions options;
    StoreShape shape;
    StoreFiles files;
    PinnedArena arena;
    MemoryPlan plan;
    std::string job_record;
    Disk* disk = nullptr;
  };

  // Errors: those of the engines.
  static absl::StatusOr<std::unique_ptr<NvmeStoreImpl>> Make(
      const Layout& layout, Parts parts);
  NvmeStoreImpl(const NvmeStoreImpl&) = delete;
  NvmeStoreImpl& operator=(const NvmeStoreImpl&) = delete;
  ~NvmeStoreImpl() override;

  // Writes all files once and the first manifest, of no commit.
  absl::Status Initialize();
  // Takes over what a manifest says.
  absl::Status Adopt(const Manifest& manifest);

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
  absl::Status VerifyChunk(std::int64_t position) override;
  StateView View(std::int64_t position) override;
  void BeforeUpdate(std::int64_t position) override;
  void ChunkUpdated(std::int64_t position) override;
  absl::Status Release(const UpdateWindow& window) override;
  void KeepReading() override;
  absl::Status Commit(const CommitRecord& record) override;
  absl::Status Abandon() override;
  const CommitRecord& committed() const override { return committed_; }
  absl::StatusOr<std::unique_ptr<StateSnapshot>> BeginSnapshot(
      const SnapshotOptions& options) override;

  std::vector<std::int64_t> KeptSteps() const override;
  absl::Status Rewind(std::int64_t step) override;
  absl::Status SetJobRecord(std::string record) override;
  const std::string& job_record() const override { return job_record_; }
  UnitStore* params() override { return params_.get(); }
  UnitStore* spill() override { return sums_.get(); }
  absl::Status Close() override;
  NvmeStoreStats stats() const override {
    NvmeStoreStats stats = stats_;
    if (queue_ != nullptr) stats.submit_calls = queue_->engine().submit_calls();
    return stats;
  }
  std::string DescribeIo() const override;

 private:
  // Where an extent's bytes are in memory, and what moves there.
  struct Resident {
    std::byte* data = nullptr;
    std::int32_t buffer = -1;
    bool cached = false;   // has a home in the cache
    bool valid = false;    // the home holds what `next_` says
    bool verify = false;   // came from disk and was not looked at yet
    bool touched = false;  // released by this pass
    bool writing = false;  // `transfer` is a write
    Transfer transfer;
  };

  struct Window {
    std::int64_t begin = 0;  // positions
    std::int64_t end = 0;
    std::int64_t slot_bytes = 0;  // of its extents that have no home
    std::int32_t slot = -1;
    bool started = false;
    std::vector<std::int32_t> extents;
  };

  // What a slot holds outside a pass: one extent, for Put() and Read().
  struct Staged {
    std::int32_t extent = -1;
    bool dirty = false;
    std::int64_t last_use = 0;
  };

  NvmeStoreImpl(const Layout& layout, Parts parts);

  // Common to all calls.
  absl::Status CheckUsable() const;
  absl::Status CheckRange(std::int32_t unit_index, std::int64_t begin_elems,
                          std::int64_t elems) const;
  Resident& resident(std::int32_t extent) {
    return residents_[static_cast<std::size_t>(extent)];
  }
  const ExtentMap& map() const { return files_.state.map; }
  std::byte* slot_data(std::int32_t slot) const {
    return arena_.data() + slot * plan_.slot_bytes;
  }
  std::int32_t ExtentAt(std::int64_t position) const;
  std::int64_t PieceAt(std::int64_t position) const;

  // Outside a pass.
  absl::StatusOr<std::byte*> Stage(std::int32_t extent);
  absl::Status FlushStaged(Staged* staged, std::int32_t slot);
  absl::Status FlushAllStaged();
  void ForgetStaged();
  std::int64_t PieceOf(std::int32_t unit_index, std::int64_t elem) const;
  template <typename Visit>  // Visit(piece, begin, count, extent's bytes)
  absl::Status ForPieces(std::int32_t unit_index, std::int64_t begin_elems,
                         std::int64_t elems, bool modify, const Visit& visit);

  // The pass.
  void ChooseCache();
  void CutWindows();
  bool ReadsEarly() const { return options_.pipeline_read && !scattered_; }
  void ReadAhead();
  bool FillSlot(Window* window);
  void ResetWindows();
  void StartEarly();
  void DropEarly();
  absl::Status StartWindow(Window* window);
  absl::Status StartExtentRead(std::int32_t extent);
  void MoveExtent(std::int32_t extent, std::uint8_t place, bool write);
  void FillZero(std::int32_t extent);
  bool WindowRead(const Window& window) const;
  absl::Status WindowReadResult(Window* window);
  void ReclaimSlots();
  void StartWrite(std::int32_t extent);
  absl::Status TakeWriteResult(std::int32_t extent);
  absl::Status EndWrites();
  absl::Status FailPass(absl::Status status);

  // The commit.
  absl::Status FlushFiles(const ExtentFiles& files);
  absl::Status WriteManifest(const std::vector<const KeptCommit*>& commits,
                             std::uint64_t sequence, bool flush);
  absl::Status SettleDoubt();
  absl::Status WriteMemory();
  void AdoptCommits();

  // Constant after construction.
  const Layout& layout_;
  const NvmeStoreOptions options_;
  const StoreShape shape_;
  const MemoryPlan plan_;
  const FaultNames names_;
  Disk& disk_;
  const bool writes_cached_;  // durability power

  StoreFiles files_;
  PinnedArena arena_;
  std::vector<std::span<std::byte>> buffers_;  // registered
  std::unique_ptr<TransferQueue> queue_;
  std::unique_ptr<UnitStoreImpl> params_;
  std::unique_ptr<UnitStoreImpl> sums_;
  std::string job_record_;

  // What is committed.
  std::uint64_t sequence_ = 0;
  std::vector<KeptCommit> commits_;  // oldest first
  CommitRecord committed_;
  PlaceTable table_;
  PlaceBook book_;
  bool in_doubt_ = false;  // a manifest was written and not confirmed
  bool closed_ = false;
  absl::Status lost_;  // memory that was the state is gone
  // Shared with the snapshot that is being read; null if there is none.
  std::shared_ptr<SnapshotPins> pins_;

  // Outside a pass.
  std::vector<Staged> staged_;  // by slot
  std::int64_t stage_clock_ = 0;

  // The pass. `next_.checksums` and what a window's residents point to are
  // written by the threads that update; each touches its own chunks.
  bool in_pass_ = false;
  bool scanning_ = false;  // the pass writes nothing
  std::span<const std::int32_t> order_;
  bool early_ = false;  // windows of a pass in early_order_ are being read
  std::vector<std::int32_t> early_order_;
  PlaceTable next_;
  std::vector<Resident> residents_;  // by extent
  std::vector<Window> windows_;
  std::vector<std::int32_t> free_slots_;
  std::vector<std::int32_t> touched_;  // extents released by this pass
  std::size_t next_start_ = 0;         // windows
  std::size_t next_acquire_ = 0;
  std::size_t next_release_ = 0;
  std::size_t first_unreclaimed_ = 0;
  std::size_t next_early_ = 0;  // of the next pass, begun in this one
  bool scattered_ = false;      // an extent is visited more than once
  bool cache_chosen_ = false;
  std::vector<std::int32_t> cache_order_;  // the order it was chosen by
  absl::Status failed_;
  std::atomic_flag pumping_;

  NvmeStoreStats stats_;
};

}  // namespace stowage::storage
