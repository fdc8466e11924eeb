#include "storage/nvme/nvme_store.h"

namespace stowage::storage {
namespace {

absl::Status NotYet() {
  return absl::UnimplementedError("the NVMe tier is not built yet");
}

}  // namespace

absl::StatusOr<std::unique_ptr<NvmeStore>> NvmeStore::Create(
    const Layout& /*layout*/, const NvmeStoreOptions& /*options*/,
    MemoryBudget* /*budget*/, MemoryReservation /*reservation*/) {
  return NotYet();
}

absl::StatusOr<std::unique_ptr<NvmeStore>> NvmeStore::Open(
    const Layout& /*layout*/, const NvmeStoreOptions& /*options*/,
    MemoryBudget* /*budget*/, MemoryReservation /*reservation*/) {
  return NotYet();
}

absl::StatusOr<NvmeStoreInfo> NvmeStore::Peek(const std::string& /*path*/,
                                              const std::string& /*job_name*/,
                                              Disk* /*disk*/) {
  return NotYet();
}

absl::StatusOr<std::vector<std::string>> NvmeStore::List(
    const std::string& /*path*/, Disk* /*disk*/) {
  return NotYet();
}

absl::Status NvmeStore::Remove(const std::vector<std::string>& /*paths*/,
                               const std::string& /*job_name*/,
                               Disk* /*disk*/) {
  return NotYet();
}

}  // namespace stowage::storage
