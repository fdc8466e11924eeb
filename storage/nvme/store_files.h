// The open files of one store, the lock on them, and how they are made.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "storage/nvme/extent_map.h"
#include "storage/nvme/io/disk.h"
#include "storage/nvme/io/transfer_queue.h"
#include "storage/nvme/io_fault.h"
#include "storage/nvme/manifest.h"

namespace stowage::storage {

// One kind of extents: its map and one file per folder.
struct ExtentFiles {
  ExtentMap map;
  std::vector<std::unique_ptr<DiskFile>> files;

  std::vector<DiskFile*> pointers() const;
};

struct StoreFiles {
  std::unique_ptr<Disk::Lock> lock;
  std::unique_ptr<DiskFile> manifest;
  ExtentFiles state;
  ExtentFiles params;  // no files unless the shape has them
  ExtentFiles sums;    // likewise
};

// Names of units and job, to say faults with. Refers to what it is made of.
class FaultNames {
 public:
  FaultNames(const std::string& job, const Layout& layout)
      : job_(job), layout_(layout) {}

  // The fault of a transfer of `extent` of `files` at `place`.
  absl::Status OfTransfer(const char* operation, const ExtentFiles& files,
                          std::int32_t extent, std::int32_t place,
                          const Transfer& transfer) const;
  // A piece whose bytes do not sum to what the manifest says.
  absl::Status OfChecksum(const ExtentFiles& files, std::int64_t piece,
                          std::int32_t place, std::uint32_t found,
                          std::uint32_t written) const;
  // Of a file as a whole, e.g. a flush.
  absl::Status OfFile(const char* operation, const DiskFile& file,
                      int error) const;

 private:
  const std::string& UnitName(const ExtentFiles& files,
                              std::int32_t extent) const;

  const std::string& job_;
  const Layout& layout_;
};

// Makes folders and files of the right size; on an error nothing is left.
// Errors: kAlreadyExists; kResourceExhausted for space; kUnimplemented for a
//   device whose blocks are larger than the format's alignment.
absl::StatusOr<StoreFiles> CreateStoreFiles(Disk& disk, const Layout& layout,
                                            const StoreShape& shape,
                                            bool direct);

// Errors: kNotFound for a missing file; kFailedPrecondition if it is open
//   elsewhere; kDataLoss for a file that is shorter than it must be.
absl::StatusOr<StoreFiles> OpenStoreFiles(Disk& disk, const Layout& layout,
                                          const StoreShape& shape, bool direct);

// Writes every byte of `files` once, from `zeros`, so that later writes change
// no metadata. Returns: 0, or errno with `*failed` the file.
absl::Status WriteOnce(const ExtentFiles& files, std::span<std::byte> zeros,
                       TransferQueue& queue, const std::string& job);

}  // namespace stowage::storage
