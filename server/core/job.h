// One job: its state, its current run, and the thread that lands and applies.
//
// Session threads call in (notices, prepare, apply) and only do bookkeeping
// under the mutex; the heavy work runs on the job's own thread, one piece at a
// time, over the compute team. Who runs a piece has set `busy_`; from then
// until it is cleared the members marked *owned by the busy one* are his alone.
// Small work (a verdict when all has landed, a skipped step) runs on the
// calling thread, because waking another costs more than doing it.
//
// A *run* is one epoch: the ranks that attached with one nonce, their gradient
// segments and the ledger of the step they are in. It ends when a rank is lost,
// when the job fails, or when all ranks have left; state, parameter segment and
// committed record stay for the next run. A job whose initialization was never
// finished has nothing to keep and ends with its run.

#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"
#include "common/layout.h"
#include "common/mutex.h"
#include "optim/kernels.h"
#include "server/core/admission.h"
#include "server/core/checkpoint_save.h"
#include "server/core/compute_team.h"
#include "server/core/landing.h"
#include "server/core/memory_plan.h"
#include "server/core/param_residency.h"
#include "server/core/param_segment.h"
#include "server/core/range_coverage.h"
#include "server/core/run_gradients.h"
#include "server/core/session_state.h"
#include "server/core/step_ledger.h"
#include "server/core/step_rounds.h"
#include "server/core/step_update.h"
#include "storage/checkpoint/reader.h"
#include "storage/host/memory_budget.h"
#include "storage/host/segment_folder.h"
#include "storage/nvme/nvme_store.h"
#include "storage/state_store.h"

namespace stowage::core {

// A rank's word that a gradient is complete (proto/session.proto).
struct NoticeArgs {
  std::int64_t step = 0;
  std::int32_t micro = 0;
  std::int32_t unit = 0;
  bool empty = false;
  std::int32_t region = 0;
};

// What all jobs of a server share. Ownership: the registry's; outlives the
// jobs.
struct CoreServices {
  ComputeTeam* team = nullptr;
  const optim::KernelSet* kernels = nullptr;
  storage::MemoryBudget* budget = nullptr;
  const storage::SegmentFolder* folder = nullptr;
  bool lock_memory = true;
  std::int32_t kept_slots_max = 6;
  storage::Disk* disk = nullptr;  // nullptr: the machine's
  storage::IoBackend io_backend = storage::IoBackend::kAuto;
  std::atomic<std::uint64_t> next_epoch{1};
  std::function<std::string(const JobRecord&)> encode_record;
};

// Thread safety: thread-safe.
// Shutdown: Shutdown() must have returned before the destructor.
class Job {
 public:
  // `job` passed CheckJobSpec(), its folders are canonical; `layout` is made of
  // its spec. Starts the job's thread; memory is taken by the first Attach().
  Job(CoreServices* services, std::uint64_t id, JobSpec job, Layout layout);

  // Before anything else: the job lies on NVMe, at its last commit. Its store
  // is opened by the first Attach().
  void SetFound(JobRecord record, const storage::NvmeStoreInfo& info);
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  ~Job();

  const std::string& name() const { return spec_.name; }
  const Layout& layout() const { return layout_; }

  // As JobRegistry::Attach(). If the job is ending, sets `*gone`: wait with
  // AwaitShutdown(), then open it anew.
  absl::StatusOr<std::shared_ptr<SessionState>> Attach(
      const JobSpec& job, const RunSpec& run, std::int32_t local_rank,
      const std::string& client, SessionObserver* observer, bool* gone);

