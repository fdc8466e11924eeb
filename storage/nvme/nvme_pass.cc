// The pass of NvmeStoreImpl: windows, read-ahead, write-back, cache.

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "storage/nvme/crc32c.h"
#include "storage/nvme/nvme_store_impl.h"

namespace stowage::storage {
namespace {

constexpr std::int64_t kBufferBytesMax = kGiB;

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

// The trace is a cycle in which every extent is used once, so Belady's rule
// (evict what is used furthest ahead) keeps a fixed set and any set of that
// size misses equally often. The first of the order are kept: the units that
// the next forward waits for first then wait for no disk at all.
void NvmeStoreImpl::ChooseCache() {
  if (plan_.cache_bytes == 0) return;
  if (cache_chosen_ &&
      (!writes_cached_ || std::equal(cache_order_.begin(), cache_order_.end(),
                                     order_.begin(), order_.end()))) {
    // What is only in memory must stay there, in whatever order it is used.
    return;
  }
  cache_chosen_ = true;
  cache_order_.assign(order_.begin(), order_.end());
  for (Resident& at : residents_) {
    at.cached = false;
    at.valid = false;
  }
  std::byte* const base = slot_data(plan_.slots);
  std::int64_t used = 0;
  for (std::size_t i = 0; i < order_.size(); ++i) {
    const std::int32_t e = ExtentAt(static_cast<std::int64_t>(i));
    Resident& at = resident(e);
    if (at.cached) continue;
    const std::int64_t bytes = map().extent(e).bytes;
    // Not across two registered buffers.
    if (used / kBufferBytesMax != (used + bytes - 1) / kBufferBytesMax) {
      used = RoundUp(used, kBufferBytesMax);
    }
    if (used + bytes > plan_.cache_bytes) break;
    at.cached = true;
    at.data = base + used;
    at.buffer = plan_.slots + static_cast<std::int32_t>(used / kBufferBytesMax);
    used += bytes;
  }
}

void NvmeStoreImpl::CutWindows() {
  windows_.clear();
  scattered_ = false;
  // By extent: the window that visited it last.
  std::vector<std::int32_t> visited(residents_.size(), -1);
  std::int64_t elems = 0;
  for (std::size_t i = 0; i < order_.size(); ++i) {
    const auto position = static_cast<std::int64_t>(i);
    const std::int32_t e = ExtentAt(position);
    const std::int64_t piece_elems = map().piece(PieceAt(position)).elems;
    auto window = static_cast<std::int32_t>(windows_.size()) - 1;
    const bool here =
        window >= 0 && visited[static_cast<std::size_t>(e)] == window;
    if (!here) {
      const std::int64_t bytes = resident(e).cached ? 0 : map().extent(e).bytes;
      // Borders of windows are borders of extents.
      if (window < 0 || windows_.back().slot_bytes + bytes > plan_.slot_bytes ||
          elems >= options_.window_elems) {
        windows_.push_back({.begin = position, .end = position, .extents = {}});
        elems = 0;
        ++window;
      }
      if (visited[static_cast<std::size_t>(e)] >= 0) scattered_ = true;
      visited[static_cast<std::size_t>(e)] = window;
      windows_.back().slot_bytes += bytes;
      windows_.back().extents.push_back(e);
    }
    windows_.back().end = position + 1;
    elems += piece_elems;
  }
}

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

// No window is under way, all slots are free.
void NvmeStoreImpl::ResetWindows() {
  free_slots_.clear();
  for (std::int32_t s = plan_.slots - 1; s >= 0; --s) free_slots_.push_back(s);
  next_start_ = next_acquire_ = next_release_ = first_unreclaimed_ = 0;
  next_early_ = 0;
}

// After the commit of a pass over early_order_; its windows were cut by the
// same order and cache as the next one's will be. Those that ReadAhead() began
// with are kept.
void NvmeStoreImpl::StartEarly() {
  order_ = early_order_;
  failed_ = absl::OkStatus();
  next_ = table_;
  for (Resident& at : residents_) at.touched = false;
  for (std::size_t w = next_early_; w < windows_.size(); ++w) {
    windows_[w].started = false;
  }
  next_start_ = std::exchange(next_early_, 0);
  next_acquire_ = next_release_ = first_unreclaimed_ = 0;
  ForgetStaged();  // their slots are read into
  early_ = true;
  // What is read early is asked for, whatever comes after it.
  ReadAhead();
  order_ = {};
}

void NvmeStoreImpl::DropEarly() {
  if (!early_) return;
  early_ = false;
  queue_->Drain();
  for (Resident& at : residents_) {
    // What nobody looked at proves nothing.
    if (at.verify) at.valid = false;
    at.verify = false;
    at.transfer = {};
  }
  failed_ = absl::OkStatus();
}

void NvmeStoreImpl::KeepReading() {
  if (early_ && !in_pass_) queue_->Pump(/*wait=*/false);
}

// Fills free slots with the windows that come next: of this pass, then of the
// next one, so that the device is never left with what remains to be written.
void NvmeStoreImpl::ReadAhead() {
  while (failed_.ok() && next_start_ < windows_.size()) {
    // A window that is not asked for yet.
    if (next_start_ > next_acquire_ && !options_.pipeline_read) return;
    // Extents that come back wait until they were written.
    if (scattered_ && next_start_ > next_release_) return;
    if (!FillSlot(&windows_[next_start_])) return;
    ++next_start_;
  }
  if (!in_pass_ || scanning_ || !ReadsEarly()) return;
  while (failed_.ok() && next_early_ < first_unreclaimed_) {
    if (!FillSlot(&windows_[next_early_])) return;
    ++next_early_;
  }
}

// Starts reading a window into a free slot. Returns: false if there is none.
bool NvmeStoreImpl::FillSlot(Window* window) {
  if (window->slot_bytes > 0) {
    if (free_slots_.empty()) return false;
    window->slot = free_slots_.back();
    free_slots_.pop_back();
  }
  failed_.Update(StartWindow(window));
  return true;
}

absl::Status NvmeStoreImpl::StartWindow(Window* window) {
  window->started = true;
  std::int64_t at_bytes = 0;
  for (const std::int32_t e : window->extents) {
    Resident& at = resident(e);
    // Written earlier in this pass, in a scattered order.
    queue_->Wait(at.transfer);
    if (at.touched) STOWAGE_RETURN_IF_ERROR(TakeWriteResult(e));
    if (at.cached && at.valid) {
      ++stats_.cache_hits;
      continue;
    }
    if (!at.cached) {
      at.data = slot_data(window->slot) + at_bytes;
      at.buffer = window->slot;
      at_bytes += map().extent(e).bytes;
    }
    STOWAGE_RETURN_IF_ERROR(StartExtentRead(e));
  }
  return absl::OkStatus();
}

absl::Status NvmeStoreImpl::StartExtentRead(std::int32_t extent) {
  Resident& at = resident(extent);
  const Extent& shape = map().extent(extent);
  const std::uint8_t place = next_.places[static_cast<std::size_t>(extent)];
  at.writing = false;
  at.verify = false;
  if (place == kPlaceZero) {
    FillZero(extent);
    at.valid = at.cached;
    return absl::OkStatus();
  }
  STOWAGE_CHECK(place != kPlaceMemory);
  at.verify = shape_.checksums;
  ++stats_.cache_misses;
  stats_.bytes_read += shape.bytes;
  queue_->Start({.write = false,
                 .file = shape.file,
                 .offset_bytes = map().OffsetBytes(extent, place),
                 .buffer = at.buffer},
                {at.data, static_cast<std::size_t>(shape.bytes)}, &at.transfer);
  return absl::OkStatus();
}

void NvmeStoreImpl::FillZero(std::int32_t extent) {
  const Resident& at = resident(extent);
  const Extent& shape = map().extent(extent);
  std::memset(at.data, 0, static_cast<std::size_t>(shape.bytes));
  for (std::int64_t p = shape.begin; shape_.checksums && p < shape.end; ++p) {
    const Piece& piece = map().piece(p);
    next_.checksums[static_cast<std::size_t>(p)] = Crc32c(
        {at.data + piece.offset_bytes, static_cast<std::size_t>(piece.bytes)});
  }
}

bool NvmeStoreImpl::WindowRead(const Window& window) const {
  return std::all_of(
      window.extents.begin(), window.extents.end(), [&](std::int32_t e) {
        return residents_[static_cast<std::size_t>(e)].transfer.done();
      });
}

absl::Status NvmeStoreImpl::WindowReadResult(Window* window) {
  for (const std::int32_t e : window->extents) {
    Resident& at = resident(e);
    if (at.writing) continue;
    if (!at.transfer.ok()) {
      return names_.OfTransfer("read", files_.state, e,
                               next_.places[static_cast<std::size_t>(e)],
                               at.transfer);
    }
    at.valid = at.cached;
  }
  return absl::OkStatus();
}

// Gives back the slots of windows whose writes are done, in order.
void NvmeStoreImpl::ReclaimSlots() {
  while (first_unreclaimed_ < next_release_) {
    Window& window = windows_[first_unreclaimed_];
    for (const std::int32_t e : window.extents) {
      if (!resident(e).transfer.done()) return;
    }
    for (const std::int32_t e : window.extents) {
      failed_.Update(TakeWriteResult(e));
    }
    if (window.slot >= 0) free_slots_.push_back(window.slot);
    window.slot = -1;
    ++first_unreclaimed_;
  }
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
  const Extent& shape = map().extent(extent);
  std::uint8_t& place = next_.places[static_cast<std::size_t>(extent)];
  // A second visit in one pass writes again where no commit refers to yet.
  if (!at.touched) {
    place = book_.Next(extent, place);
    if (pins_ != nullptr) pins_->AwaitPlace(extent, place);
    touched_.push_back(extent);
    at.touched = true;
  }
  at.writing = true;
  stats_.bytes_written += shape.bytes;
  queue_->Start({.write = true,
                 .file = shape.file,
                 .offset_bytes = map().OffsetBytes(extent, place),
                 .buffer = at.buffer},
                {at.data, static_cast<std::size_t>(shape.bytes)}, &at.transfer);
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
