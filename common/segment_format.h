// Byte layout of the segments that server and ranks of one host share.
//
// Parameter segment (one per job; the server writes, ranks map it read-only):
//   [SegmentHeader, one page][UnitWords per unit, padded to a page][parameters:
//   layout.total_elems() of the layout's type, unit after unit]
// Where ranks lease parameters that come and go, places in that order are holes
// but for few, and behind it, from the next huge page, lies what is in memory:
//   [as much as may be in memory at once]
// UnitWords::page says where a unit is, from a lease to its end.
// Gradient segment (one per rank; the rank writes, the server reads):
//   [SegmentHeader, one page][slot 0][slot 1]...; a slot holds
//   layout.state_elems() elements of the layout's type. Or, where
//   AttachInfo::gradient_regions says so, [SegmentHeader, one page][region 0]
//   [region 1]...; a region holds one unit's trainable elements at a time and
//   is as long as the largest unit's.
//
// The server never believes a number in here: it computes every offset from
// its own Layout and keeps places itself. The words of UnitWords are 32-bit
// futexes and hold the low bits of a counter; compare with WordReached().
//
// Source: futex(2).

#pragma once

#include <atomic>
#include <cstdint>

#include "common/bytes.h"
#include "common/layout.h"

namespace stowage {

inline constexpr std::uint64_t kParamSegmentMagic = 0x7374776770617261ULL;
inline constexpr std::uint64_t kGradientSegmentMagic = 0x7374776767726164ULL;
inline constexpr std::int64_t kSegmentPageBytes = 4096;
inline constexpr std::int64_t kSegmentHugePageBytes = std::int64_t{2} << 20;

struct SegmentHeader {
  std::uint64_t magic = 0;
  std::uint32_t format_version = 0;  // kProtocolVersion
  std::uint32_t reserved = 0;
  std::uint64_t job_id = 0;
  std::uint64_t layout_fingerprint = 0;
  std::uint64_t epoch = 0;
  // Gradient segment only; written by the rank, a hint: not 0 while a thread
  // of the rank sleeps in a futex on a word of the parameter segment. Whatever
  // is in here decides only whether the server spends a wake call.
  std::atomic<std::uint32_t> waiters{0};
};
static_assert(sizeof(SegmentHeader) <= kSegmentPageBytes);

// One cache line per unit.
struct alignas(64) UnitWords {
  // Low 32 bits of the step whose result the unit's parameters are.
  std::atomic<std::uint32_t> version{0};
  // Low 32 bits of the number of micro steps landed since the job began
  // (committed steps x micro steps + landed ones of this step).
  std::atomic<std::uint32_t> landed{0};
  // The page of the segment that the unit's parameters begin at; 0: they are at
  // their place in the layout's order.
  std::atomic<std::uint32_t> page{0};
};
static_assert(sizeof(UnitWords) == 64);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

// True if counter `word` has reached `target`, both modulo 2^32.
constexpr bool WordReached(std::uint32_t word, std::uint32_t target) {
  return static_cast<std::int32_t>(word - target) >= 0;
}

// Offsets and sizes in bytes, from the layout alone.
constexpr std::int64_t ParamWordsOffsetBytes() { return kSegmentPageBytes; }
inline std::int64_t ParamDataOffsetBytes(const Layout& layout) {
  return kSegmentPageBytes +
         RoundUp(
             layout.unit_count() * static_cast<std::int64_t>(sizeof(UnitWords)),
             kSegmentPageBytes);
}
inline std::int64_t UnitParamOffsetBytes(const Layout& layout,
                                         std::int32_t unit_index) {
  return ParamDataOffsetBytes(layout) +
         layout.units()[static_cast<std::size_t>(unit_index)].begin_elems *
             DtypeBytes(layout.param_dtype());
}
inline std::int64_t ParamSegmentBytes(const Layout& layout) {
  return RoundUp(ParamDataOffsetBytes(layout) +
                     layout.total_elems() * DtypeBytes(layout.param_dtype()),
                 kSegmentPageBytes);
}
inline std::int64_t UnitParamOffsetBytes(const Layout& layout,
                                         std::int32_t unit_index,
                                         const UnitWords& words) {
  const std::int64_t page = words.page.load(std::memory_order_acquire);
  return page == 0 ? UnitParamOffsetBytes(layout, unit_index)
                   : page * kSegmentPageBytes;
}
// Where what is in memory of leased parameters begins.
inline std::int64_t LeasedParamOffsetBytes(const Layout& layout) {
  return RoundUp(ParamSegmentBytes(layout), kSegmentHugePageBytes);
}
inline std::int64_t UnitGradientOffsetBytes(const Layout& layout,
                                            std::int32_t slot,
                                            std::int32_t unit_index) {
  return kSegmentPageBytes +
         (slot * layout.state_elems() +
          layout.units()[static_cast<std::size_t>(unit_index)]
              .state_begin_elems) *
             DtypeBytes(layout.param_dtype());
}
// Elements of a gradient region.
inline std::int64_t GradientRegionElems(const Layout& layout) {
  std::int64_t elems = 0;
  for (const Layout::Unit& unit : layout.units()) {
    if (unit.trainable_elems > elems) elems = unit.trainable_elems;
  }
  return elems;
}
inline std::int64_t GradientRegionOffsetBytes(const Layout& layout,
                                              std::int32_t region) {
  return kSegmentPageBytes + region * GradientRegionElems(layout) *
                                 DtypeBytes(layout.param_dtype());
}
inline std::int64_t GradientRegionsBytes(const Layout& layout,
                                         std::int32_t regions) {
  return RoundUp(GradientRegionOffsetBytes(layout, regions), kSegmentPageBytes);
}
inline std::int64_t GradientSegmentBytes(const Layout& layout,
                                         std::int32_t slots) {
  return RoundUp(kSegmentPageBytes + slots * layout.state_elems() *
                                         DtypeBytes(layout.param_dtype()),
                 kSegmentPageBytes);
}

}  // namespace stowage
