// One save: a thread that reads a snapshot of a committed step and writes it to
// files, while the job goes on.
//
// It begins between two steps (the snapshot is taken by the job's busy one) and
// needs nothing of the job afterwards but the values of frozen parameters,
// which never change. A failure of the save ends the save, never the job.

#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "common/checkpoint_spec.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "optim/kernels.h"
#include "server/core/onebit_update.h"
#include "storage/checkpoint/manifest.h"
#include "storage/checkpoint/writer.h"
#include "storage/host/memory_budget.h"
#include "storage/state_store.h"

namespace stowage::core {

// Thread safety: thread-safe. Shutdown: the destructor gives the save up, if it
// still runs, and joins.
class CheckpointSave {
 public:
  struct Parts {
    SaveSpec spec;
    // All of it but files; layout() was made of its layout.
    storage::CheckpointManifest manifest;
    std::unique_ptr<storage::StateSnapshot> snapshot;
    std::vector<std::int32_t> unit_order;  // of the next updates
    const Layout* layout = nullptr;
    const optim::KernelSet* kernels = nullptr;
    // Elements of a frozen parameter, in the ranks' type, from begin_elems of
    // the unit on. May wait for a disk.
    std::function<absl::Status(std::int32_t unit, std::int64_t begin_elems,
                               std::span<std::byte> out)>
        read_frozen;
    // Of a 1-bit optimizer; copied, because they change as a whole.
    std::vector<NamedValues> one_bit;
    storage::MemoryReservation one_bit_memory;
    double begin_ms = 0;
  };

  explicit CheckpointSave(Parts parts);
  CheckpointSave(const CheckpointSave&) = delete;
  CheckpointSave& operator=(const CheckpointSave&) = delete;
  ~CheckpointSave();

  SaveInfo info() const;

  // The save ends soon, as failed.
  void GiveUp();
  // Blocks: until it has ended.
  void Join();

 private:
  void ThreadMain();
  absl::Status Write();
  absl::Status WriteUnit(std::int32_t unit, storage::CheckpointWriter& writer);
  absl::Status WriteChunk(const Layout::Chunk& chunk,
                          const storage::StateView& view,
                          storage::CheckpointWriter& writer);
  absl::Status WriteFrozen(const Layout::Param& param,
                           storage::CheckpointWriter& writer);
  std::vector<storage::CheckpointWriter::Stream> Streams() const;
  void Retire();

  Parts parts_;  // constant but for what the thread gives back at its end
  const std::chrono::steady_clock::time_point started_;
  // Of the thread.
  std::vector<float> chunk_;
  std::vector<std::byte> rounded_;

  std::atomic<bool> given_up_{false};
  mutable Mutex mutex_;
  SaveInfo info_ GUARDED_BY(mutex_);
  std::thread thread_;  // last
};

}  // namespace stowage::core
