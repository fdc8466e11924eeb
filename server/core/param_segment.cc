#include "server/core/param_segment.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <optional>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/job_spec.h"
#include "common/status_macros.h"
#include "server/core/futex.h"

namespace stowage::core {

absl::StatusOr<std::unique_ptr<ParamSegment>> ParamSegment::Create(
    const Layout& layout, const storage::SegmentFolder& folder,
    const Options& options, storage::MemoryBudget* budget,
    storage::MemoryReservation reservation) {
  const bool leased = options.leased_bytes.has_value();
  storage::Segment::Options file{.kind = "param",
                                 .bytes = ParamSegmentBytes(layout),
                                 .lock_memory = options.lock_memory};
  std::int64_t places_bytes = 0;
  if (leased) {
    places_bytes =
        *options.leased_bytes / kSegmentPageBytes * kSegmentPageBytes;
    file.hole_bytes = LeasedParamOffsetBytes(layout);
    file.bytes = file.hole_bytes + places_bytes;
    if (file.bytes / kSegmentPageBytes > UINT32_MAX) {
      return absl::InvalidArgumentError(absl::StrCat(
          "parameter segment: ", file.bytes,
          " bytes of leased parameters and their places, at most 16 TiB; "
          "divide the model over more nodes"));
    }
  }
  STOWAGE_ASSIGN_OR_RETURN(
      std::unique_ptr<storage::Segment> segment,
      storage::Segment::Create(folder, file, budget, std::move(reservation)));
  if (leased) {
    STOWAGE_RETURN_IF_ERROR(segment->Populate(0, ParamDataOffsetBytes(layout)));
  }
  auto* header = ::new (segment->data()) SegmentHeader();
  header->magic = kParamSegmentMagic;
  header->format_version = kProtocolVersion;
  header->job_id = options.job_id;
  header->layout_fingerprint = layout.fingerprint();
  for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
    ::new (segment->data() + ParamWordsOffsetBytes() +
           u * static_cast<std::int64_t>(sizeof(UnitWords))) UnitWords();
  }
  return absl::WrapUnique(
      new ParamSegment(layout, std::move(segment), places_bytes));
}

ParamSegment::ParamSegment(const Layout& layout,
                           std::unique_ptr<storage::Segment> segment,
                           std::int64_t leased_bytes)
    : layout_(layout),
      segment_(std::move(segment)),
      offsets_(static_cast<std::size_t>(layout.unit_count())),
      places_(leased_bytes),
      gone_(static_cast<std::size_t>(layout.unit_count())) {
  for (std::int32_t u = 0; u < layout.unit_count(); ++u) {
    MoveTo(u, OwnPlace(u));
    unit_bytes_max_ = std::max(unit_bytes_max_, unit_bytes(u));
  }
}

UnitWords& ParamSegment::words(std::int32_t unit) const {
  return *reinterpret_cast<UnitWords*>(
      segment_->data() + ParamWordsOffsetBytes() +
      unit * static_cast<std::int64_t>(sizeof(UnitWords)));
}

std::int64_t ParamSegment::OwnPlace(std::int32_t unit) const {
  return UnitParamOffsetBytes(layout_, unit);
}

void ParamSegment::MoveTo(std::int32_t unit, std::int64_t offset_bytes) {
  offsets_[static_cast<std::size_t>(unit)] = offset_bytes;
  const std::int64_t page =
      offset_bytes == OwnPlace(unit) ? 0 : offset_bytes / kSegmentPageBytes;
  words(unit).page.store(static_cast<std::uint32_t>(page),
                         std::memory_order_release);
}

std::byte* ParamSegment::param(std::int32_t unit,
                               std::int64_t begin_elems) const {
  return segment_->data() + offsets_[static_cast<std::size_t>(unit)] +
         begin_elems * DtypeBytes(layout_.param_dtype());
}

std::int64_t ParamSegment::unit_bytes(std::int32_t unit) const {
  return layout_.units()[static_cast<std::size_t>(unit)].elems *
         DtypeBytes(layout_.param_dtype());
}

absl::Status ParamSegment::PlaceUnit(std::int32_t unit) {
  const std::int64_t bytes = unit_bytes(unit);
  if (bytes == 0) return absl::OkStatus();
  const std::int64_t places = LeasedParamOffsetBytes(layout_);
  std::int64_t offset = OwnPlace(unit);
  const auto end = bytes == unit_bytes_max_ ? PagePlaces::End::kFront
                                            : PagePlaces::End::kBack;
  if (const std::optional<std::int64_t> place = places_.Take(bytes, end)) {
    offset = places + *place;
  } else {
    std::vector<PagePlaces::Run> gone = places_.TakePieces(bytes);
    for (const PagePlaces::Run& run : gone) {
      segment_->Punch(places + run.offset, run.bytes);
    }
    gone_[static_cast<std::size_t>(unit)] = std::move(gone);
    torn_ = true;
  }
  MoveTo(unit, offset);
  if (!torn_) return absl::OkStatus();
  absl::Status populated = segment_->Populate(offset, bytes);
  if (!populated.ok()) FreeUnit(unit);
  return populated;
}

void ParamSegment::FreeUnit(std::int32_t unit) {
  const std::int64_t bytes = unit_bytes(unit);
  if (bytes == 0) return;
  const std::int64_t places = LeasedParamOffsetBytes(layout_);
  const std::int64_t own = OwnPlace(unit);
  const std::int64_t offset = offsets_[static_cast<std::size_t>(unit)];
  if (offset != own) {
    places_.Give({offset - places, bytes});
    MoveTo(unit, own);
    return;
  }
  segment_->Punch(own, bytes);
  for (const PagePlaces::Run& run :
       std::exchange(gone_[static_cast<std::size_t>(unit)], {})) {
    places_.Give(run);
  }
}

void ParamSegment::ClearPadding(std::int32_t unit) {
  const Layout::Unit& shape = layout_.units()[static_cast<std::size_t>(unit)];
  std::int64_t end = 0;
  const auto clear_to = [&](std::int64_t begin_elems) {
    STOWAGE_CHECK(begin_elems >= end);
    std::memset(param(unit, end), 0,
                static_cast<std::size_t>((begin_elems - end) *
                                         DtypeBytes(layout_.param_dtype())));
  };
  for (const Layout::Param& param : shape.params) {
    clear_to(param.begin_elems);
    end = param.begin_elems + param.elems;
  }
  clear_to(shape.elems);
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
