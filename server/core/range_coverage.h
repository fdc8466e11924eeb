// Which elements of a unit have been given: a set of ranges that merge.

#pragma once

#include <cstdint>
#include <map>

namespace stowage::core {

// Thread safety: externally synchronized.
class RangeCoverage {
 public:
  // Adds [begin, end). Requires: begin <= end.
  // Cost: logarithmic in the gaps that are left.
  void Add(std::int64_t begin, std::int64_t end);

  // The first element of [begin, end) that is not covered, or `end`.
  std::int64_t FirstGap(std::int64_t begin, std::int64_t end) const;

  // Separate ranges held; bounds the memory a client can make this use.
  std::int64_t range_count() const {
    return static_cast<std::int64_t>(ends_.size());
  }

 private:
  std::map<std::int64_t, std::int64_t>
      ends_;  // by begin; disjoint, not adjacent
};

}  // namespace stowage::core
