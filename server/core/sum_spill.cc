#include "server/core/sum_spill.h"

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "common/check.h"
#include "common/segment_format.h"
#include "common/status_macros.h"

namespace stowage::core {

absl::StatusOr<std::unique_ptr<SumSpill>> SumSpill::Create(
    const Layout& layout, std::int32_t buffers, storage::UnitStore& store,
    bool lock_memory, storage::MemoryBudget* budget,
    storage::MemoryReservation reservation) {
  auto made = absl::WrapUnique(new SumSpill(layout, store));
  const std::int64_t bytes =
      GradientRegionElems(layout) * static_cast<std::int64_t>(sizeof(float));
  for (std::int32_t i = 0; i < buffers; ++i) {
    Buffer& buffer = made->buffers_.emplace_back();
    STOWAGE_ASSIGN_OR_RETURN(
        buffer.arena,
        storage::PinnedArena::Create(
            bytes, lock_memory, budget,
            reservation.Split(storage::PinnedArena::MappedBytes(bytes))));
  }
  return made;
}

SumSpill::~SumSpill() {
  // The store writes from and reads into the buffers until then.
  for (Buffer& buffer : buffers_) Finish(buffer).IgnoreError();
}

SumSpill::Buffer* SumSpill::Find(std::int32_t unit) {
  const std::int32_t at = buffer_of_[static_cast<std::size_t>(unit)];
  return at < 0 ? nullptr : &buffers_[static_cast<std::size_t>(at)];
}

// Waits for what moves. Leaves the buffer idle, or as it was on an error.
absl::Status SumSpill::Finish(Buffer& buffer) {
  if (buffer.state != State::kReading && buffer.state != State::kWriting) {
    return absl::OkStatus();
  }
  STOWAGE_RETURN_IF_ERROR(store_.Await(buffer.unit));
  buffer.state = State::kIdle;
  return absl::OkStatus();
}

// An empty buffer: one that is, or the least recently used.
absl::StatusOr<SumSpill::Buffer*> SumSpill::Free() {
  Buffer* chosen = &*std::min_element(
      buffers_.begin(), buffers_.end(), [](const Buffer& a, const Buffer& b) {
        const bool a_empty = a.state == State::kEmpty;
        const bool b_empty = b.state == State::kEmpty;
        return a_empty != b_empty ? a_empty : a.used < b.used;
      });
  STOWAGE_RETURN_IF_ERROR(Finish(*chosen));
  if (chosen->unit >= 0) {
    buffer_of_[static_cast<std::size_t>(chosen->unit)] = -1;
  }
  chosen->unit = -1;
  chosen->state = State::kEmpty;
  return chosen;
}

absl::Status SumSpill::Acquire(std::int32_t unit, bool load) {
  Buffer* buffer = Find(unit);
  if (buffer == nullptr) {
    STOWAGE_ASSIGN_OR_RETURN(buffer, Free());
    buffer->unit = unit;
    buffer_of_[static_cast<std::size_t>(unit)] =
        static_cast<std::int32_t>(buffer - buffers_.data());
    buffer->state = State::kIdle;
    if (load) {
      STOWAGE_RETURN_IF_ERROR(store_.StartRead(
          unit, {buffer->arena.data(),
                 static_cast<std::size_t>(store_.payload_bytes(unit))}));
      buffer->state = State::kReading;
    }
  }
  buffer->used = ++uses_;
  return Finish(*buffer);
}

absl::Status SumSpill::Save(std::int32_t unit) {
  Buffer* buffer = Find(unit);
  STOWAGE_CHECK(buffer != nullptr && buffer->state == State::kIdle);
  STOWAGE_RETURN_IF_ERROR(store_.StartWrite(
      unit, {buffer->arena.data(),
             static_cast<std::size_t>(store_.payload_bytes(unit))}));
  buffer->state = State::kWriting;
  return absl::OkStatus();
}

absl::Status SumSpill::ReadAhead(std::int32_t unit) {
  if (Find(unit) != nullptr) return absl::OkStatus();
  const auto empty = std::find_if(
      buffers_.begin(), buffers_.end(),
      [](const Buffer& buffer) { return buffer.state == State::kEmpty; });
  if (empty == buffers_.end()) return absl::OkStatus();
  STOWAGE_RETURN_IF_ERROR(store_.StartRead(
      unit, {empty->arena.data(),
             static_cast<std::size_t>(store_.payload_bytes(unit))}));
  empty->unit = unit;
  empty->state = State::kReading;
  empty->used = ++uses_;
  buffer_of_[static_cast<std::size_t>(unit)] =
      static_cast<std::int32_t>(empty - buffers_.begin());
  return absl::OkStatus();
}

absl::Status SumSpill::Drop(std::int32_t unit) {
  Buffer* buffer = Find(unit);
  if (buffer == nullptr) return absl::OkStatus();
  STOWAGE_RETURN_IF_ERROR(Finish(*buffer));
  buffer_of_[static_cast<std::size_t>(unit)] = -1;
  buffer->unit = -1;
  buffer->state = State::kEmpty;
  return absl::OkStatus();
}

float* SumSpill::data(std::int32_t unit) const {
  const std::int32_t at = buffer_of_[static_cast<std::size_t>(unit)];
  STOWAGE_CHECK(at >= 0);
  return reinterpret_cast<float*>(
      buffers_[static_cast<std::size_t>(at)].arena.data());
}

std::int64_t SumSpill::bytes() const {
  std::int64_t bytes = 0;
  for (const Buffer& buffer : buffers_) bytes += buffer.arena.mapped_bytes();
  return bytes;
}

}  // namespace stowage::core
