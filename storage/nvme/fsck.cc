#include "storage/nvme/fsck.h"

namespace stowage::storage {

std::string ToString(const FsckFault& fault) { return fault.what; }

absl::StatusOr<FsckReport> Fsck(const std::string& /*path*/,
                                const std::string& /*job_name*/,
                                Disk* /*disk*/) {
  return absl::UnimplementedError("the NVMe tier is not built yet");
}

absl::Status RewindClosed(const std::string& /*path*/,
                          const std::string& /*job_name*/,
                          std::int64_t /*step*/, Disk* /*disk*/) {
  return absl::UnimplementedError("the NVMe tier is not built yet");
}

}  // namespace stowage::storage
