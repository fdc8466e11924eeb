// The pass of NvmeStoreImpl: what its caller does with windows, and writing
// them back. What is in memory when: nvme_windows.cc.

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "storage/nvme/crc32c.h"
#include "storage/nvme/nvme_store_impl.h"

namespace stowage::storage {
namespace {

// Adds the time of its own life to `*seconds`.
class WaitTimer {
 public:
  explicit WaitTimer(double* seconds)
      : seconds_(seconds), begin_(std::chrono::steady_clock::now()) {}
  WaitTimer(const WaitTimer&) = delete;
  WaitTimer& operator=(const WaitTimer&) = delete;
  ~WaitTimer() {
    *seconds_ +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_)
            .count();
  }

 private:
  double* seconds_;
  std::chrono::steady_clock::time_point begin_;
};

}  // namespace

absl::Status NvmeStoreImpl::BeginUpdate(
    std::span<const std::int32_t> chunk_order) {
  STOWAGE_RETURN_IF_ERROR(CheckUsable());
  if (in_pass_) {
    return absl::FailedPreconditionError("state: a step is already running");
  }
  const bool early =
      early_ && std::equal(early_order_.begin(), early_order_.end(),
                           chunk_order.begin(), chunk_order.end());
  if (!early) DropEarly();
  if (absl::Status settled = SettleDoubt(); !settled.ok()) {
    DropEarly();  // nobody would know of what is under way
    return settled;
  }
  early_ = false;
  if (pins_ != nullptr && pins_->ended()) pins_.reset();
  order_ = chunk_order;
  in_pass_ = true;
  if (!early) {
    absl::Status flushed = FlushAllStaged();
    if (!flushed.ok()) {
      in_pass_ = false;
      order_ = {};
      return flushed;
    }
    ForgetStaged();
    failed_ = absl::OkStatus();
    next_ = table_;
    touched_.clear();
    for (Resident& at : residents_) at.touched = false;
    ChooseCache();
    CutWindows();
    ResetWindows();
  }
  ReadAhead();
  if (failed_.ok()) return absl::OkStatus();
  absl::Status status = failed_;
  Abandon().IgnoreError();  // nothing was acquired, so nothing is lost
  return status;
}

absl::Status NvmeStoreImpl::BeginScan(
    std::span<const std::int32_t> chunk_order) {
  if (in_pass_) return BeginUpdate(chunk_order);  // which says so
  scanning_ = true;
  absl::Status status = BeginUpdate(chunk_order);
  scanning_ = status.ok();
  return status;
}

absl::Status NvmeStoreImpl::EndScan() {
  STOWAGE_CHECK(in_pass_ && scanning_);
  queue_->Drain();
  for (Resident& at : residents_) {
    // A read that nobody took in proves nothing.
    if (!at.transfer.done() || !at.transfer.ok()) at.valid = false;
    // What the scan did not look at, the next pass does.
    if (at.verify) at.valid = false;
    at.transfer = {};
  }
  in_pass_ = false;
  scanning_ = false;
  order_ = {};
  return failed_;
}

absl::StatusOr<UpdateWindow> NvmeStoreImpl::AcquireNext() {
  STOWAGE_CHECK(in_pass_);
  if (failed_.ok() && next_acquire_ == windows_.size()) return UpdateWindow{};
  if (scattered_ && next_release_ != next_acquire_) {
    return absl::FailedPreconditionError(
        "state: this order comes back to extents; release a window before the "
        "next is acquired");
  }
  queue_->Pump(/*wait=*/false);
  for (;;) {
    ReclaimSlots();
    ReadAhead();
    if (!failed_.ok()) return failed_;
    Window& window = windows_[next_acquire_];
    if (window.started) {
      if (!WindowRead(window)) {
        const WaitTimer timer(&stats_.read_wait_seconds);
        queue_->Pump(/*wait=*/true);
        continue;
      }
      if (absl::Status read = WindowReadResult(&window); !read.ok()) {
        return FailPass(std::move(read));
      }
      ++next_acquire_;
      return UpdateWindow{window.begin, window.end};
    }
    if (first_unreclaimed_ == next_release_) {
      return absl::FailedPreconditionError(absl::StrCat(
          "state: all ", plan_.slots,
          " windows are acquired; release one before the next is acquired"));
    }
    const WaitTimer timer(&stats_.write_wait_seconds);
    queue_->Pump(/*wait=*/true);
  }
}

absl::Status NvmeStoreImpl::FailPass(absl::Status status) {
  failed_ = std::move(status);
  return failed_;
}

absl::Status NvmeStoreImpl::VerifyChunk(std::int64_t position) {
  const std::int64_t p = PieceAt(position);
  const Piece& piece = map().piece(p);
  const Resident& at = residents_[static_cast<std::size_t>(piece.extent)];
  if (!at.verify) return absl::OkStatus();
  const std::uint32_t found = Crc32c(
      {at.data + piece.offset_bytes, static_cast<std::size_t>(piece.bytes)});
  const std::uint32_t written = next_.checksums[static_cast<std::size_t>(p)];
  if (found == written) return absl::OkStatus();
  return names_.OfChecksum(files_.state, p,
                           next_.places[static_cast<std::size_t>(piece.extent)],
                           found, written);
}