  // As the methods of JobSession.
  absl::Status PutState(const SessionState& session, std::int32_t unit,
                        std::int64_t begin_elems,
                        std::span<const float> values);
  absl::Status FinishInitialization(SessionState& session);
  absl::Status SetForwardOrder(const SessionState& session,
                               std::span<const std::int32_t> units,
                               std::span<const std::int32_t> uses);
  absl::Status Notice(const SessionState& session, const NoticeArgs& notice);
  struct GradientPlace {
    std::int32_t micro = 0;
    std::int32_t unit = 0;
    std::int32_t region = 0;
  };
  absl::Status WriteGradient(const SessionState& session,
                             const GradientPlace& place,
                             std::int64_t begin_bytes,
                             std::span<const std::byte> data);
  struct ParamRange {
    std::int32_t unit = 0;
    std::int64_t step = 0;
    std::int64_t begin_bytes = 0;
    std::int64_t bytes = 0;
  };
  absl::Status ViewParams(
      const SessionState& session, const ParamRange& range,
      const std::function<bool()>& go_on,
      const std::function<void(std::span<const std::byte>)>& view);
  absl::Status AwaitLanded(const SessionState& session, std::int32_t unit,
                           std::int64_t total,
                           const std::function<bool()>& go_on);
  absl::Status Lease(const SessionState& session, std::int32_t unit,
                     std::int64_t step);
  absl::Status Unlease(const SessionState& session, std::int32_t unit);
  absl::Status Prepare(SessionState& session, std::int64_t step,
                       std::vector<double> scalars);
  // Returns: what this rank has to give.
  absl::StatusOr<std::vector<std::byte>> BeginRound(const SessionState& session,
                                                    const ApplyArgs& args,
                                                    std::int32_t round);
  struct RoundBytes {
    std::int64_t step = 0;
    std::int32_t round = 0;
    std::int64_t begin_bytes = 0;
  };
  // Returns: whether all of the result is here.
  absl::StatusOr<bool> TakeRound(const SessionState& session,
                                 const RoundBytes& at,
                                 std::span<const std::byte> data);
  absl::Status Apply(const SessionState& session, const ApplyArgs& args);
  absl::Status ReadState(const SessionState& session, std::int32_t unit,
                         StateKind kind, std::int64_t begin_elems,
                         std::span<float> out);

  // Returns: true if the job has ended with this session; the caller must then
  // Shutdown() it and forget it.
  bool Detach(SessionState& session, bool clean, bool close_job,
              const std::string& reason);

  // Ends the prepared step of a run that was cut off between its verdict and
  // its apply: other nodes of the run have applied it with these arguments. A
  // committed step is left alone. Blocks: for the update.
  // Errors: kFailedPrecondition while sessions are live or if that step is not
  //   prepared, naming the one that is; kInvalidArgument.
  absl::Status RollForward(const ApplyArgs& args);

  // As JobRegistry::Rewind().
  absl::Status Rewind(std::int64_t step);

  // As JobRegistry::Save() and LastSave().
  absl::StatusOr<SaveInfo> Save(const SaveSpec& spec);
  SaveInfo LastSave() const;

  // Marks the job as ending if nobody is attached. Returns: false, and the
  // number of live sessions, otherwise.
  bool TryEnd(std::int32_t* live_sessions);
  // Marks it so if it holds no state and nobody is attached.
  bool TryEndUnused();

  // Fails live sessions with `why`, finishes a running apply, stops the thread,
  // frees all memory and segments. Files on NVMe are closed at the last commit,
  // or, with `remove_files` or where there was no commit, deleted. Idempotent;
  // every caller waits for the end.
  void Shutdown(const absl::Status& why, bool remove_files);
  void AwaitShutdown();

  JobInfo Info() const;

 private:
  enum class RankPhase { kAbsent, kLive, kLeft, kLost };

  // One epoch. Guarded by mutex_, but for what `gradients` points to and the
  // ledger's StepGradients of a unit that is landing.
  struct Run {
    Run(const Layout& layout, const RunSpec& run_spec, const SlotPlan& slots)
        : spec(run_spec), plan(slots), ledger(layout, run_spec, slots) {
      const auto ranks = static_cast<std::size_t>(run_spec.local_ranks);
      sessions.resize(ranks);
      phases.resize(ranks, RankPhase::kAbsent);
      finished_initialization.resize(ranks);
      prepared.resize(ranks);
      prepared_at.resize(ranks);
      scalars.resize(ranks);
    }

