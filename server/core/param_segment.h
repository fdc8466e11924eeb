// A job's parameter segment as the server writes it: words and parameters.
//
// Source: common/segment_format.h.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout.h"
#include "common/segment_format.h"
#include "storage/host/segment.h"

namespace stowage::core {

// Thread safety: a unit's words and parameters are written by one thread at a
//   time; different units by any threads.
class ParamSegment {
 public:
  // `layout` must outlive the object; `reservation` holds
  // ParamSegmentBytes(layout). With `sparse` units have no pages until
  // PopulateUnit(), and it holds what will be populated at once. Errors: as
  // storage::Segment::Create().
  static absl::StatusOr<std::unique_ptr<ParamSegment>> Create(
      const Layout& layout, std::uint64_t job_id,
      const storage::SegmentFolder& folder, bool lock_memory,
      storage::MemoryBudget* budget, storage::MemoryReservation reservation,
      bool sparse = false);

  const std::string& file_name() const { return segment_->file_name(); }
  std::int64_t bytes() const { return segment_->bytes(); }
  bool broken() const { return segment_->broken(); }

  // Address of an element of the unit's flat buffer, in the layout's type.
  std::byte* param(std::int32_t unit, std::int64_t begin_elems) const;

  const UnitWords& unit_words(std::int32_t unit) const { return words(unit); }

  // Bytes of a unit's parameters, whole pages.
  std::int64_t unit_bytes(std::int32_t unit) const;
  // Sparse: give a unit its pages, or take them away.
  absl::Status PopulateUnit(std::int32_t unit);
  void DropUnit(std::int32_t unit);

  void SetEpoch(std::uint64_t epoch);

  // Move a unit's words: what was written before is visible to whoever reads
  // the new value. A wake call is due only if a rank says that it sleeps
  // (RunGradients::AnyWaiter(), to be asked after this).
  void PublishVersion(std::int32_t unit, std::int64_t step);
  void PublishLanded(std::int32_t unit, std::int64_t micro_steps_total);
  void WakeVersion(std::int32_t unit);
  void WakeLanded(std::int32_t unit);

 private:
  ParamSegment(const Layout& layout, std::unique_ptr<storage::Segment> segment);
  UnitWords& words(std::int32_t unit) const;

  const Layout& layout_;
  std::unique_ptr<storage::Segment> segment_;
};

}  // namespace stowage::core
