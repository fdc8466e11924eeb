// The IoEngine where io_uring is refused: threads that pread and pwrite.

#pragma once

#include <memory>
#include <span>

#include "storage/nvme/io/disk.h"
#include "storage/nvme/io/io_engine.h"

namespace stowage::storage {

// `options.threads` threads, at least one; each has one request at a time.
std::unique_ptr<IoEngine> NewPoolEngine(const IoEngineOptions& options,
                                        std::span<DiskFile* const> files);

}  // namespace stowage::storage
