#include "server/core/run_gradients.h"

#include <new>
#include <utility>

#include "absl/memory/memory.h"
#include "common/check.h"
#include "common/segment_format.h"
#include "common/status_macros.h"

namespace stowage::core {

// NOLINTNEXTLINE(readability-function-size): all of it is what a run is made of
absl::StatusOr<std::unique_ptr<RunGradients>> RunGradients::Create(
    const Layout& layout, const RunSpec& run, const SlotPlan& plan,
    const Sums& sums, const Identity& identity,
    const storage::SegmentFolder& folder, bool lock_memory,
    storage::MemoryBudget* budget, storage::MemoryReservation reservation) {
  auto made = absl::WrapUnique(new RunGradients(layout, plan));
  const std::int64_t bytes =
      plan.regions > 0 ? GradientRegionsBytes(layout, plan.regions)
                       : GradientSegmentBytes(layout, plan.slots_per_rank);
  for (std::int32_t r = 0; r < run.gradient_segments(); ++r) {
    STOWAGE_ASSIGN_OR_RETURN(
        std::unique_ptr<storage::Segment> segment,
        storage::Segment::Create(
            folder,
            {.kind = "grad", .bytes = bytes, .lock_memory = lock_memory},
            budget, reservation.Split(bytes)));
    auto* header = ::new (segment->data()) SegmentHeader();
    header->magic = kGradientSegmentMagic;
    header->format_version = kProtocolVersion;
    header->job_id = identity.job_id;
    header->layout_fingerprint = layout.fingerprint();
    header->epoch = identity.epoch;
    made->segments_.push_back(std::move(segment));
  }
  if (sums.buffers > 0) {
    STOWAGE_ASSIGN_OR_RETURN(
        made->spill_,
        SumSpill::Create(layout, sums.buffers, *sums.store, lock_memory, budget,
                         std::move(reservation)));
  } else if (plan.ring) {
    STOWAGE_ASSIGN_OR_RETURN(
        made->sums_,
        storage::PinnedArena::Create(
            layout.state_elems() * static_cast<std::int64_t>(sizeof(float)),
            lock_memory, budget, std::move(reservation)));
  }
  return made;
}

const std::string& RunGradients::file_name(std::int32_t rank) const {
  // Shards: one for all.
  return segments_[segments_.size() == 1 ? 0 : static_cast<std::size_t>(rank)]
      ->file_name();
}

std::span<std::byte> RunGradients::slot_bytes(std::int32_t rank,
                                              std::int32_t micro,
                                              std::int32_t region,
                                              std::int32_t unit) const {
  const std::int64_t offset =
      plan_.regions > 0 ? GradientRegionOffsetBytes(layout_, region)
                        : UnitGradientOffsetBytes(
                              layout_, micro % plan_.slots_per_rank, unit);
  return {segments_[segments_.size() == 1 ? 0 : static_cast<std::size_t>(rank)]
                  ->data() +
              offset,
          static_cast<std::size_t>(
              layout_.units()[static_cast<std::size_t>(unit)].trainable_elems *
              DtypeBytes(layout_.param_dtype()))};
}

std::int64_t RunGradients::bytes() const {
  std::int64_t bytes = sums_.mapped_bytes() + (spill_ ? spill_->bytes() : 0);
  for (const auto& segment : segments_) bytes += segment->bytes();
  return bytes;
}

const void* RunGradients::slot(std::int32_t rank, std::int32_t slot,
                               const Layout::Chunk& chunk) const {
  return segments_[static_cast<std::size_t>(rank)]->data() +
         UnitGradientOffsetBytes(layout_, slot, chunk.unit_index) +
         chunk.begin_elems * DtypeBytes(layout_.param_dtype());
}

optim::GradientSource RunGradients::StepSource(const StepGradients& gradients,
                                               const Layout::Chunk& chunk,
                                               SlotPointers& pointers) const {
  optim::GradientSource source;
  source.slot_dtype = layout_.param_dtype();
  if (plan_.ring) {
    if (gradients.sum_started[static_cast<std::size_t>(chunk.unit_index)] !=
        0) {
      source.sum = sum(chunk);
    }
    return source;
  }
  std::size_t used = 0;
  const auto ranks = static_cast<std::int32_t>(segments_.size());
  for (std::int32_t micro = 0; micro < plan_.slots_per_rank; ++micro) {
    for (std::int32_t rank = 0; rank < ranks; ++rank) {
      if (gradients
              .empty[gradients.EmptyIndex(chunk.unit_index, micro, rank)] ==
          0) {
        pointers[used++] = slot(rank, micro, chunk);
      }
    }
  }
  source.slots = std::span<const void* const>(pointers.data(), used);
  return source;
}

optim::GradientSource RunGradients::RankSource(const StepGradients& gradients,
                                               const Layout::Chunk& chunk,
                                               std::int32_t rank,
                                               SlotPointers& pointers) const {
  STOWAGE_CHECK(!plan_.ring);
  std::size_t used = 0;
  for (std::int32_t micro = 0; micro < plan_.slots_per_rank; ++micro) {
    if (gradients.empty[gradients.EmptyIndex(chunk.unit_index, micro, rank)] ==
        0) {
      pointers[used++] = slot(rank, micro, chunk);
    }
  }
  return {std::span<const void* const>(pointers.data(), used),
          layout_.param_dtype(), nullptr};
}

std::span<const void* const> RunGradients::MicroSlots(
    const StepGradients& gradients, const Layout::Chunk& chunk,
    SlotPointers& pointers) const {
  std::size_t used = 0;
  const auto ranks = static_cast<std::int32_t>(segments_.size());
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    if (gradients.empty[gradients.EmptyIndex(chunk.unit_index, 0, rank)] == 0) {
      pointers[used++] = plan_.regions > 0
                             ? region(rank,
                                      gradients.region[gradients.EmptyIndex(
                                          chunk.unit_index, 0, rank)],
                                      chunk)
                             : slot(rank, 0, chunk);
    }
  }
  return {pointers.data(), used};
}

const void* RunGradients::region(std::int32_t rank, std::int32_t region,
                                 const Layout::Chunk& chunk) const {
  return segments_[static_cast<std::size_t>(rank)]->data() +
         GradientRegionOffsetBytes(layout_, region) +
         chunk.begin_elems * DtypeBytes(layout_.param_dtype());
}

float* RunGradients::sum(const Layout::Chunk& chunk) const {
  if (spill_) return spill_->data(chunk.unit_index) + chunk.begin_elems;
  return reinterpret_cast<float*>(sums_.data()) +
         layout_.units()[static_cast<std::size_t>(chunk.unit_index)]
             .state_begin_elems +
         chunk.begin_elems;
}

bool RunGradients::AnyWaiter() const {
  for (const auto& segment : segments_) {
    const auto* header =
        reinterpret_cast<const SegmentHeader*>(segment->data());
    if (header->waiters.load() != 0) return true;
  }
  return false;
}

std::int32_t RunGradients::BrokenRank() const {
  for (std::size_t r = 0; r < segments_.size(); ++r) {
    if (segments_[r]->broken()) return static_cast<std::int32_t>(r);
  }
  return -1;
}

}  // namespace stowage::core
