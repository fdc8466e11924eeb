// Checks a job's store on NVMe, byte by byte, and names every fault.
//
// For `stowctl fsck`: works on closed stores, changes nothing, needs no layout.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "storage/nvme/nvme_store.h"

namespace stowage::storage {

struct FsckFault {
  enum class Severity : std::uint8_t {
    kNote = 0,   // harmless: a torn manifest beside a whole one
    kStep = 1,   // costs a kept step that is not the last
    kState = 2,  // the last committed step cannot be read
  };
  Severity severity = Severity::kState;
  std::string file;
  std::int64_t offset_bytes = -1;  // -1: the file as a whole
  std::int64_t bytes = 0;
  std::string unit;          // empty: not of one unit
  std::int64_t extent = -1;  // -1: not of one extent
  std::int64_t step = -1;    // -1: of no kept step
  std::string what;  // e.g. `checksum 1a2b3c4d, the manifest says 5e6f7081`
};

struct FsckReport {
  NvmeStoreInfo info;
  std::int64_t extents_checked = 0;
  std::int64_t bytes_checked = 0;
  std::vector<FsckFault> faults;  // empty: clean
};

// One line for people.
std::string ToString(const FsckFault& fault);

// `path`: the first folder of the store. With no whole manifest the report has
// faults and an empty info.
// Errors: kNotFound if there is no store; kFailedPrecondition if a server has
//   it open; kUnimplemented for a newer format.
// Blocks: for reading all kept steps.
absl::StatusOr<FsckReport> Fsck(const std::string& path,
                                const std::string& job_name,
                                Disk* disk = nullptr);

// Repairs nothing; makes an older kept step the last of a closed store, as
// NvmeStore::Rewind() does of an open one.
absl::Status RewindClosed(const std::string& path, const std::string& job_name,
                          std::int64_t step, Disk* disk = nullptr);

}  // namespace stowage::storage
