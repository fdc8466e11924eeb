// The part of Job that takes a step: notices, the verdict, and on the job's
// thread landing and apply.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/crash_point.h"
#include "common/status_macros.h"
#include "server/core/job.h"

namespace stowage::core {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

// ---------------------------------------------------------------------------
// What ranks say

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
