// What went wrong with an extent, as a value that travels inside a Status.
//
// Every I/O error of a store on NVMe names the job, the unit, the extent, the
// file, the offset and errno, in its message for people and in a payload for
// programs. storage/nvme makes it; server/core reads it to fail the job with
// its cause.

#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"

namespace stowage::storage {

struct IoFault {
  std::string operation;          // "read", "write", "flush", "verify", "open"
  std::string job;                // name
  std::string unit;               // empty: not of one unit (a manifest)
  std::int64_t extent = -1;       // index in the store's extent table; -1: none
  std::string file;               // path
  std::int64_t offset_bytes = 0;  // in the file
  std::int64_t bytes = 0;         // asked for
  std::int64_t done_bytes = 0;    // transferred before the fault
  int error = 0;                  // errno; 0: short transfer or wrong checksum
  std::string detail;             // e.g. "checksum 1a2b3c4d, written 5e6f7081"

  friend bool operator==(const IoFault&, const IoFault&) = default;
};

// kResourceExhausted for ENOSPC, EDQUOT and EFBIG; kUnavailable for a device or
// file system that is gone (ENODEV, ENXIO, EROFS, ESTALE); kDataLoss for
// everything else: EIO, a short transfer, a wrong checksum. The message says
// all fields and what to do.
absl::Status IoFaultStatus(const IoFault& fault);

// The fault inside `status`; nothing if it is of another kind.
std::optional<IoFault> GetIoFault(const absl::Status& status);

}  // namespace stowage::storage
