// What tests of the NVMe store share: options for small jobs, a store with its
// reservation, a folder on a real disk, and a disk that misbehaves lawfully.

#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/layout.h"
#include "storage/nvme/nvme_store.h"
#include "tests/support/simulated_disk.h"

namespace stowage::testing {

// Two folders of a simulated disk, extents of 1 MiB, blocks of 64 KiB.
storage::NvmeStoreOptions SmallNvmeOptions();

// Create() and Open() with a reservation of exactly what the options need, from
// one budget of the process.
absl::StatusOr<std::unique_ptr<storage::NvmeStore>> CreateNvmeStore(
    const Layout& layout, const storage::NvmeStoreOptions& options);
absl::StatusOr<std::unique_ptr<storage::NvmeStore>> OpenNvmeStore(
    const Layout& layout, const storage::NvmeStoreOptions& options);

// A folder of that name in $TMPDIR (or the working folder) that is removed when
// the process ends.
std::string ScratchFolder(const std::string& name);

// Short, late and put-off transfers and full queues, which a store must hide.
void MakeUnruly(SimulatedDisk* disk);

}  // namespace stowage::testing
