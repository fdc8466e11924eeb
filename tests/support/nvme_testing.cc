#include "tests/support/nvme_testing.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "storage/host/memory_budget.h"

namespace stowage::testing {
namespace {

storage::MemoryBudget& Budget() {
  static storage::MemoryBudget budget(std::int64_t{1} << 34);
  return budget;
}

// Removes the process's scratch folder when the process ends.
class Scratch {
 public:
  Scratch() {
    const char* folder = std::getenv("TMPDIR");  // NOLINT: before threads
    const std::filesystem::path base =
        folder == nullptr || *folder == '\0' ? "." : folder;
    path_ = std::filesystem::absolute(base) /
            absl::StrCat("stowage-nvme-test-", ::getpid());
    std::filesystem::create_directories(path_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

absl::StatusOr<storage::MemoryReservation> Reserve(
    const Layout& layout, const storage::NvmeStoreOptions& options) {
  return Budget().Reserve(storage::NvmePinnedBytes(layout, options), "test");
}

}  // namespace

storage::NvmeStoreOptions SmallNvmeOptions() {
  storage::NvmeStoreOptions options;
  options.job_name = "job";
  options.job_id = 7;
  options.paths = {"/disk0", "/disk1"};
  options.extent_bytes = kMiB;
  options.block_size = 64 * kKiB;
  options.queue_depth = 8;
  options.lock_memory = false;
  return options;
}

absl::StatusOr<std::unique_ptr<storage::NvmeStore>> CreateNvmeStore(
    const Layout& layout, const storage::NvmeStoreOptions& options) {
  auto reservation = Reserve(layout, options);
  if (!reservation.ok()) return reservation.status();
  return storage::NvmeStore::Create(layout, options, &Budget(),
                                    *std::move(reservation));
}

absl::StatusOr<std::unique_ptr<storage::NvmeStore>> OpenNvmeStore(
    const Layout& layout, const storage::NvmeStoreOptions& options) {
  auto reservation = Reserve(layout, options);
  if (!reservation.ok()) return reservation.status();
  return storage::NvmeStore::Open(layout, options, &Budget(),
                                  *std::move(reservation));
}

std::string ScratchFolder(const std::string& name) {
  static const Scratch scratch;
  const std::filesystem::path path = scratch.path() / name;
  std::filesystem::create_directories(path);
  return path.string();
}

void MakeUnruly(SimulatedDisk* disk) {
  disk->MakeQueuesFull(true);
  disk->InjectFaults([](const SimulatedDisk::Request& request) {
    SimulatedDisk::Fault fault;
    if (request.index % 5 == 1) {
      fault.short_bytes = request.bytes / 2 / 4096 * 4096;
    }
    if (fault.short_bytes == 0) fault.short_bytes = -1;
    if (request.index % 7 == 2) fault.late_polls = 3;
    if (request.index % 97 == 3) fault.error = EAGAIN;
    if (request.index % 89 == 4) fault.error = EINTR;
    return fault;
  });
}

}  // namespace stowage::testing
