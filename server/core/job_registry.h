// The server's jobs: the whole surface that the rpc layer calls.
//
// No gRPC, no messages: it runs under every sanitizer and in tests without a
// network. A request that names a job, rank, unit, step or range is checked
// here against the job's own layout; nothing that a client says is trusted.
//
// Keys (DESIGN, "The step"): a notice is (epoch, step, micro, unit, rank);
// prepare and apply are (epoch, step). Each happens once; a repeat changes
// nothing and gets the same answer.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"

namespace stowage::storage {
class Disk;
enum class IoBackend : std::uint8_t;
}  // namespace stowage::storage

namespace stowage::core {

// What a session hears without asking. Calls come from the job's own thread or
// from another session's thread, never under a lock of core, and never after
// Detach() has returned. Implementations must not block on the client for long.
class SessionObserver {
 public:
  SessionObserver() = default;
  SessionObserver(const SessionObserver&) = delete;
  SessionObserver& operator=(const SessionObserver&) = delete;
  virtual ~SessionObserver() = default;

  virtual void OnInitialized() = 0;  // answer to FinishInitialization
  virtual void OnVerdict(const Verdict& verdict) = 0;  // answer to Prepare
  // Answer to Lease: the unit may be read until Unlease.
  virtual void OnLeased(std::int32_t /*unit*/, std::int64_t /*step*/) {}
  // The session is over: the job failed, a peer was lost (the status names
  // rank and reason), or the server is stopping.
  virtual void OnFailed(const absl::Status& status) = 0;
};

// A rank's place in a job. Thread safety: one thread at a time (the session's),
// but Detach() may come from any thread.
class JobSession {
 public:
  JobSession() = default;
  JobSession(const JobSession&) = delete;
  JobSession& operator=(const JobSession&) = delete;
  // Detaches as lost if Detach() was not called.
  virtual ~JobSession() = default;

  virtual const AttachInfo& info() const = 0;
  virtual const Layout& layout() const = 0;

  // Errors of all: kInvalidArgument (numbers out of the layout), kAborted (a
  // stale step or epoch), kFailedPrecondition (wrong phase), or the status the
  // job failed with. An error here ends this session, not the job.
  virtual absl::Status PutState(std::int32_t unit, std::int64_t begin_elems,
                                std::span<const float> values) = 0;
  virtual absl::Status FinishInitialization() = 0;
  virtual absl::Status SetForwardOrder(std::span<const std::int32_t> units,
                                       std::span<const std::int32_t> uses) = 0;
  virtual absl::Status Notice(std::int64_t step, std::int32_t micro,
                              std::int32_t unit, bool empty,
                              std::int32_t region) = 0;
  absl::Status Notice(std::int64_t step, std::int32_t micro, std::int32_t unit,
                      bool empty) {
    return Notice(step, micro, unit, empty, /*region=*/0);
  }
  // For ranks without shared memory. Writes a piece of this rank's gradient
  // slot (bounds are checked), as the rank itself would.
  virtual absl::Status WriteGradient(std::int32_t micro, std::int32_t unit,
                                     std::int32_t region,
                                     std::int64_t begin_bytes,
                                     std::span<const std::byte> data) = 0;
  // Hands `view` bytes [begin, begin + bytes) of the unit's parameters once
  // they are those after `step` committed steps. `go_on` is asked every 20 ms
  // of waiting. Blocks: until then, and in `view`.
  virtual absl::Status ViewParams(
      std::int32_t unit, std::int64_t step, std::int64_t begin_bytes,
      std::int64_t bytes, const std::function<bool()>& go_on,
      const std::function<void(std::span<const std::byte>)>& view) = 0;
  // Waits until the unit has landed `total` micro steps since the job began.
  virtual absl::Status AwaitLanded(std::int32_t unit, std::int64_t total,
                                   const std::function<bool()>& go_on) = 0;
  virtual absl::Status Lease(std::int32_t unit, std::int64_t step) = 0;
  virtual absl::Status Unlease(std::int32_t unit) = 0;
  virtual absl::Status Prepare(std::int64_t step,
                               std::vector<double> scalars) = 0;
  // Rounds between verdict and apply (step_rounds.h). Returns: what this rank
  // has to give. Blocks: for the work.
  virtual absl::StatusOr<std::vector<std::byte>> BeginRound(
      const ApplyArgs& args, std::int32_t round) = 0;
  // The next piece of what it brings back. Returns: whether that was the last.
  virtual absl::StatusOr<bool> TakeRound(std::int64_t step, std::int32_t round,
                                         std::int64_t begin_bytes,
                                         std::span<const std::byte> data) = 0;
  virtual absl::Status Apply(const ApplyArgs& args) = 0;
  // Waits until no apply is running. `out` is in the unit's flat buffer.
  virtual absl::Status ReadState(std::int32_t unit, StateKind kind,
                                 std::int64_t begin_elems,
                                 std::span<float> out) = 0;

