#include "storage/nvme/nvme_options.h"

namespace stowage::storage {

absl::Status CheckNvmeOptions(const NvmeStoreOptions& /*options*/) {
  return absl::UnimplementedError("the NVMe tier is not built yet");
}

std::int64_t NvmePinnedBytes(const Layout& /*layout*/,
                             const NvmeStoreOptions& /*options*/) {
  return 0;
}

std::int64_t NvmeSpaceBytes(const Layout& /*layout*/,
                            const NvmeStoreOptions& /*options*/,
                            std::vector<std::int64_t>* /*by_path*/) {
  return 0;
}

std::int64_t NvmePinnedBytesMin(const Layout& /*layout*/,
                                const NvmeStoreOptions& /*options*/) {
  return 0;
}

absl::StatusOr<NvmeStoreOptions> FitNvmeOptions(const Layout& /*layout*/,
                                                NvmeStoreOptions /*options*/,
                                                std::int64_t /*budget_bytes*/) {
  return absl::UnimplementedError("the NVMe tier is not built yet");
}

}  // namespace stowage::storage