    std::uint64_t epoch = 0;
    RunSpec spec;
    SlotPlan plan;
    // Shared with sessions that copy into it just now (job_payload.cc).
    std::shared_ptr<RunGradients> gradients;
    std::vector<std::shared_ptr<SessionState>> sessions;  // by local rank
    std::vector<RankPhase> phases;                        // by local rank
    std::vector<bool> finished_initialization;            // by local rank
    std::int32_t closed_ranks = 0;  // left, and asked to close the job
    absl::Status over;              // not OK: the run has ended

    StepRounds rounds;
    std::int64_t step = 0;   // whose gradients the ranks are computing
    StepLedger ledger;       // of `step`
    StepGradients applying;  // of the step that was last applied
    // Sums on NVMe: by unit, its first parameter with a non-finite gradient,
    // found while its sum was in memory.
    std::map<std::int32_t, std::string> nonfinite;
    std::vector<bool> prepared;  // by local rank, for `step`
    std::vector<std::chrono::steady_clock::time_point> prepared_at;
    std::vector<std::vector<double>> scalars;  // by local rank
    // The last verdict given: of `step`, or of the step before it.
    std::shared_ptr<const Verdict> verdict;
    // The last apply that was accepted in this run, to know repeats by.
    std::optional<ApplyArgs> last_apply;

    std::int32_t LiveSessions() const;
    bool AllPrepared() const;
  };

  // Calls to observers, collected under the mutex and made after it.
  struct Calls {
    std::vector<std::shared_ptr<SessionState>> initialized;
    std::vector<std::shared_ptr<SessionState>> failed;
    std::vector<std::shared_ptr<SessionState>> to_judge;
    std::shared_ptr<const Verdict> verdict;
    void Make();
  };

  absl::Status CheckSpec(const JobSpec& job) const;
  absl::Status CheckLive(const SessionState& session) const REQUIRES(mutex_);
  absl::Status CheckUnit(std::int32_t unit) const;
  // Payload of ranks without shared memory: Shutdown() waits for its end.
  absl::StatusOr<std::shared_ptr<RunGradients>> BeginPayload(
      const SessionState& session, std::int32_t unit);
  void EndPayload();
  absl::Status AwaitWord(const SessionState& session,
                         const std::function<bool()>& reached,
                         const std::function<bool()>& go_on);
  absl::Status CheckValues(const Layout::Param& param,
                           std::span<const float> values) const;

  // Attach, by case.
  absl::StatusOr<std::shared_ptr<SessionState>> Join(const RunSpec& run,
                                                     std::int32_t local_rank,
                                                     const std::string& client,
                                                     SessionObserver* observer)
      REQUIRES(mutex_);
  std::shared_ptr<SessionState> AddSession(std::int32_t local_rank,
                                           const std::string& client,
                                           SessionObserver* observer)
      REQUIRES(mutex_);
  absl::StatusOr<std::unique_ptr<Run>> MakeRun(const RunSpec& run,
                                               const StorageSpec& storage);
  absl::Status AllocateJob(const RunSpec& run,
                           storage::MemoryReservation reservation,
                           const MemoryPlan& plan);

  // The store on NVMe (job_storage.cc); all by the busy one.
  absl::StatusOr<MemoryPlan> Plan(const RunSpec& run,
                                  const StorageSpec& storage);
  // Of the latest run: mlock for the job's memory.
  bool LocksMemory() const;
  absl::Status OpenStore(const MemoryPlan& plan,
                         storage::MemoryReservation reservation);
  absl::Status CloseState();
  absl::Status LoadParams();
  absl::Status LoadUnit(std::int32_t unit);
  absl::Status SetPayloadsCurrent(bool current);
  void MakeResidency(const MemoryPlan& plan);
  void Deliver(const std::vector<LeaseGrant>& grants);
  void ResidencyFailed(const absl::Status& status);
  absl::Status ReadParams(std::int32_t unit, std::int64_t begin_elems,
                          std::span<float> out);
  absl::Status CommitInitialState() REQUIRES(mutex_);  // unlocks meanwhile
  absl::Status WriteInitialState(const storage::CommitRecord& record);
  absl::Status KeepRecord();
  void RefreshDiskFigures();
  absl::Status RewindBusy(std::int64_t step);
  void RemoveFiles(const std::string& why);

