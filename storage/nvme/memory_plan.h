// How a store divides the memory it pins: windows, cache, and the buffer that
// the manifest is written from. Pure; what Create() maps is what
// NvmePinnedBytes() says.

#pragma once

#include <cstdint>
#include <vector>

#include "common/layout.h"
#include "storage/nvme/extent_map.h"
#include "storage/nvme/manifest.h"
#include "storage/nvme/nvme_options.h"

namespace stowage::storage {

// The fixed shape that Create() makes of options.
StoreShape ShapeOf(const Layout& layout, const NvmeStoreOptions& options);

struct MemoryPlan {
  std::int64_t slot_bytes = 0;
  std::int32_t slots = 0;
  std::int64_t cache_bytes = 0;
  std::int64_t manifest_bytes = 0;

  std::int64_t total_bytes() const {
    return slots * slot_bytes + cache_bytes + manifest_bytes;
  }
};

MemoryPlan PlanMemory(const ExtentMap& state, const ExtentMap& params,
                      const StoreShape& shape, const NvmeStoreOptions& options);

}  // namespace stowage::storage
