#include "storage/nvme/memory_plan.h"

#include <algorithm>

#include "common/bytes.h"

namespace stowage::storage {
namespace {

constexpr std::int64_t kAlignBytes = 4096;
constexpr std::int64_t kStateBytesPerElem = 3 * sizeof(float);

}  // namespace

StoreShape ShapeOf(const Layout& layout, const NvmeStoreOptions& options) {
  return {.job_name = options.job_name,
          .job_id = options.job_id,
          .layout_fingerprint = layout.fingerprint(),
          .kept_versions = options.kept_versions,
          .params = options.params,
          .gradient_spill = options.gradient_spill,
          .checksums = options.checksums,
          .extent_bytes = options.extent_bytes,
          .align_bytes = kAlignBytes,
          .paths = options.paths};
}

MemoryPlan PlanMemory(const ExtentMap& state, const ExtentMap& params,
                      const StoreShape& shape,
                      const NvmeStoreOptions& options) {
  MemoryPlan plan;
  plan.slots = options.slots;
  // A window is no smaller than one extent and no larger than the state.
  plan.slot_bytes = std::max(
      state.extent_bytes_max(),
      std::min(
          state.total_bytes(),
          RoundUp(options.window_elems * kStateBytesPerElem, kAlignBytes)));
  plan.cache_bytes =
      std::min(RoundUp(options.cache_bytes, kAlignBytes), state.total_bytes());
  plan.manifest_bytes = ManifestSlotBytes(shape, state, params);
  return plan;
}

}  // namespace stowage::storage