  // Checkpoints (job_checkpoint.cc). Loading is the busy one's.
  absl::Status LoadIfNew(const LoadSpec& load);
  absl::Status LoadOneBit(storage::CheckpointReader& reader);
  absl::Status LoadUnitFrom(storage::CheckpointReader& reader,
                            std::int32_t unit);
  absl::Status LoadParamFrom(storage::CheckpointReader& reader,
                             const Layout::Param& param);
  absl::Status CheckCheckpoint(const storage::CheckpointReader& reader) const;
  absl::Status ReadFrozen(std::int32_t unit, std::int64_t begin_elems,
                          std::span<std::byte> out);
  bool SaveDue() const REQUIRES(mutex_) {
    return save_wanted_.has_value() && save_wanted_->step == committed_.step;
  }
  void BeginSave();
  absl::StatusOr<std::shared_ptr<CheckpointSave>> MakeSave(
      const SaveSpec& spec);
  void EndSave(bool finish);

  // Initialization of one piece of a parameter.
  absl::Status StorePiece(const Layout::Param& param, std::int64_t begin_elems,
                          std::span<const float> values) REQUIRES(mutex_);
  absl::Status FirstGap() const REQUIRES(mutex_);
  absl::Status UnitGap(std::int32_t unit_index) const REQUIRES(mutex_);

  // The run is over, and what it prepared may have been applied by the other
  // nodes: its gradients are kept until the next run.
  bool MayRollForward() const REQUIRES(mutex_);
  // `step` has its verdict and waits for its apply.
  absl::Status CheckJudged(std::int64_t step, const char* what) const
      REQUIRES(mutex_);
  // By the busy one.
  StepUpdateContext UpdateContext(Run& run, const UpdateOrder& order,
                                  const StepGradients& gradients);
  // Makes `args` the step that RunApply() carries out.
  void AcceptApply(const ApplyArgs& args) REQUIRES(mutex_);

  void FailRun(const absl::Status& why, Calls* calls) REQUIRES(mutex_);
  void FailJob(const absl::Status& why, Calls* calls) REQUIRES(mutex_);
  void Judge(Calls* calls) REQUIRES(mutex_);
  LandingContext Context(Run& run);

  // The job's thread.
  void ThreadMain();
  bool DoOnePiece();
  absl::Status LandSums(Run& run, const StepLedger::Landing& landing,
                        std::string* nonfinite);
  void LandOne(Run& run, const StepLedger::Landing& landing);
  void RunApply();
  void ReleaseRun(std::unique_ptr<Run> run);

  void EndBusy() REQUIRES(mutex_);
  bool NothingRuns() const REQUIRES(mutex_) {
    return !busy_ && !apply_pending_;
  }

  // Constant after construction.
  CoreServices* const services_;
  const std::uint64_t id_;
  const JobSpec spec_;
  const Layout layout_;

  // Serializes attaches, which allocate; taken before mutex_.
  Mutex attach_mutex_;

