// Which gradients travel in one message between ranks.
//
// Units come in the order in which all ranks reduce them. A bucket is sent when
// the next unit would make it larger than bucket_elems; a unit that is larger
// by itself is cut into pieces of at most that, each a message of its own.
// Pieces are ranges of a *part* (what each rank will own), the same on every
// rank, so that a message holds a slice for each.
//
// Thread safety: externally synchronized. Pure.
// Source: DeepSpeed's reduce_bucket_size (behaviour only: there a bucket is
//   flushed before the gradient that would overflow it, and one larger than a
//   bucket travels alone).

#pragma once

#include <cstdint>
#include <vector>

#include "engine/plan/shard_plan.h"

namespace stowage::plan {

// Small messages are under way together until they have so many bytes; of
// larger ones there are two.
inline constexpr std::int64_t kReduceUnderWayBytes = std::int64_t{8} << 20;

struct BucketPiece {
  std::int32_t unit = 0;
  ElemRange in_part;  // of part_elems(unit)
  bool last = true;   // the unit is complete with it
};

struct BucketMessage {
  std::vector<BucketPiece> pieces;
};

class BucketPlan {
 public:
  // `plan` must outlive it. bucket_elems counts the elements of all parts.
  BucketPlan(const ShardPlan* plan, std::int64_t bucket_elems)
      : plan_(plan), bucket_elems_(bucket_elems) {}

  // The unit's gradient is there. Returns: what is to be sent now, in order.
  std::vector<BucketMessage> Add(std::int32_t unit);
  // No more units in this micro step. Returns: one message or none.
  std::vector<BucketMessage> Flush();

  std::int64_t pending_elems() const { return pending_elems_; }

 private:
  const ShardPlan* plan_;
  std::int64_t bucket_elems_;
  BucketMessage pending_;
  std::int64_t pending_elems_ = 0;
};

// Ranges of [0, elems) of at most `piece_elems`, multiples of 64 but the last.
std::vector<ElemRange> CutPieces(std::int64_t elems, std::int64_t piece_elems);

}  // namespace stowage::plan
