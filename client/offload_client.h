// The public class of the client: start here.
//
// A trainer's rank connects to the node's stowd, opens a job, attaches, and
// then trains: reads parameters in place from the job's segment, writes
// gradients into its own, tells the server when a unit's gradient is complete,
// and ends each step with prepare (blocking, returns the verdict) and apply
// (never waits for the optimizer). No gRPC or protobuf type appears here.
//
//   auto client = OffloadClient::Connect("unix:/run/stowd.sock", {}).value();
//   auto session = client->Attach(job, run, /*local_rank=*/0, {}).value();
//   if (!session->info().initialized) { PutState(...); FinishInitialization();
//   } loop: WaitVersion(u, step); read unit_params(u); ...
//         write gradient_slot(micro, u); Notice(step, micro, u, false);
//         verdict = Prepare(step, {loss}); Apply({...});
//   session->Close(/*close_job=*/true);

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint_spec.h"
#include "common/job_spec.h"
#include "common/layout.h"

namespace stowage::client {

struct ConnectOptions {
  std::chrono::milliseconds connect_timeout{10000};
  std::chrono::milliseconds call_timeout{30000};  // of one control call
  // Folder of the server's segments as this process sees it (containers);
  // empty: STOWAGE_SHM_DIR, else the folder that the server names.
  std::string shm_dir;
};

struct SessionOptions {
  // How long WaitVersion, WaitLanded and Prepare may take before the session
  // is declared broken. Long: a peer may be computing.
  std::chrono::milliseconds wait_timeout{std::chrono::minutes(10)};
  // How payload travels. kAuto: through the server's segments where they can be
  // mapped, else over the stream.
  enum class Payload : std::uint8_t { kAuto, kSegments, kStream };
  Payload payload = Payload::kAuto;
  // By unit: the elements of it that this rank reads and writes; what else a
  // stream would have to carry is left out. Empty: all.
  struct Range {
    std::int64_t begin_elems = 0;
    std::int64_t end_elems = 0;
  };
  std::vector<Range> ranges;
};

// Counters of a session since it attached; for the step log and the benches.
struct SessionCounters {
  std::int64_t notices = 0;
  std::int64_t version_waits = 0;  // calls that had to wait, for leases too
  double version_wait_seconds = 0;
  double prepare_seconds = 0;
  std::int64_t payload_bytes_sent = 0;  // over the stream
  std::int64_t payload_bytes_received = 0;
};

// A rank's live connection to one job.
//
// Ownership: spans point into mappings that live as long as the session.
// Thread safety: Notice, WaitVersion, WaitLanded and the span accessors may be
//   called from several threads (autograd has its own); the rest from one
//   thread at a time.
// Errors: once a call failed with kUnavailable, kAborted or kDataLoss the
//   session is broken: every later call returns that first status, which says
//   who was lost and why. Messages are fit to be shown to a user.
class Session {
 public:
  Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  virtual ~Session() = default;  // an unclosed session counts as a lost rank

  virtual const Layout& layout() const = 0;
  virtual const AttachInfo& info() const = 0;  // as of the attach
  virtual std::int32_t local_rank() const = 0;

  // The unit's flat buffer (units()[u].elems of param_dtype), read-only memory:
  // writing it is a segmentation fault. Valid content after WaitVersion().
  // Where parameters are leased: after Lease(), and at another place after the
  // next.
  virtual std::span<const std::byte> unit_params(std::int32_t unit) const = 0;

  // Where the gradient of micro step `micro` of the unit goes:
  // trainable_elems elements of param_dtype, in flat-buffer order. Padding is
  // zero from the start and must stay so.
  // Requires: the slot is free (kept slots: the unit's version is that of this
  //   step; ring: WaitLanded()); with info().gradient_regions: ClaimRegion().
  virtual std::span<std::byte> gradient_slot(std::int32_t micro,
                                             std::int32_t unit) = 0;

  // Only if info().gradient_regions: finds this micro step's gradient of the
  // unit a region, which is its slot until the Notice; padding in it is zero.
  // Nothing else if it has one.
  // Blocks: until an earlier gradient of this rank has landed.
  // Errors: kResourceExhausted if all regions are claimed and none is noticed:
  //   more units' gradients are made at once than the server has memory for.
  virtual absl::Status ClaimRegion(std::int32_t unit) = 0;

  // Sends initial fp32 values [begin, begin + values.size()) of a unit's flat
  // buffer, trainable or frozen; any rank may send any part, once is enough.
  // Blocks: on back-pressure only.
  virtual absl::Status PutState(std::int32_t unit, std::int64_t begin_elems,
                                std::span<const float> values) = 0;

  // Waits until all ranks have called it and the server holds every element.
  // Errors: kFailedPrecondition naming the first unit with a gap.
  virtual absl::Status FinishInitialization() = 0;

  // The order in which a forward uses units (first uses, from rank 0): apply
  // makes versions in this order. Without it: the layout's order. `uses`: all
  // uses of a pass, for reading ahead from NVMe; may be empty.
  virtual absl::Status SetForwardOrder(std::span<const std::int32_t> units,
                                       std::span<const std::int32_t> uses) = 0;

  // Only if info().params_leased: blocks until the unit's parameters are those
  // after `step` committed steps and in memory, where they stay until
  // Unlease(). A unit may be leased again while it is, for a later step. At
  // most info().leased_elems_max elements, or one use, may be leased at a time.
  virtual absl::Status Lease(std::int32_t unit, std::int64_t step) = 0;
  // Does not wait. Views of the unit then show another unit, or anything.
  virtual absl::Status Unlease(std::int32_t unit) = 0;

