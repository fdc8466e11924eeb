// Where a store's files lie: the machine's file system, or a test's simulated
// disk that loses power.
//
// The few file operations that a store needs, with what they guarantee after a
// crash written down, so that a simulation can be exact about it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "storage/nvme/io/io_engine.h"
#include "storage/nvme/nvme_options.h"

namespace stowage::storage {

// What direct I/O asks of a file; powers of two.
struct IoAlignment {
  std::int64_t offset_bytes = 512;  // of offsets and lengths
  std::int64_t memory_bytes = 512;  // of addresses
};

// An open file of fixed size. Thread safety: immutable, but for the bytes.
class DiskFile {
 public:
  DiskFile() = default;
  DiskFile(const DiskFile&) = delete;
  DiskFile& operator=(const DiskFile&) = delete;
  virtual ~DiskFile() = default;

  virtual const std::string& path() const = 0;
  virtual std::int64_t bytes() const = 0;  // when it was opened
  virtual IoAlignment alignment() const = 0;
  virtual bool direct() const = 0;  // past the page cache
  virtual int fd() const = 0;       // -1 on a simulated disk

  // Every completed write survives a power loss. Returns: 0 or errno.
  virtual int Flush() = 0;
  // One synchronous transfer, aligned as alignment() says. Returns: bytes
  // moved, or -errno.
  virtual std::int64_t ReadAt(std::int64_t offset_bytes,
                              std::span<std::byte> into) = 0;
  virtual std::int64_t WriteAt(std::int64_t offset_bytes,
                               std::span<const std::byte> from) = 0;
};

// Thread safety: thread-safe.
// Errors: Status with path and errno.
class Disk {
 public:
  Disk() = default;
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;
  virtual ~Disk() = default;

  // A new file with all its space allocated. Its name survives a power loss
  // after SyncFolder().
  // Errors: kAlreadyExists; kResourceExhausted with need and free bytes.
  virtual absl::StatusOr<std::unique_ptr<DiskFile>> Create(
      const std::string& path, std::int64_t bytes, bool direct) = 0;
  // Errors: kNotFound.
  virtual absl::StatusOr<std::unique_ptr<DiskFile>> Open(
      const std::string& path, bool direct) = 0;

  // Replaces a small file as a whole: after a power loss it is the old or the
  // new one, and the new one once this has returned.
  virtual absl::Status Replace(const std::string& path,
                               const std::string& contents) = 0;
  // Errors: kNotFound; kInvalidArgument for more than 1 GiB.
  virtual absl::StatusOr<std::string> ReadSmall(const std::string& path) = 0;

  virtual absl::Status MakeFolder(const std::string& path) = 0;
  virtual absl::Status SyncFolder(const std::string& path) = 0;
  // Removes a folder with the files in it; OK if there is none.
  virtual absl::Status RemoveFolder(const std::string& path) = 0;
  virtual absl::StatusOr<std::vector<std::string>> List(
      const std::string& path) = 0;
  virtual absl::StatusOr<std::int64_t> FreeBytes(const std::string& path) = 0;

  // Holds a file against other stores of any process until destroyed.
  class Lock {
   public:
    Lock() = default;
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;
    virtual ~Lock() = default;
  };
  // Errors: kFailedPrecondition if another holds it.
  virtual absl::StatusOr<std::unique_ptr<Lock>> LockFile(
      const std::string& path) = 0;

  // `files` and the memory of `buffers` outlive the engine.
  virtual absl::StatusOr<std::unique_ptr<IoEngine>> NewEngine(
      IoBackend backend, const IoEngineOptions& options,
      std::span<DiskFile* const> files,
      std::span<const std::span<std::byte>> buffers) = 0;
};

// The machine's file system. Never destroyed.
Disk& MachineDisk();

}  // namespace stowage::storage
