// The IoEngine of a Linux that allows it: one io_uring, files and buffers
// registered.
//
// Source: io_uring(7), io_uring_register(2), io_uring_setup(2).

#pragma once

#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "storage/nvme/io/disk.h"
#include "storage/nvme/io/io_engine.h"

namespace stowage::storage {

// Registered buffers count against RLIMIT_MEMLOCK; where that refuses, requests
// go unregistered and one warning per process says so.
// Errors: kUnavailable if io_uring itself is refused (a container's seccomp
//   filter, kernel.io_uring_disabled), with errno.
absl::StatusOr<std::unique_ptr<IoEngine>> NewUringEngine(
    const IoEngineOptions& options, std::span<DiskFile* const> files,
    std::span<const std::span<std::byte>> buffers);

}  // namespace stowage::storage
