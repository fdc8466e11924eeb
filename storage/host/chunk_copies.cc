#include "storage/host/chunk_copies.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/bytes.h"

namespace stowage::storage {
namespace {

// Master and two moments of the largest chunk.
constexpr std::int64_t kSlotBytes =
    3 * kChunkElems * static_cast<std::int64_t>(sizeof(float));
// The pool grows by so much: a few milliseconds of page faults.
constexpr std::int64_t kSlabBytes = 32 * kSlotBytes;

}  // namespace

ChunkCopies::ChunkCopies(const Layout& layout, const SnapshotOptions& options)
    : layout_(layout),
      options_(options),
      states_(std::make_unique<std::atomic<State>[]>(layout.chunks().size())),
      copies_(layout.chunks().size(), nullptr) {}

StateView ChunkCopies::SlotView(float* slot) const {
  return {slot, slot + kChunkElems, slot + 2 * kChunkElems};
}

void ChunkCopies::Copy(std::int32_t chunk, const StateView& from,
                       const StateView& to) {
  const std::int64_t count = elems(chunk);
  std::copy_n(from.master, count, to.master);
  std::copy_n(from.moment1, count, to.moment1);
  std::copy_n(from.moment2, count, to.moment2);
}

bool ChunkCopies::AddSlab() {
  const std::int64_t bytes = PinnedArena::MappedBytes(
      std::min(kSlabBytes, options_.copies_bytes_max - pool_bytes_));
  if (options_.budget == nullptr || bytes < kSlotBytes ||
      pool_bytes_ + bytes > options_.copies_bytes_max) {
    return false;
  }
  absl::StatusOr<MemoryReservation> reservation =
      options_.budget->Reserve(bytes, "copies for a snapshot");
  if (!reservation.ok()) return false;
  absl::StatusOr<PinnedArena> arena = PinnedArena::Create(
      bytes, /*lock_memory=*/false, options_.budget, *std::move(reservation));
  if (!arena.ok()) return false;
  pool_bytes_ += bytes;
  for (std::int64_t at = 0; at + kSlotBytes <= bytes; at += kSlotBytes) {
    free_slots_.push_back(reinterpret_cast<float*>(arena->data() + at));
  }
  slabs_.push_back(*std::move(arena));
  stats_.copies_bytes_max = std::max(stats_.copies_bytes_max, pool_bytes_);
  return true;
}

float* ChunkCopies::TakeSlot() {
  if (free_slots_.empty() && !AddSlab()) return nullptr;
  float* slot = free_slots_.back();
  free_slots_.pop_back();
  return slot;
}

void ChunkCopies::BeforeUpdate(std::int32_t chunk, const StateView& live) {
  std::atomic<State>& at = state(chunk);
  if (at.load(std::memory_order_acquire) == State::kTaken || ended()) return;
  float* slot = nullptr;
  {
    MutexLock lock(mutex_);
    const auto begin = std::chrono::steady_clock::now();
    bool waited = false;
    for (;;) {
      const State now = at.load(std::memory_order_acquire);
      if (now == State::kTaken || now == State::kCopied || ended()) break;
      if (now == State::kPending) {
        slot = TakeSlot();
        if (slot != nullptr) {
          at.store(State::kBusy, std::memory_order_relaxed);
          ++copying_;
          break;
        }
      }
      // The reader is at this chunk, or there is no room.
      waited = true;
      changed_.Wait(mutex_);
    }
    if (waited) {
      ++stats_.waits;
      stats_.wait_seconds += std::chrono::duration<double>(
                                 std::chrono::steady_clock::now() - begin)
                                 .count();
    }
  }
  if (slot == nullptr) return;
  Copy(chunk, live, SlotView(slot));
  MutexLock lock(mutex_);
  copies_[static_cast<std::size_t>(chunk)] = slot;
  stats_.copied_bytes +=
      3 * elems(chunk) * static_cast<std::int64_t>(sizeof(float));
  at.store(State::kCopied, std::memory_order_release);
  EndCopy();
}

absl::Status ChunkCopies::Take(std::int32_t chunk, const StateView& live,
                               const StateView& into) {
  std::atomic<State>& at = state(chunk);
  float* copy = nullptr;
  {
    MutexLock lock(mutex_);
    // Busy: an update is making its copy, which waits for nothing.
    while (at.load(std::memory_order_acquire) == State::kBusy && !ended()) {
      changed_.Wait(mutex_);
    }
    if (ended()) return absl::CancelledError("the snapshot was given up");
    copy = std::exchange(copies_[static_cast<std::size_t>(chunk)], nullptr);
    if (copy == nullptr) at.store(State::kBusy, std::memory_order_relaxed);
    ++copying_;
  }
  Copy(chunk, copy == nullptr ? live : SlotView(copy), into);
  MutexLock lock(mutex_);
  if (copy != nullptr) free_slots_.push_back(copy);
  at.store(State::kTaken, std::memory_order_release);
  EndCopy();
  return absl::OkStatus();
}

void ChunkCopies::EndCopy() {
  --copying_;
  if (ended() && copying_ == 0) {
    free_slots_.clear();
    slabs_.clear();
  }
  changed_.NotifyAll();
}

void ChunkCopies::End() {
  MutexLock lock(mutex_);
  ended_.store(true, std::memory_order_release);
  ++copying_;
  EndCopy();
}

SnapshotStats ChunkCopies::stats() const {
  MutexLock lock(mutex_);
  return stats_;
}

}  // namespace stowage::storage
