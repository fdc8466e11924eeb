// A job's masters, moments and (if asked) parameters on NVMe: the StateStore
// for state that is larger than memory.
//
// A pass reads windows ahead, hands them out in the announced order and writes
// them back out of place; Commit() replaces the manifest last. A crash at any
// instant shows the state of some committed step. FORMAT.md has the bytes,
// README.md the pipeline, io_fault.h the errors.
//
// Life of a job's store:
//   Create()                       space allocated, state zero, no step yet
//   Put() ... Commit({step 0})     the initial state is a step like any other
//   passes, Commit() each
//   Close()                        what only memory held is written
//   Open()                         at the last committed step
//   Rewind(step)                   at an older one of KeptSteps()
//   Remove()                       files deleted

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout.h"
#include "storage/host/memory_budget.h"
#include "storage/nvme/nvme_options.h"
#include "storage/nvme/unit_store.h"
#include "storage/state_store.h"

namespace stowage::storage {

// What the manifest says of a store, without its layout.
struct NvmeStoreInfo {
  std::string job_name;
  std::uint64_t job_id = 0;
  std::uint64_t layout_fingerprint = 0;
  std::uint32_t format_version = 0;
  Durability durability = Durability::kMemory;
  std::int32_t kept_versions = 1;
  bool params = false;
  bool gradient_spill = false;
  std::int64_t extent_bytes = 0;
  std::vector<std::string> paths;     // as given to Create()
  std::vector<CommitRecord> commits;  // kept ones, oldest first
  std::string job_record;
};

// Cumulative, since Create() or Open().
struct NvmeStoreStats {
  std::int64_t bytes_read = 0;     // state
  std::int64_t bytes_written = 0;  // state and manifest
  std::int64_t cache_hits = 0;     // extents found in memory
  std::int64_t cache_misses = 0;   // extents read
  double read_wait_seconds = 0;    // AcquireNext() waited for reads
  double write_wait_seconds = 0;   // for writes, where memory ran out
  double commit_seconds = 0;       // in Commit()
  std::int64_t submit_calls = 0;   // system calls that started I/O of state
};

// Thread safety: as StateStore; params() and spill() are thread-safe themselves
//   and may be used while a pass runs.
// Errors: as StateStore, each an IoFaultStatus(). After an error Abandon()
//   leaves the store at its last commit, and a later pass may succeed once the
//   cause is mended. kFailedPrecondition after Close().
// Blocks: everything, for I/O. The destructor waits for I/O in flight and
//   writes nothing: call Close() first where the state shall survive.
class NvmeStore : public StateStore {
 public:
  // Allocates and writes the files once; a space shortage is a refusal that
  // names path, need and free bytes. `layout` must outlive the store;
  // `reservation` holds NvmePinnedBytes(layout, options).
  // Errors: kAlreadyExists if one of the paths has a store of that job.
  static absl::StatusOr<std::unique_ptr<NvmeStore>> Create(
      const Layout& layout, const NvmeStoreOptions& options,
      MemoryBudget* budget, MemoryReservation reservation);

  // Opens at the last committed step. What is fixed at Create() (extent_bytes,
  // params, gradient_spill, kept_versions, job_id) is taken from the manifest,
  // the rest from `options`: fill the fixed fields from Peek() before
  // NvmePinnedBytes() is asked.
  // Errors: kNotFound if there is no store; kInvalidArgument if the layout is
  //   another; kDataLoss if no manifest is whole, naming what is wrong with
  //   each, or if the last step was only in the memory of a server that died;
  //   kUnimplemented for a format that is newer.
  static absl::StatusOr<std::unique_ptr<NvmeStore>> Open(
      const Layout& layout, const NvmeStoreOptions& options,
      MemoryBudget* budget, MemoryReservation reservation);

  // Reads the manifest of a job in `path`, its first folder. Milliseconds.
  // Errors: as Open(). `disk` as in NvmeStoreOptions.
  static absl::StatusOr<NvmeStoreInfo> Peek(const std::string& path,
                                            const std::string& job_name,
                                            Disk* disk = nullptr);

  // Names of the jobs that have a store in `path`, sorted.
  static absl::StatusOr<std::vector<std::string>> List(const std::string& path,
                                                       Disk* disk = nullptr);

  // Deletes the files of a job that no store has open. OK if there are none.
  static absl::Status Remove(const std::vector<std::string>& paths,
                             const std::string& job_name, Disk* disk = nullptr);

  // Steps that Rewind() accepts, oldest first; the last is committed().step.
  virtual std::vector<std::int64_t> KeptSteps() const = 0;

  // Makes `step` the last committed one; later ones are gone. Replaces the
  // manifest and nothing else: milliseconds. Parameters follow: what params()
  // reads afterwards is of that step.
  // Errors: kNotFound for a step that is not kept, naming those that are;
  //   kFailedPrecondition inside a pass.
  virtual absl::Status Rewind(std::int64_t step) = 0;

  // Replaces the opaque record; it is on disk when this returns.
  virtual absl::Status SetJobRecord(std::string record) = 0;
  virtual const std::string& job_record() const = 0;

  // Payloads; nullptr unless asked for at Create(). Owned by the store.
  virtual UnitStore* params() = 0;
  virtual UnitStore* spill() = 0;

  // Writes what only memory holds (durability `memory`), flushes, closes the
  // files. Nothing but destruction may follow. Idempotent.
  virtual absl::Status Close() = 0;

  virtual NvmeStoreStats stats() const = 0;
  // "io_uring, registered files and buffers, O_DIRECT" or what it had to do
  // with less; for the server's log and its info page.
  virtual std::string DescribeIo() const = 0;
};

}  // namespace stowage::storage