  mutable Mutex mutex_;
  CondVar work_;  // the job's thread waits here
  CondVar idle_;  // others wait here for NothingRuns(), or for the end
  bool busy_ GUARDED_BY(mutex_) = false;
  bool apply_pending_ GUARDED_BY(mutex_) = false;  // accepted, not committed
  bool stop_ GUARDED_BY(mutex_) = false;
  bool closing_ GUARDED_BY(mutex_) = false;  // no new sessions
  bool shutting_down_ GUARDED_BY(mutex_) = false;
  bool shut_down_ GUARDED_BY(mutex_) = false;
  std::int32_t payloads_ GUARDED_BY(mutex_) = 0;  // under way
  bool initialized_ GUARDED_BY(mutex_) = false;
  absl::Status failed_because_ GUARDED_BY(mutex_);
  std::unique_ptr<Run> run_ GUARDED_BY(mutex_);
  // The job goes on when the cause of failed_because_ is mended: its store is
  // whole, what ranks read is not.
  bool recoverable_ GUARDED_BY(mutex_) = false;
  storage::CommitRecord committed_ GUARDED_BY(mutex_);
  std::uint64_t epoch_ GUARDED_BY(mutex_) = 0;
  std::vector<RangeCoverage> coverage_ GUARDED_BY(mutex_);  // by unit
  std::shared_ptr<const UpdateOrder> order_ GUARDED_BY(mutex_);
  std::vector<std::int32_t> forward_order_ GUARDED_BY(mutex_);
  std::vector<std::int32_t> trace_ GUARDED_BY(mutex_);
  // A save that waits for its step; the last one that began (shared with
  // whoever joins it); what is known of one that could not begin.
  std::optional<SaveSpec> save_wanted_ GUARDED_BY(mutex_);
  std::shared_ptr<CheckpointSave> save_ GUARDED_BY(mutex_);
  SaveInfo save_failed_ GUARDED_BY(mutex_);
  std::string loaded_from_ GUARDED_BY(mutex_);  // by the current run
  std::vector<GroupStep> last_groups_ GUARDED_BY(mutex_);
  bool record_changed_ GUARDED_BY(mutex_) = false;  // to be kept on NVMe
  // Figures of Info() for a job on NVMe, as of its last commit.
  std::vector<std::int64_t> kept_steps_ GUARDED_BY(mutex_);
  std::int64_t disk_bytes_ GUARDED_BY(mutex_) = 0;
  std::int64_t cache_bytes_ GUARDED_BY(mutex_) = 0;
  storage::NvmeStoreStats disk_stats_ GUARDED_BY(mutex_);
  std::string io_ GUARDED_BY(mutex_);
  bool plan_leased_ GUARDED_BY(mutex_) = false;
  std::int64_t param_limit_bytes_ GUARDED_BY(mutex_) = 0;
  // Figures of JobInfo.
  std::int64_t state_bytes_ GUARDED_BY(mutex_) = 0;
  std::int64_t param_bytes_ GUARDED_BY(mutex_) = 0;
  std::int64_t units_landed_ GUARDED_BY(mutex_) = 0;
  double landing_seconds_ GUARDED_BY(mutex_) = 0;
  double apply_seconds_ GUARDED_BY(mutex_) = 0;
  TrustRatios trust_ratios_ GUARDED_BY(mutex_);
  Compression compression_ GUARDED_BY(mutex_);

  // Made by the first attach, freed by Shutdown(). Owned by the busy one;
  // readers under mutex_ may use them while NothingRuns().
  std::unique_ptr<storage::StateStore> store_;
  storage::NvmeStore* nvme_ = nullptr;  // store_, if it is on NVMe
  std::unique_ptr<ParamSegment> params_;
  // Parameters on NVMe; null: all in memory. Uses the two above.
  std::unique_ptr<ParamResidency> residency_;
  // NVMe has the parameters of the last committed step, unit by unit.
  bool payloads_current_ = false;
  // What the manifest says, once files with a commit are there.
  std::optional<storage::NvmeStoreInfo> on_disk_;
  // What ranks read is not what the store has: it is loaded before a run.
  bool params_stale_ = false;
  MemoryPlan plan_;
  JobSpec asked_;  // spec_ with the tuning of the latest run
  // Owned by the busy one.
  std::unique_ptr<StepUpdate> update_;
  // Written by the busy one for the unit that is landing; read under mutex_
  // once the ledger is complete.
  std::vector<double> partials_;

  std::thread thread_;  // last: everything above is ready when it starts
};

}  // namespace stowage::core
