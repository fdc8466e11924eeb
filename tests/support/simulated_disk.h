// A disk in memory that loses power, for stores that claim to survive it.
//
// Fault model. What was written and not flushed when the power goes may be on
// the disk wholly, not at all, or in part (torn at multiples of 512 B or 4 KiB,
// by a coin of the seed), each write on its own and in any order. What was
// flushed is there. A replaced small file is the old or the new one. A folder's
// names are there once it was flushed. Transfers complete in random order and
// may be made to fail, to be short or to be late.
//
// Everything random comes from one seed.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/mutex.h"
#include "storage/nvme/io/disk.h"

namespace stowage::testing {

// Ownership: outlives files, engines and stores made on it.
// Thread safety: thread-safe.
class SimulatedDisk final : public storage::Disk {
 public:
  struct Options {
    std::uint64_t seed = 1;
    storage::IoAlignment alignment = {.offset_bytes = 512, .memory_bytes = 4};
    std::int64_t capacity_bytes = std::int64_t{1} << 32;
  };
  explicit SimulatedDisk(const Options& options);
  ~SimulatedDisk() override;

  // --- Power.
  // Writes and flushes since the start.
  std::int64_t events() const;
  // Event `index` (from 0, see events()) is the one during which the power
  // goes; it and all after it fail with EIO. -1: never.
  void CutPowerAt(std::int64_t index);
  bool powered() const;
  // Decides what became of unflushed writes, and switches the power on again.
  // Stores made before it must be gone.
  void Restart();

  // --- Faults of single transfers.
  struct Request {
    bool write = false;
    std::string path;
    std::int64_t offset_bytes = 0;
    std::int64_t bytes = 0;
    std::int64_t index = 0;  // requests of engines since the start
  };
  struct Fault {
    int error = 0;                  // completes with it
    std::int64_t short_bytes = -1;  // moves only so much
    std::int32_t late_polls = 0;    // completes so many polls later
  };
  // Asked for each request of an engine, under the disk's lock.
  void InjectFaults(std::function<Fault(const Request&)> injector);
  // Engines take at most so many requests at a time, now and then none.
  void MakeQueuesFull(bool on);
  // Flushes of a path that contains `part` fail with `error`; 0: no more.
  void FailFlush(std::string part, int error);
  // Synchronous writes (manifests) of such a path fail; 0: no more.
  void FailWriteAt(std::string part, int error);

  // --- What engines were asked, since the last call.
  struct Counts {
    std::int64_t requests = 0;
    std::int64_t submits = 0;             // that took any request
    std::int64_t overlapped_submits = 0;  // while others were in flight
    std::int64_t in_flight_max = 0;       // of one engine
    std::int64_t request_bytes_max = 0;
  };
  Counts TakeCounts();

  // --- Tampering, as a bad device would.
  std::string Contents(const std::string& path) const;
  void SetContents(const std::string& path, std::string contents);

  // --- Disk.
  absl::StatusOr<std::unique_ptr<storage::DiskFile>> Create(
      const std::string& path, std::int64_t bytes, bool direct) override;
  absl::StatusOr<std::unique_ptr<storage::DiskFile>> Open(
      const std::string& path, bool direct) override;
  absl::Status Replace(const std::string& path,
                       const std::string& contents) override;
  absl::StatusOr<std::string> ReadSmall(const std::string& path) override;
  absl::Status MakeFolder(const std::string& path) override;
  absl::Status SyncFolder(const std::string& path) override;
  absl::Status RemoveFolder(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(
      const std::string& path) override;
  absl::StatusOr<std::int64_t> FreeBytes(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<Lock>> LockFile(
      const std::string& path) override;
  absl::StatusOr<std::unique_ptr<storage::IoEngine>> NewEngine(
      storage::IoBackend backend, const storage::IoEngineOptions& options,
      std::span<storage::DiskFile* const> files,
      std::span<const std::span<std::byte>> buffers) override;

 private:
  class File;
  class Engine;
  class HeldLock;

  struct Pending {
    std::int64_t offset_bytes = 0;
    std::string bytes;
  };
  struct Inode {
    std::string durable;
    std::string now;
    std::vector<Pending> pending;
    bool named = false;  // its folder was flushed
  };

  // Counts an event. Returns: false if the power is gone; `*last` if it goes
  // with this event.
  bool Event(bool* last) REQUIRES(mutex_);
  std::int64_t WriteTo(Inode& inode, std::int64_t offset_bytes,
                       const std::byte* data, std::int64_t bytes)
      REQUIRES(mutex_);
  static std::int64_t ReadFrom(const Inode& inode, std::int64_t offset_bytes,
                               std::byte* data, std::int64_t bytes);
  bool Aligned(std::int64_t offset_bytes, const void* data,
               std::int64_t bytes) const;
  std::uint64_t Random(std::uint64_t below) REQUIRES(mutex_);
  void Tear(Inode& inode) REQUIRES(mutex_);

  const Options options_;

  mutable Mutex mutex_;
  std::mt19937_64 random_ GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<Inode>> files_ GUARDED_BY(mutex_);
  std::map<std::string, bool> folders_ GUARDED_BY(mutex_);
  std::map<std::string, bool> locks_ GUARDED_BY(mutex_);
  std::int64_t events_ GUARDED_BY(mutex_) = 0;
  std::int64_t cut_at_ GUARDED_BY(mutex_) = -1;
  bool powered_ GUARDED_BY(mutex_) = true;
  std::int64_t requests_ GUARDED_BY(mutex_) = 0;
  bool queues_full_ GUARDED_BY(mutex_) = false;
  Counts counts_ GUARDED_BY(mutex_);
  std::function<Fault(const Request&)> injector_ GUARDED_BY(mutex_);
  std::pair<std::string, int> flush_fault_ GUARDED_BY(mutex_);
  std::pair<std::string, int> write_fault_ GUARDED_BY(mutex_);
};

}  // namespace stowage::testing
