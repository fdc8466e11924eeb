#include "server/core/range_coverage.h"

#include <algorithm>
#include <iterator>

namespace stowage::core {

void RangeCoverage::Add(std::int64_t begin, std::int64_t end) {
  if (begin >= end) return;
  auto next = ends_.upper_bound(begin);
  if (next != ends_.begin()) {
    const auto previous = std::prev(next);
    if (previous->second >= begin) {
      begin = previous->first;
      end = std::max(end, previous->second);
      next = ends_.erase(previous);
    }
  }
  while (next != ends_.end() && next->first <= end) {
    end = std::max(end, next->second);
    next = ends_.erase(next);
  }
  ends_.emplace_hint(next, begin, end);
}

std::int64_t RangeCoverage::FirstGap(std::int64_t begin,
                                     std::int64_t end) const {
  if (begin >= end) return end;
  const auto next = ends_.upper_bound(begin);
  if (next == ends_.begin()) return begin;
  const std::int64_t covered = std::prev(next)->second;
  return covered <= begin ? begin : std::min(covered, end);
}

}  // namespace stowage::core
