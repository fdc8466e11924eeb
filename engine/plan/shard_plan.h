// Which elements of a unit a rank owns, and which a node holds.
//
// A unit's flat buffer is cut into equal parts, one for each rank, so that a
// gather is one message of equal pieces; a part is a multiple of the layout's
// parameter alignment, and the last ones are clipped at the unit's end (or
// empty). The server's layout knows nothing of this: with one node it is the
// model's own, with several each node's job holds the clipped parameters of
// its ranks' parts (NodePart), named after the range.
//
// Pure; immutable. Thread safety: immutable.
// Source: Rajbhandari et al., "ZeRO", section "ZeRO-DP" (partitioning).

#pragma once

#include <cstdint>
#include <vector>

#include "common/layout.h"

namespace stowage::plan {

struct ElemRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t elems() const { return end - begin; }
  bool empty() const { return end <= begin; }
  friend bool operator==(const ElemRange&, const ElemRange&) = default;
};

// [begin, end) of both; empty at `a.begin` if they do not meet.
ElemRange Intersect(ElemRange a, ElemRange b);

class ShardPlan {
 public:
  ShardPlan() = default;
  // `parts`: ranks that share a unit; 1: every rank holds all of it.
  ShardPlan(const Layout& layout, std::int32_t parts);

  std::int32_t parts() const { return parts_; }
  // Elements of one part, padding included; equal for all parts of a unit.
  std::int64_t part_elems(std::int32_t unit) const {
    return part_elems_[static_cast<std::size_t>(unit)];
  }
  // Elements of the buffer that a gather of all parts needs.
  std::int64_t gathered_elems(std::int32_t unit) const {
    return parts_ * part_elems(unit);
  }
  // Elements that have a gradient: a prefix of the unit, whole parameters.
  std::int64_t gradient_elems(std::int32_t unit) const {
    return gradient_elems_[static_cast<std::size_t>(unit)];
  }
  // What part `part` is in the unit, clipped to it.
  ElemRange Shard(std::int32_t unit, std::int32_t part) const;
  // Of it, what has a gradient.
  ElemRange GradientShard(std::int32_t unit, std::int32_t part) const;
  std::int32_t unit_count() const {
    return static_cast<std::int32_t>(part_elems_.size());
  }

 private:
  std::int32_t parts_ = 1;
  std::vector<std::int64_t> part_elems_;
  std::vector<std::int64_t> unit_elems_;
  std::vector<std::int64_t> gradient_elems_;
};

// What one node's job holds of the model: parts [first, first + count).
struct NodePart {
  LayoutSpec spec;
  // By the model's unit: the node's, or -1 if the node holds nothing of it.
  std::vector<std::int32_t> unit;
  // By the model's unit: its elements in the model's flat buffer. Element x of
  // the model's is element x - begin of the node's.
  std::vector<ElemRange> range;
  // By the node's trainable tensor, in its layout's order: the model's.
  std::vector<std::int32_t> tensor;
};
// All parts: the model's own spec, unchanged.
NodePart MakeNodePart(const Layout& layout, const ShardPlan& plan,
                      std::int32_t first_part, std::int32_t part_count);

}  // namespace stowage::plan
