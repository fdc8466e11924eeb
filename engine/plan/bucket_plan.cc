#include "engine/plan/bucket_plan.h"

#include <algorithm>
#include <utility>

#include "common/bytes.h"

namespace stowage::plan {

std::vector<ElemRange> CutPieces(std::int64_t elems, std::int64_t piece_elems) {
  std::vector<ElemRange> pieces;
  // Rounded down, so that a piece stays within the bound; never below one
  // alignment.
  const std::int64_t step = std::max(
      kParamAlignElems, piece_elems / kParamAlignElems * kParamAlignElems);
  for (std::int64_t begin = 0; begin < elems; begin += step) {
    pieces.push_back({begin, std::min(begin + step, elems)});
  }
  return pieces;
}

std::vector<BucketMessage> BucketPlan::Add(std::int32_t unit) {
  std::vector<BucketMessage> out;
  const std::int64_t elems = plan_->gradient_elems(unit);
  if (elems == 0) return out;
  if (pending_elems_ > 0 && pending_elems_ + elems > bucket_elems_) {
    out = Flush();
  }
  // No part has more elements with a gradient than this.
  const std::int64_t part = std::min(plan_->part_elems(unit), elems);
  if (elems <= bucket_elems_) {
    pending_.pieces.push_back({unit, {0, part}, true});
    pending_elems_ += elems;
    return out;
  }
  const std::vector<ElemRange> cut =
      CutPieces(part, bucket_elems_ / plan_->parts());
  for (std::size_t i = 0; i < cut.size(); ++i) {
    out.push_back({{{unit, cut[i], i + 1 == cut.size()}}});
  }
  return out;
}

std::vector<BucketMessage> BucketPlan::Flush() {
  std::vector<BucketMessage> out;
  if (pending_elems_ > 0) out.push_back(std::move(pending_));
  pending_ = {};
  pending_elems_ = 0;
  return out;
}

}  // namespace stowage::plan
