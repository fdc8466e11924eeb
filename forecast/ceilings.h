// What this machine can do at most, measured in a few seconds: the optimizer's
// kernels with all threads, and a folder's disk.
//
// Blocks: for the measurement. Thread safety: one call at a time, or they
// measure each other.

#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace stowage::forecast {

struct KernelCeilings {
  int threads = 0;
  std::string isa;
  // Bytes as DESIGN counts them: 28 a parameter for Adam with 16-bit gradients
  // and copy, 2 for the norm of one 16-bit slot, 4 for a copy of 2.
  double adam_bytes_per_second = 0;
  double norm_bytes_per_second = 0;
  double copy_bytes_per_second = 0;
  // One thread writing to pages that it has not had yet, of 4 KiB.
  double fresh_bytes_per_second = 0;
};

// `threads` 0: one a core. Needs 288 MiB of memory.
KernelCeilings MeasureKernels(int threads, double seconds);

struct DiskCeilings {
  double read_bytes_per_second = 0;   // reading alone
  double write_bytes_per_second = 0;  // writing alone
  // Reading and writing at once: both ways together.
  double mixed_bytes_per_second = 0;
};

// With direct I/O on a file of 256 MiB in `folder`, which is removed again.
// Errors: kNotFound, kPermissionDenied, ...: that of the file operation.
absl::StatusOr<DiskCeilings> MeasureDisk(const std::string& folder,
                                         double seconds);

}  // namespace stowage::forecast
