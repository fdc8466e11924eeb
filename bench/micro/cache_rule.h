// What the cache's rule is worth: bytes that a step reads when a share of the
// state, or of the parameters, stays in memory; by the rule in use and by LRU.
//
// State: the store's own count, and LRU played over the same extents.
// Parameters: ParamResidency over a real store with its trace (Belady's rule)
// and without one (then it evicts what was used longest ago), forward and
// backward of a step.

#pragma once

#include <cstdint>
#include <string>

namespace stowage::bench {

// One JSON object: {"rows": [{"what", "share", "belady_bytes", "lru_bytes"}]}.
// `path`: a folder on the disk. Blocks: for seconds.
std::string MeasureCacheRule(const std::string& path, std::int64_t elems);

}  // namespace stowage::bench
