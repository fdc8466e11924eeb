// A job's parameter segment as the server writes it: words and parameters.
//
// Leased parameters: units come and go within pages that stay. Giving a unit
// fresh pages and taking them away again costs 2.5 us a page (allocate, clear,
// map, unmap, free; 2-core EPYC, 2026-11-26), four times a step; these are
// there from the start and in huge pages where the kernel gives them. A unit
// for which the free ones are not in one piece gets pages at its own place in
// the layout's order, and as many of the free ones go (of a huge page that is
// in use beside them the kernel may keep that part until it is used again).
//
// Source: common/segment_format.h; fallocate(2), FALLOC_FL_PUNCH_HOLE.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout.h"
#include "common/segment_format.h"
#include "server/core/page_places.h"
#include "storage/host/segment.h"

namespace stowage::core {

// Thread safety: a unit's words and parameters are written by one thread at a
//   time; different units by any threads. PlaceUnit() and FreeUnit(): one
//   thread at a time.
class ParamSegment {
 public:
  struct Options {
    std::uint64_t job_id = 0;
    bool lock_memory = false;
    // Units have no pages until PlaceUnit(), and never more than so many bytes
    // of them at once. None: all have theirs.
    std::optional<std::int64_t> leased_bytes;
  };

  // `layout` must outlive the object; `reservation` holds
  // ParamSegmentBytes(layout), or leased_bytes and
  // ParamDataOffsetBytes(layout). Errors: as storage::Segment::Create().
  static absl::StatusOr<std::unique_ptr<ParamSegment>> Create(
      const Layout& layout, const storage::SegmentFolder& folder,
      const Options& options, storage::MemoryBudget* budget,
      storage::MemoryReservation reservation);

  const std::string& file_name() const { return segment_->file_name(); }
  std::int64_t bytes() const { return segment_->bytes(); }
  bool broken() const { return segment_->broken(); }

  // Address of an element of the unit's flat buffer, in the layout's type. A
  // leased unit must have its pages.
  std::byte* param(std::int32_t unit, std::int64_t begin_elems) const;

  const UnitWords& unit_words(std::int32_t unit) const { return words(unit); }

  // Bytes of a unit's parameters, whole pages.
  std::int64_t unit_bytes(std::int32_t unit) const;
  // Leased: give a unit pages, with whatever is in them, or take them back.
  // Requires: within leased_bytes with those that have theirs. Errors: as
  // storage::Segment::Populate(); the unit has none then.
  absl::Status PlaceUnit(std::int32_t unit);
  void FreeUnit(std::int32_t unit);
  // What lies between and behind a unit's parameters becomes zero.
  void ClearPadding(std::int32_t unit);

  void SetEpoch(std::uint64_t epoch);

  // Move a unit's words: what was written before is visible to whoever reads
  // the new value. A wake call is due only if a rank says that it sleeps
  // (RunGradients::AnyWaiter(), to be asked after this).
  void PublishVersion(std::int32_t unit, std::int64_t step);
  void PublishLanded(std::int32_t unit, std::int64_t micro_steps_total);
  void WakeVersion(std::int32_t unit);
  void WakeLanded(std::int32_t unit);

 private:
  ParamSegment(const Layout& layout, std::unique_ptr<storage::Segment> segment,
               std::int64_t leased_bytes);
  UnitWords& words(std::int32_t unit) const;
  std::int64_t OwnPlace(std::int32_t unit) const;
  void MoveTo(std::int32_t unit, std::int64_t offset_bytes);

  const Layout& layout_;
  std::unique_ptr<storage::Segment> segment_;
  std::vector<std::int64_t> offsets_;  // by unit
  std::int64_t unit_bytes_max_ = 0;
  PagePlaces places_;  // from LeasedParamOffsetBytes()
  // Whose pages went for units at their own places, by unit.
  std::vector<std::vector<PagePlaces::Run>> gone_;
  bool torn_ = false;  // free places may be holes
};

}  // namespace stowage::core
