#include "server/core/param_segment.h"

#include <new>
#include <utility>

#include "absl/memory/memory.h"
#include "common/job_spec.h"
#include "common/status_macros.h"
#include "server/core/futex.h"

namespace stowage::core {

absl::StatusOr<std::unique_ptr<ParamSegment>> ParamSegment::Create(
    const Layout& layout, std::uint64_t job_id,
    const storage::SegmentFolder& folder, bool lock_memory,
    storage::MemoryBudget* budget, storage::MemoryReservation reservation,
    bool sparse) {
  STOWAGE_ASSIGN_OR_RETURN(
      std::unique_ptr<storage::Segment> segment,
      storage::Segment::Create(folder,
                               {.kind = "param",
                                .bytes = ParamSegmentBytes(layout),
                                .lock_memory = lock_memory,
                                .sparse = sparse},
                               budget, std::move(reservation)));
  if (sparse) {
    STOWAGE_RETURN_IF_ERROR(segment->Populate(0, ParamDataOffsetBytes(layout)));
  }
  auto* header = ::new (segment->data()) SegmentHeader();
  header->magic = kParamSegmentMagic;
  header->format_version = kProtocolVersion;
  header->job_id = job_id;
  header->layout_fingerprint = layout.fingerprint();
  for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
    ::new (segment->data() + ParamWordsOffsetBytes() +
           u * static_cast<std::int64_t>(sizeof(UnitWords))) UnitWords();
  }
  return absl::WrapUnique(new ParamSegment(layout, std::move(segment)));
}

ParamSegment::ParamSegment(const Layout& layout,
                           std::unique_ptr<storage::Segment> segment)
    : layout_(layout), segment_(std::move(segment)) {}

UnitWords& ParamSegment::words(std::int32_t unit) const {
  return *reinterpret_cast<UnitWords*>(
      segment_->data() + ParamWordsOffsetBytes() +
      unit * static_cast<std::int64_t>(sizeof(UnitWords)));
}

std::byte* ParamSegment::param(std::int32_t unit,
                               std::int64_t begin_elems) const {
  return segment_->data() + UnitParamOffsetBytes(layout_, unit) +
         begin_elems * DtypeBytes(layout_.param_dtype());
}

std::int64_t ParamSegment::unit_bytes(std::int32_t unit) const {
  return layout_.units()[static_cast<std::size_t>(unit)].elems *
         DtypeBytes(layout_.param_dtype());
}

absl::Status ParamSegment::PopulateUnit(std::int32_t unit) {
  if (unit_bytes(unit) == 0) return absl::OkStatus();
  return segment_->Populate(UnitParamOffsetBytes(layout_, unit),
                            unit_bytes(unit));
}

void ParamSegment::DropUnit(std::int32_t unit) {
  if (unit_bytes(unit) == 0) return;
  segment_->Punch(UnitParamOffsetBytes(layout_, unit), unit_bytes(unit));
}

void ParamSegment::SetEpoch(std::uint64_t epoch) {
  reinterpret_cast<SegmentHeader*>(segment_->data())->epoch = epoch;
}

void ParamSegment::PublishVersion(std::int32_t unit, std::int64_t step) {
  // Sequentially consistent, like the look at the waiters' words that follows:
  // of a rank that announces its sleep and this store, one sees the other.
  words(unit).version.store(static_cast<std::uint32_t>(step));
}

void ParamSegment::PublishLanded(std::int32_t unit,
                                 std::int64_t micro_steps_total) {
  words(unit).landed.store(static_cast<std::uint32_t>(micro_steps_total));
}

void ParamSegment::WakeVersion(std::int32_t unit) {
  FutexWakeShared(words(unit).version);
}

void ParamSegment::WakeLanded(std::int32_t unit) {
  FutexWakeShared(words(unit).landed);
}

}  // namespace stowage::core
