#include "server/core/job.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/crash_point.h"
#include "common/log.h"
#include "common/segment_format.h"
#include "common/status_macros.h"

namespace stowage::core {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

// ---------------------------------------------------------------------------
// Life of the object

Job::Job(CoreServices* services, std::uint64_t id, JobSpec job, Layout layout)
    : services_(services),
      id_(id),
      spec_(std::move(job)),
      layout_(std::move(layout)),
      thread_([this] { ThreadMain(); }) {}

Job::~Job() {
  MutexLock lock(mutex_);
  STOWAGE_CHECK(shut_down_);
}

std::int32_t Job::Run::LiveSessions() const {
  return static_cast<std::int32_t>(
      std::count(phases.begin(), phases.end(), RankPhase::kLive));
}

bool Job::Run::AllPrepared() const {
  return std::all_of(prepared.begin(), prepared.end(),
                     [](bool done) { return done; });
}

void Job::Calls::Make() {
  for (const auto& session : initialized) session->TellInitialized();
  for (const auto& session : to_judge) session->TellVerdict(*verdict);
  for (const auto& session : failed) session->TellFailed();
}

void Job::EndBusy() {
  busy_ = false;
  idle_.NotifyAll();
  work_.NotifyOne();
}

bool Job::TryEnd(std::int32_t* live_sessions) {
  MutexLock lock(mutex_);
  *live_sessions = (run_ && run_->over.ok()) ? run_->LiveSessions() : 0;
  if (*live_sessions > 0) return false;
  closing_ = true;
  return true;
}

bool Job::TryEndUnused() {
  MutexLock lock(mutex_);
  if (busy_ || initialized_ || (run_ && run_->LiveSessions() > 0)) {
    return false;
  }
  closing_ = true;
  return true;
}

void Job::Shutdown(const absl::Status& why, bool remove_files) {
  Calls calls;
  {
    MutexLock lock(mutex_);
    closing_ = true;
    if (shutting_down_) {
      while (!shut_down_) idle_.Wait(mutex_);
      return;
    }
    shutting_down_ = true;
    FailRun(why, &calls);
    stop_ = true;
    work_.NotifyOne();
  }
  calls.Make();
  thread_.join();
  // A job that was closed is still saved; a server that stops does not wait.
  EndSave(/*finish=*/remove_files);
  std::unique_ptr<Run> run;
  std::unique_ptr<storage::StateStore> store;
  std::unique_ptr<ParamSegment> params;
  std::unique_ptr<ParamResidency> residency;
  {
    MutexLock lock(mutex_);
    // An attach that is allocating, a session that copies.
    while (busy_ || payloads_ > 0) idle_.Wait(mutex_);
    run = std::move(run_);
    store = std::move(store_);
    params = std::move(params_);
    residency = std::move(residency_);
  }
  residency.reset();
  run.reset();
  const bool keep = on_disk_.has_value() && !remove_files;
  if (nvme_ != nullptr && keep) {
    if (const absl::Status closed = nvme_->Close(); !closed.ok()) {
      log::Error("nvme_store_not_closed",
                 {{"job", spec_.name}, {"reason", closed.message()}});
    }
  }
  const bool files = nvme_ != nullptr || on_disk_.has_value();
  nvme_ = nullptr;
  store.reset();
  params.reset();
  if (files && !keep) RemoveFiles(std::string(why.message()));
  MutexLock lock(mutex_);
  shut_down_ = true;
  idle_.NotifyAll();
}

void Job::AwaitShutdown() {
  MutexLock lock(mutex_);
  while (!shut_down_) idle_.Wait(mutex_);
}

JobInfo Job::Info() const {
  MutexLock lock(mutex_);
  JobInfo info;
  info.name = spec_.name;
  info.job_id = id_;
  info.epoch = epoch_;
  info.initialized = initialized_;
  info.step = committed_.step;
  info.applied_steps = committed_.applied_steps;
  info.parameters = layout_.parameter_count();
  info.state_bytes = state_bytes_;
  info.param_bytes = param_bytes_;
  if (run_) {
    info.live_sessions = run_->over.ok() ? run_->LiveSessions() : 0;
    info.local_ranks = run_->spec.local_ranks;
    info.gradient_bytes = run_->gradients->bytes();
  }
  info.failed_because = std::string(failed_because_.message());
  info.prepared = MayRollForward();
  info.units_landed = units_landed_;
  info.landing_seconds = landing_seconds_;
  info.apply_seconds = apply_seconds_;
  info.trust_ratios = trust_ratios_;
  info.compression = compression_;
  if (spec_.storage.on_nvme()) {
    info.nvme_paths = spec_.storage.nvme_paths;
    info.durability =
        spec_.durability == Durability::kPower ? "power" : "memory";
    info.kept_steps = kept_steps_;
    info.disk_bytes = disk_bytes_;
    info.cache_bytes = cache_bytes_;
    info.disk_bytes_read = disk_stats_.bytes_read;
    info.disk_bytes_written = disk_stats_.bytes_written;
    info.io = io_;
    info.params_leased = plan_leased_;
    info.param_limit_bytes = param_limit_bytes_;
  }
  return info;
}

// ---------------------------------------------------------------------------
// Failing

void Job::FailRun(const absl::Status& why, Calls* calls) {
  if (!run_ || !run_->over.ok()) return;
  run_->over = why;
  for (std::size_t r = 0; r < run_->sessions.size(); ++r) {
    if (run_->phases[r] != RankPhase::kLive) continue;
    run_->sessions[r]->SetFailure(why);
    calls->failed.push_back(run_->sessions[r]);
  }
}

void Job::FailJob(const absl::Status& why, Calls* calls) {
  log::Error("job_failed",
             {{"job", spec_.name}, {"reason", std::string(why.message())}});
  failed_because_ = why;
  FailRun(why, calls);
}

// ---------------------------------------------------------------------------
// Checks that every call begins with

absl::Status Job::CheckLive(const SessionState& session) const {
  if (absl::Status failure = session.failure(); !failure.ok()) return failure;
  if (!run_ || run_->epoch != session.info().epoch) {
    return absl::AbortedError(
        absl::StrCat("job \"", spec_.name, "\": this session is of epoch ",
                     session.info().epoch, ", the job is at epoch ", epoch_));
  }
  if (!run_->over.ok()) return run_->over;
  if (run_->phases[static_cast<std::size_t>(session.rank())] !=
      RankPhase::kLive) {
    return absl::AbortedError(
        absl::StrCat("job \"", spec_.name, "\": this session has ended"));
  }
  return absl::OkStatus();
}

absl::Status Job::CheckUnit(std::int32_t unit) const {
  if (unit >= 0 && unit < layout_.unit_count()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("unit ", unit, ", the job has ", layout_.unit_count()));
}

// ---------------------------------------------------------------------------
// Gradients and steps, as sessions see them

absl::Status Job::SetForwardOrder(const SessionState& session,
                                  std::span<const std::int32_t> units,
                                  std::span<const std::int32_t> uses) {
  for (const std::int32_t unit : uses) STOWAGE_RETURN_IF_ERROR(CheckUnit(unit));
  STOWAGE_ASSIGN_OR_RETURN(std::shared_ptr<const UpdateOrder> order,
                           UpdateOrder::Create(layout_, units));
  MutexLock lock(mutex_);
  STOWAGE_RETURN_IF_ERROR(CheckLive(session));
  order_ = std::move(order);
  const auto same = [](const std::vector<std::int32_t>& a,
                       std::span<const std::int32_t> b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  };
  if (!same(forward_order_, units) || !same(trace_, uses)) {
    forward_order_.assign(units.begin(), units.end());
    trace_.assign(uses.begin(), uses.end());
    record_changed_ = true;
    if (residency_ != nullptr) residency_->SetTrace(trace_);
  }
  return absl::OkStatus();
}

absl::Status Job::Notice(const SessionState& session,
                         const NoticeArgs& notice) {
  const auto [step, micro, unit, empty, region] = notice;
  STOWAGE_RETURN_IF_ERROR(CheckUnit(unit));
  MutexLock lock(mutex_);
  STOWAGE_RETURN_IF_ERROR(CheckLive(session));
  if (micro < 0 || micro >= run_->spec.micro_steps) {
    return absl::InvalidArgumentError(
        absl::StrCat("notice: micro step ", micro, " of ",
                     run_->spec.micro_steps, " in a step"));
  }
  if (!initialized_) {
    return absl::FailedPreconditionError(
        "notice: before the job's initialization was finished");
  }
  // A step that was applied in this epoch had all its notices: a repeat.
  if (run_->last_apply && run_->last_apply->step == step) {
    return absl::OkStatus();
  }
  if (step < run_->step) {
    return absl::AbortedError(absl::StrCat(
        "notice: step ", step, " is stale, the job is at step ", run_->step));
  }
  if (step > run_->step) {
    return absl::FailedPreconditionError(absl::StrCat(
        "notice: step ", step, " before step ", run_->step, " was applied"));
  }
  STOWAGE_ASSIGN_OR_RETURN(
      const bool ready,
      run_->ledger.Notice(session.rank(), micro, unit, empty, region));
  if (ready) work_.NotifyOne();
  return absl::OkStatus();
}

absl::Status Job::Lease(const SessionState& session, std::int32_t unit,
                        std::int64_t step) {
  STOWAGE_RETURN_IF_ERROR(CheckUnit(unit));
  std::vector<LeaseGrant> grants;
  {
    MutexLock lock(mutex_);
    STOWAGE_RETURN_IF_ERROR(CheckLive(session));
    if (residency_ == nullptr || !initialized_) {
      return absl::FailedPreconditionError(
          residency_ == nullptr
              ? "lease: this job's parameters are in memory, read them"
              : "lease: before the job's initialization was finished");
    }
    if (step < 0 || step > run_->step) {
      return absl::FailedPreconditionError(absl::StrCat(
          "lease: step ", step, " before step ", run_->step, " was applied"));
    }
    residency_->Lease(session.rank(), unit, step, &grants);
  }
  Deliver(grants);
  return absl::OkStatus();
}

absl::Status Job::Unlease(const SessionState& session, std::int32_t unit) {
  STOWAGE_RETURN_IF_ERROR(CheckUnit(unit));
  MutexLock lock(mutex_);
  STOWAGE_RETURN_IF_ERROR(CheckLive(session));
  if (residency_ != nullptr) residency_->Unlease(session.rank(), unit);
  return absl::OkStatus();
}

// Requires: no lock.
void Job::Deliver(const std::vector<LeaseGrant>& grants) {
  if (grants.empty()) return;
  std::vector<std::pair<std::shared_ptr<SessionState>, LeaseGrant>> calls;
  {
    MutexLock lock(mutex_);
    for (const LeaseGrant& grant : grants) {
      if (!run_ || run_->epoch != grant.epoch || !run_->over.ok()) continue;
      const auto rank = static_cast<std::size_t>(grant.rank);
      if (run_->phases[rank] != RankPhase::kLive) continue;
      calls.emplace_back(run_->sessions[rank], grant);
    }
  }
  for (const auto& [session, grant] : calls) {
    session->TellLeased(grant.unit, grant.step);
  }
}

absl::Status Job::Prepare(SessionState& session, std::int64_t step,
                          std::vector<double> scalars) {
  if (static_cast<std::int64_t>(scalars.size()) > kScalarsPerRankMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prepare: ", scalars.size(), " scalars, at most ", kScalarsPerRankMax));
  }
  Calls calls;
  std::shared_ptr<const Verdict> repeated;
  {
    MutexLock lock(mutex_);
    STOWAGE_RETURN_IF_ERROR(CheckLive(session));
    const auto rank = static_cast<std::size_t>(session.rank());
    if (!initialized_) {
      return absl::FailedPreconditionError(
          "prepare: before the job's initialization was finished");
    }
    if (run_->verdict && run_->verdict->step == step) {
      repeated = run_->verdict;
    } else if (step < run_->step) {
      return absl::AbortedError(absl::StrCat("prepare: step ", step,
                                             " is stale, the job is at step ",
                                             run_->step));
    } else if (step > run_->step) {
      return absl::FailedPreconditionError(absl::StrCat(
          "prepare: step ", step, " before step ", run_->step, " was applied"));
    } else if (!run_->prepared[rank]) {
      if (const auto missing = run_->ledger.FirstMissing(session.rank())) {
        return absl::FailedPreconditionError(absl::StrCat(
            "prepare: step ", step, " of rank ", session.rank(),
            ": no notice of unit \"",
            layout_.units()[static_cast<std::size_t>(missing->unit)].name,
            "\", micro step ", missing->micro));
      }
      for (std::size_t r = 0; r < run_->phases.size(); ++r) {
        if (run_->phases[r] == RankPhase::kLeft) {
          return absl::FailedPreconditionError(
              absl::StrCat("prepare: step ", step, " cannot be completed: ",
                           run_->sessions[r]->Who(), " has left the job"));
        }
      }
      run_->prepared[rank] = true;
      run_->prepared_at[rank] = std::chrono::steady_clock::now();
      run_->scalars[rank] = std::move(scalars);
      Judge(&calls);
    }
  }
  calls.Make();
  if (repeated) session.TellVerdict(*repeated);
  return absl::OkStatus();
}

LandingContext Job::Context(Run& run) {
  return {.layout = layout_,
          .kernels = *services_->kernels,
          .run = *run.gradients,
          .gradients = run.ledger.gradients(),
          .partials = partials_};
}

void Job::Judge(Calls* calls) {
  Run& run = *run_;
  if (!run.over.ok() || !run.ledger.complete() || !run.AllPrepared()) return;
  if (run.verdict && run.verdict->step == run.step) return;
  auto verdict = std::make_shared<Verdict>();
  verdict->step = run.step;
  verdict->sum_of_squares = SumOfSquares(partials_);
  if (!std::isfinite(verdict->sum_of_squares)) {
    verdict->first_nonfinite_param =
        run.gradients->spill() == nullptr
            ? FirstNonFiniteParam(Context(run), 0,
                                  static_cast<std::int64_t>(partials_.size()))
        : run.nonfinite.empty() ? ""
                                : run.nonfinite.begin()->second;
  }
  verdict->rank_scalars = std::move(run.scalars);
  verdict->trust_ratios = trust_ratios_;
  verdict->compression = compression_;
  run.scalars.assign(run.sessions.size(), {});
  const auto last =
      *std::max_element(run.prepared_at.begin(), run.prepared_at.end());
  for (const auto& at : run.prepared_at) {
    verdict->rank_wait_seconds.push_back(
        std::chrono::duration<double>(last - at).count());
  }
  verdict->disk_wait_seconds = disk_stats_.read_wait_seconds +
                               disk_stats_.write_wait_seconds +
                               disk_stats_.commit_seconds;
  run.verdict = verdict;
  calls->verdict = std::move(verdict);
  for (std::size_t r = 0; r < run.sessions.size(); ++r) {
    if (run.phases[r] == RankPhase::kLive) {
      calls->to_judge.push_back(run.sessions[r]);
    }
  }
}

absl::Status Job::Apply(const SessionState& session, const ApplyArgs& args) {
  STOWAGE_RETURN_IF_ERROR(CheckApplyArgs(args, layout_));
  {
    MutexLock lock(mutex_);
    // Only a job without trainable parameters can be here before its previous
    // apply has ended: nothing of a step waits for it.
    while (apply_pending_ && run_ && args.step == run_->step) {
      idle_.Wait(mutex_);
    }
    STOWAGE_RETURN_IF_ERROR(CheckLive(session));
    Run& run = *run_;
    if (run.last_apply && run.last_apply->step == args.step) {
      const std::string field = FirstDifference(args, *run.last_apply);
      if (field.empty()) return absl::OkStatus();
      return absl::InvalidArgumentError(absl::StrCat(
          "apply: step ", args.step, ": rank ", session.rank(),
          " gives another ", field, " than the rank whose call came first"));
    }
    STOWAGE_RETURN_IF_ERROR(CheckJudged(args.step, "apply"));
    STOWAGE_RETURN_IF_ERROR(
        run.rounds.CheckApply(args, committed_.applied_steps + 1));
    AcceptApply(args);
    // A commit on NVMe is no work for a session's thread, and a snapshot that
    // is due comes first.
    if (!args.skip || busy_ || spec_.storage.on_nvme() || save_wanted_) {
      work_.NotifyOne();
      return absl::OkStatus();
    }
    busy_ = true;
  }
  RunApply();
  return absl::OkStatus();
}

absl::Status Job::ReadState(const SessionState& session, std::int32_t unit,
                            StateKind kind, std::int64_t begin_elems,
                            std::span<float> out) {
  STOWAGE_RETURN_IF_ERROR(CheckUnit(unit));
  const auto elems = static_cast<std::int64_t>(out.size());
  const Layout::Unit& u = layout_.units()[static_cast<std::size_t>(unit)];
  const std::int64_t limit =
      kind == StateKind::kParam ? u.elems : u.trainable_elems;
  if (begin_elems < 0 || begin_elems > limit || elems > limit - begin_elems) {
    return absl::InvalidArgumentError(
        absl::StrCat("read state of unit \"", u.name, "\": elements [",
                     begin_elems, ", +", elems, ") of ", limit));
  }
  MutexLock lock(mutex_);
  while (!NothingRuns()) idle_.Wait(mutex_);
  STOWAGE_RETURN_IF_ERROR(CheckLive(session));
  if (!initialized_) {
    return absl::FailedPreconditionError(
        "read state: before the job's initialization was finished");
  }
  if (kind == StateKind::kParam && residency_ == nullptr) {
    return ReadParams(unit, begin_elems, out);
  }
  // Reading may have to wait for the disk: not under the lock.
  busy_ = true;
  mutex_.Unlock();
  absl::Status status;
  if (kind != StateKind::kParam) {
    status = store_->Read(unit, kind, begin_elems, out);
  } else {
    status = residency_->Hold(unit);
    if (status.ok()) {
      status = ReadParams(unit, begin_elems, out);
      residency_->LetGo(unit);
    }
  }
  mutex_.Lock();
  EndBusy();
  return status;
}

// Requires: the unit is in memory.
absl::Status Job::ReadParams(std::int32_t unit, std::int64_t begin_elems,
                             std::span<float> out) {
  const std::byte* from = params_->param(unit, begin_elems);
  for (std::size_t i = 0; i < out.size(); ++i) {
    switch (layout_.param_dtype()) {
      case Dtype::kFp32:
        out[i] = reinterpret_cast<const float*>(from)[i];
        break;
      case Dtype::kFp16:
        out[i] = Fp16ToFloat(reinterpret_cast<const std::uint16_t*>(from)[i]);
        break;
      case Dtype::kBf16:
        out[i] = Bf16ToFloat(reinterpret_cast<const std::uint16_t*>(from)[i]);
        break;
    }
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------------------
// The job's thread

void Job::ThreadMain() {
  while (DoOnePiece()) {
  }
}

bool Job::DoOnePiece() {
  Run* run = nullptr;
  StepLedger::Landing landing;
  std::unique_ptr<Run> finished;
  bool save = false;
  {
    MutexLock lock(mutex_);
    for (;;) {
      if (!busy_) {
        save = SaveDue();
        if (save || apply_pending_) break;
        if (stop_) return false;
        if (run_ && run_->over.ok() && run_->ledger.HasReady()) {
          run = run_.get();
          landing = run_->ledger.PopReady();
          break;
        }
        if (run_ && !run_->over.ok() && run_->LiveSessions() == 0 &&
            !MayRollForward()) {
          finished = std::move(run_);
          break;
        }
      }
      work_.Wait(mutex_);
    }
    busy_ = true;
  }
  if (save) {
    BeginSave();
  } else if (finished) {
    ReleaseRun(std::move(finished));
  } else if (run != nullptr) {
    LandOne(*run, landing);
  } else {
    RunApply();
  }
  return true;
}

void Job::ReleaseRun(std::unique_ptr<Run> run) {
  run.reset();
  MutexLock lock(mutex_);
  EndBusy();
}

// Lands a unit; sums that lie on NVMe are brought in before and written after.
absl::Status Job::LandSums(Run& run, const StepLedger::Landing& landing,
                           std::string* nonfinite) {
  SumSpill* spill = run.gradients->spill();
  const auto unit = static_cast<std::size_t>(landing.unit);
  const auto started = [&] {
    return run.ledger.gradients().sum_started[unit] != 0;
  };
  if (spill != nullptr) {
    STOWAGE_RETURN_IF_ERROR(spill->Acquire(landing.unit, started()));
  }
  LandUnit(Context(run), landing, *services_->team);
  store_->KeepReading();
  if (spill == nullptr) return absl::OkStatus();
  if (landing.last) {
    *nonfinite =
        FirstNonFiniteParam(Context(run), layout_.chunk_begin(landing.unit),
                            layout_.chunk_begin(landing.unit + 1));
  }
  return started() ? spill->Save(landing.unit) : absl::OkStatus();
}

void Job::LandOne(Run& run, const StepLedger::Landing& landing) {
  const Clock::time_point begin = Clock::now();
  std::string nonfinite;
  const absl::Status spilled = LandSums(run, landing, &nonfinite);
  const absl::Status status =
      spilled.ok() ? CheckSegments(*params_, *run.gradients) : spilled;
  const double seconds = SecondsSince(begin);
  Calls calls;
  {
    MutexLock lock(mutex_);
    landing_seconds_ += seconds;
    if (!status.ok()) {
      // Nothing was applied: the run ends, the committed state is whole. A lost
      // parameter segment cannot be made again (frozen values live only there).
      const absl::Status why(
          status.code(),
          absl::StrCat("job \"", spec_.name, "\": ", status.message()));
      if (params_->broken()) {
        FailJob(why, &calls);
      } else {
        FailRun(why, &calls);
      }
    } else if (run.over.ok()) {
      if (!nonfinite.empty()) run.nonfinite.emplace(landing.unit, nonfinite);
      const std::int32_t landed = run.ledger.MarkLanded(landing);
      if (landing.last) ++units_landed_;
      params_->PublishLanded(landing.unit,
                             run.step * run.spec.micro_steps + landed);
      if (run.gradients->AnyWaiter()) params_->WakeLanded(landing.unit);
      Judge(&calls);
    }
    EndBusy();
  }
  calls.Make();
}

void Job::RunApply() {
  const Clock::time_point begin = Clock::now();
  Run* run = nullptr;
  std::shared_ptr<const UpdateOrder> order;
  storage::CommitRecord from;
  {
    MutexLock lock(mutex_);
    run = run_.get();
    order = order_;
    from = committed_;
  }
  const StepUpdateContext context = UpdateContext(*run, *order, run->applying);
  bool touched = false;
  absl::StatusOr<storage::CommitRecord> record =
      update_->Run(context, from, *run->last_apply, *services_->team, &touched);
  CrashPoint("step-committed");
  if (record.ok() && residency_ != nullptr && !payloads_current_) {
    SetPayloadsCurrent(true).IgnoreError();
  }
  if (record.ok()) KeepRecord().IgnoreError();
  RefreshDiskFigures();
  Calls calls;
  {
    MutexLock lock(mutex_);
    apply_seconds_ += SecondsSince(begin);
    if (record.ok()) {
      committed_ = *std::move(record);
      trust_ratios_ = update_->trust_ratios();
      compression_ = update_->compression();
      last_groups_ = run->last_apply->groups;
    } else {
      const auto status = absl::Status(
          record.status().code(),
          absl::StrCat("job \"", spec_.name, "\": apply of step ", from.step,
                       ": ", record.status().message()));
      if (touched || params_->broken()) {
        // A store on NVMe is back at its last commit; what ranks read is of no
        // step until it is loaded again.
        if (nvme_ != nullptr && !params_->broken()) {
          recoverable_ = true;
          params_stale_ = true;
        }
        FailJob(status, &calls);
      } else {
        FailRun(status, &calls);
      }
    }
    apply_pending_ = false;
    EndBusy();
  }
  calls.Make();
}

}  // namespace stowage::core
