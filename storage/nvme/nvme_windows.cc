// The windows of NvmeStoreImpl's pass: which extents are in memory, what is
// read ahead, when a slot is free again.

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/bytes.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "storage/nvme/crc32c.h"
#include "storage/nvme/nvme_store_impl.h"

namespace stowage::storage {
namespace {

constexpr std::int64_t kBufferBytesMax = kGiB;

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
  stats_.bytes_read += map().extent(extent).bytes;
  MoveExtent(extent, place, /*write=*/false);
  return absl::OkStatus();
}

// Starts moving an extent between where it is in memory and a place.
void NvmeStoreImpl::MoveExtent(std::int32_t extent, std::uint8_t place,
                               bool write) {
  Resident& at = resident(extent);
  const Extent& shape = map().extent(extent);
  queue_->Start({.write = write,
                 .file = shape.file,
                 .offset_bytes = map().OffsetBytes(extent, place),
                 .buffer = at.buffer},
                {at.data, static_cast<std::size_t>(shape.bytes)}, &at.transfer);
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

}  // namespace stowage::storage