  // `clean`: the rank said goodbye. Otherwise it is lost and the run's other
  // sessions hear of it by OnFailed ("rank 1 (pid 4711) was lost: <reason>").
  // The job ends when all ranks of the run have left cleanly with close_job; a
  // job that was never initialized ends with its last session.
  // Blocks: until observer calls in progress are over (so not from inside one);
  //   if the job ends, for a running apply and the freeing of its memory.
  virtual void Detach(bool clean, bool close_job,
                      const std::string& reason) = 0;
};

struct RegistryOptions {
  // Pinned: private and tmpfs together. 0: nine tenths of the machine's memory.
  std::int64_t memory_limit_bytes = 0;
  int threads = 0;          // compute team; 0: all processors
  std::string shm_dir;      // 0700 folder for segments
  std::string server_id;    // letters and digits; empty: random
  bool lock_memory = true;  // mlock where the limit allows
  int jobs_max = 1024;
  int kept_slots_max = 6;  // above it (ranks x micro steps) slots are a ring;
                           // at most 64
  std::string isa;         // empty: the best
  // Folders on NVMe that jobs may use; they must be there. Empty: none.
  std::vector<std::string> nvme_roots;
  // Folders that checkpoints are written to and read from. Empty: none.
  std::vector<std::string> export_roots;
  // A job's record as the bytes that are kept with its state, and back. Needed
  // where there are roots.
  std::function<std::string(const JobRecord&)> encode_record;
  std::function<absl::StatusOr<JobRecord>(const std::string&)> decode_record;
  // For tests: the file system that jobs on NVMe lie on (nullptr: the
  // machine's), and how it is read (the default: io_uring, else the pool).
  storage::Disk* disk = nullptr;
  storage::IoBackend io_backend{};
};

// Thread safety: thread-safe. Shutdown: sessions first, then the registry.
class JobRegistry {
 public:
  // Removes segments of servers that are no longer there, then starts the
  // compute team. Errors: kInvalidArgument, kPermissionDenied, naming the path.
  static absl::StatusOr<std::unique_ptr<JobRegistry>> Create(
      const RegistryOptions& options);

  JobRegistry() = default;
  JobRegistry(const JobRegistry&) = delete;
  JobRegistry& operator=(const JobRegistry&) = delete;
  virtual ~JobRegistry() = default;

  // Opens or finds the job, starts a new epoch if `run` is a new run and no
  // session is live, and attaches `local_rank`. `client` names the process in
  // logs and in messages to its peers ("pid 4711").
  // Errors: as client::OffloadClient::Attach.
  // Blocks: while an apply of the previous run finishes; for the allocation.
  virtual absl::StatusOr<std::unique_ptr<JobSession>> Attach(
      const JobSpec& job, const RunSpec& run, std::int32_t local_rank,
      const std::string& client, SessionObserver* observer) = 0;

  virtual std::vector<JobInfo> List() const = 0;
  virtual absl::Status Drop(const std::string& name) = 0;
  // Makes a kept step of a job on NVMe its last one.
  // Errors: kNotFound; kFailedPrecondition while sessions are live, or for a
  //   job without kept steps; a store's.
  virtual absl::Status Rewind(const std::string& name, std::int64_t step) = 0;
  // As Job::RollForward(). Errors: also kNotFound.
  virtual absl::Status RollForward(const std::string& name,
                                   const ApplyArgs& args) = 0;
  virtual ServerInfo Info() const = 0;

  // Has a committed step of a job written to files, beside its work. Returns at
  // once; LastSave() tells how it goes.
  // Errors: kNotFound; kPermissionDenied naming folder and roots; kUnavailable
  //   while another save of the job runs; kAborted for a step that has passed;
  //   kFailedPrecondition for a job without a committed step.
  virtual absl::StatusOr<SaveInfo> Save(const SaveSpec& spec) = 0;
  // Of the job's last save. Errors: kNotFound.
  virtual absl::StatusOr<SaveInfo> LastSave(const std::string& job) const = 0;

  // Refuses new work, fails live sessions with kUnavailable "server is
  // stopping", finishes running applies, removes segments. Idempotent.
  virtual void Stop() = 0;
};

}  // namespace stowage::core