  // Blocks until the unit's parameters are those after `step` committed steps.
  virtual absl::Status WaitVersion(std::int32_t unit, std::int64_t step) = 0;
  virtual bool VersionReady(std::int32_t unit, std::int64_t step) const = 0;

  // Ring slots: blocks until `micro_steps_total` micro steps of the unit have
  // landed since the job began (step * micro_steps + micro).
  virtual absl::Status WaitLanded(std::int32_t unit,
                                  std::int64_t micro_steps_total) = 0;

  // Says that this rank's gradient of (step, micro, unit) is in its slot, or
  // that there is none (`empty`; the slot is then not read). Does not wait.
  virtual absl::Status Notice(std::int64_t step, std::int32_t micro,
                              std::int32_t unit, bool empty) = 0;

  // Ends the step's gradients: returns when every rank's notices have landed
  // and every rank has called it. `scalars` (losses) reach all ranks.
  virtual absl::StatusOr<Verdict> Prepare(std::int64_t step,
                                          std::span<const double> scalars) = 0;

  // Ranks of several nodes with Lamb or, after the freeze, a 1-bit optimizer,
  // between Prepare() and Apply(): what this rank has to give to the others in
  // round `round` of the step that `args` will end; then, with GiveRound(),
  // what it brings back. Returns once the server holds it. What the bytes are,
  // and who brings what: server/core/step_rounds.h. `args` of Apply() are the
  // same. Blocks: for the server's work.
  virtual absl::StatusOr<std::vector<std::byte>> BeginRound(
      const ApplyArgs& args, std::int32_t round) = 0;
  virtual absl::Status GiveRound(std::int64_t step, std::int32_t round,
                                 std::span<const std::byte> result) = 0;

  // Commits the step. All ranks call it with equal arguments; the first call
  // starts it. Returns when the request is sent; versions tell when units are
  // ready. Errors of the apply itself break the session.
  virtual absl::Status Apply(const ApplyArgs& args) = 0;

  // Reads back a committed state: [begin, begin + out.size()) of the unit's
  // flat buffer. Requires: no step between prepare and apply.
  virtual absl::Status ReadState(std::int32_t unit, StateKind kind,
                                 std::int64_t begin_elems,
                                 std::span<float> out) = 0;

  // Ends the session in good order. With `close_job` the job ends when its
  // last rank has closed so; without, it stays in the server.
  virtual absl::Status Close(bool close_job) = 0;

  // OK while the session works, else the first error. Cheap.
  virtual absl::Status status() const = 0;
  virtual SessionCounters counters() const = 0;
};

// A connection to one stowd. Thread safety: thread-safe.
class OffloadClient {
 public:
  OffloadClient() = default;
  OffloadClient(const OffloadClient&) = delete;
  OffloadClient& operator=(const OffloadClient&) = delete;
  virtual ~OffloadClient() = default;

  // `address`: unix:/path or host:port. Checks that a stowd of this protocol
  // version answers.
  // Errors: kInvalidArgument for the address; kUnavailable if nobody answers
  //   within connect_timeout; kFailedPrecondition for another version. The
  //   message has the address and what to do.
  static absl::StatusOr<std::unique_ptr<OffloadClient>> Connect(
      const std::string& address, const ConnectOptions& options);

  // Opens (or finds) the job and attaches as `local_rank`. All ranks of a run
  // give the same job and run.
  // Errors: kAlreadyExists if another run is live on the job; kInvalidArgument
  //   if the job has another layout or optimizer (with the difference), or for
  //   a bad spec; kResourceExhausted with the bytes needed and the limit;
  //   kFailedPrecondition if the segments cannot be mapped here.
  virtual absl::StatusOr<std::unique_ptr<Session>> Attach(
      const JobSpec& job, const RunSpec& run, std::int32_t local_rank,
      const SessionOptions& options) = 0;

  virtual absl::StatusOr<ServerInfo> GetServerInfo() = 0;
  virtual absl::StatusOr<std::vector<JobInfo>> ListJobs() = 0;
  // Errors: kNotFound; kFailedPrecondition while sessions are live.
  virtual absl::Status DropJob(const std::string& name) = 0;
  // Ends a prepared step (JobInfo::prepared) as the run's other nodes ended it.
  // Errors: as DropJob(); kFailedPrecondition if that step is not prepared.
  virtual absl::Status RollForward(const std::string& name,
                                   const ApplyArgs& args) = 0;
  // Makes a kept step the job's last. Returns: seconds that the server took.
  // Errors: as DropJob(); kNotFound for a step that is not kept.
  virtual absl::StatusOr<double> RewindJob(const std::string& name,
                                           std::int64_t step) = 0;

  // Has a step of a job saved to files by the server, while training goes on;
  // returns once the server has taken it down.
  // Errors: kNotFound; kPermissionDenied for a folder that the server must not
  //   use; kUnavailable while another save of the job runs; kAborted for a step
  //   that has passed; kFailedPrecondition.
  virtual absl::StatusOr<SaveInfo> SaveJob(const SaveSpec& spec) = 0;
  // The job's last save. Errors: kNotFound.
  virtual absl::StatusOr<SaveInfo> GetSave(const std::string& job) = 0;
};

}  // namespace stowage::client