StateView NvmeStoreImpl::View(std::int64_t position) {
  const Piece& piece = map().piece(PieceAt(position));
  auto* const master = reinterpret_cast<float*>(
      residents_[static_cast<std::size_t>(piece.extent)].data +
      piece.offset_bytes);
  return {master, master + piece.elems, master + 2 * piece.elems};
}

void NvmeStoreImpl::BeforeUpdate(std::int64_t position) {
  if (pins_ == nullptr) return;
  const std::int32_t chunk = order_[static_cast<std::size_t>(position)];
  const Piece& piece = map().piece(PieceAt(position));
  // What lies on the disk is written elsewhere.
  if (!pins_->InMemory(piece.extent)) return;
  pins_->copies().BeforeUpdate(chunk, View(position));
}

void NvmeStoreImpl::ChunkUpdated(std::int64_t position) {
  if (shape_.checksums) {
    const std::int64_t p = PieceAt(position);
    const Piece& piece = map().piece(p);
    next_.checksums[static_cast<std::size_t>(p)] =
        Crc32c({residents_[static_cast<std::size_t>(piece.extent)].data +
                    piece.offset_bytes,
                static_cast<std::size_t>(piece.bytes)});
  }
  // Keeps the device busy while all threads compute: whoever comes by takes in
  // what has completed and submits what waits.
  if (!pumping_.test_and_set(std::memory_order_acquire)) {
    queue_->Pump(/*wait=*/false);
    pumping_.clear(std::memory_order_release);
  }
}

void NvmeStoreImpl::StartWrite(std::int32_t extent) {
  Resident& at = resident(extent);
  std::uint8_t& place = next_.places[static_cast<std::size_t>(extent)];
  // A second visit in one pass writes again where no commit refers to yet.
  if (!at.touched) {
    place = book_.Next(extent, place);
    if (pins_ != nullptr) pins_->AwaitPlace(extent, place);
    touched_.push_back(extent);
    at.touched = true;
  }
  at.writing = true;
  stats_.bytes_written += map().extent(extent).bytes;
  MoveExtent(extent, place, /*write=*/true);
}

absl::Status NvmeStoreImpl::TakeWriteResult(std::int32_t extent) {
  Resident& at = resident(extent);
  if (!at.writing) return absl::OkStatus();
  at.writing = false;
  if (at.transfer.ok()) return absl::OkStatus();
  return names_.OfTransfer("write", files_.state, extent,
                           next_.places[static_cast<std::size_t>(extent)],
                           at.transfer);
}

absl::Status NvmeStoreImpl::Release(const UpdateWindow& window) {
  STOWAGE_CHECK(in_pass_ && next_release_ < next_acquire_);
  Window& released = windows_[next_release_];
  STOWAGE_CHECK(released.begin == window.begin && released.end == window.end);
  ++next_release_;
  for (const std::int32_t e : released.extents) {
    Resident& at = resident(e);
    at.verify = false;
    if (scanning_) continue;
    if (at.cached && !writes_cached_) {
      if (!at.touched) touched_.push_back(e);
      at.touched = true;
      next_.places[static_cast<std::size_t>(e)] = kPlaceMemory;
      continue;
    }
    StartWrite(e);
  }
  if (!options_.pipeline_write) {
    const WaitTimer timer(&stats_.write_wait_seconds);
    for (const std::int32_t e : released.extents) {
      queue_->Wait(resident(e).transfer);
    }
  }
  ReclaimSlots();
  ReadAhead();
  return failed_;
}

// Waits for the pass's writes. Returns: the first error of the pass.
absl::Status NvmeStoreImpl::EndWrites() {
  {
    const WaitTimer timer(&stats_.write_wait_seconds);
    // Not for what is read for the next pass.
    while (first_unreclaimed_ < next_release_) {
      for (const std::int32_t e : windows_[first_unreclaimed_].extents) {
        queue_->Wait(resident(e).transfer);
      }
      ReclaimSlots();
      ReadAhead();
    }
  }
  for (const std::int32_t e : touched_) failed_.Update(TakeWriteResult(e));
  return failed_;
}

absl::Status NvmeStoreImpl::Abandon() {
  if (!in_pass_) return CheckUsable();
  queue_->Drain();
  if (params_) {
    params_->Settle().IgnoreError();  // the pass has failed already
  }
  bool lost = false;
  for (std::size_t w = 0; w < next_acquire_; ++w) {
    for (const std::int32_t e : windows_[w].extents) {
      lost = lost || (resident(e).cached && !writes_cached_);
    }
  }
  for (std::size_t e = 0; e < residents_.size(); ++e) {
    Resident& at = residents_[e];
    at.writing = false;
    at.transfer = {};
    // Whatever the disk has is read again.
    if (table_.places[e] != kPlaceMemory) at.valid = false;
  }
  in_pass_ = false;
  order_ = {};
  AdoptCommits();
  if (commits_.empty() && params_) {
    params_->Adopt(PlaceTable(files_.params.map), {});
  }
  if (lost) {
    lost_ = absl::DataLossError(absl::StrCat(
        "NVMe store of job \"", shape_.job_name,
        "\": a step was broken off while the cache, which durability `memory` "
        "does not write, was updated in place; the state is no longer that of "
        "step ",
        committed_.step));
  }
  return lost_;
}

}  // namespace stowage::storage
