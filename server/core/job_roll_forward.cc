// The part of Job that ends a prepared step after its run: prepare is a vote,
// and a node that was cut off before the apply follows the others.

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "server/core/job.h"

namespace stowage::core {

bool Job::MayRollForward() const {
  return run_ && !run_->over.ok() && initialized_ && failed_because_.ok() &&
         !apply_pending_ && run_->spec.world_size > run_->spec.local_ranks &&
         run_->LiveSessions() == 0 && run_->verdict &&
         run_->verdict->step == run_->step;
}

void Job::AcceptApply(const ApplyArgs& args) {
  Run& run = *run_;
  run.last_apply = args;
  run.ledger.NextStep(&run.applying);
  run.prepared.assign(run.prepared.size(), false);
  run.nonfinite.clear();
  ++run.step;
  apply_pending_ = true;
}

absl::Status Job::RollForward(const ApplyArgs& args) {
  STOWAGE_RETURN_IF_ERROR(CheckApplyArgs(args, layout_));
  MutexLock attach_lock(attach_mutex_);
  {
    MutexLock lock(mutex_);
    while (!NothingRuns()) idle_.Wait(mutex_);
    if (closing_) {
      return absl::UnavailableError(
          absl::StrCat("job \"", spec_.name, "\" is ending"));
    }
    if (committed_.step == args.step + 1) return absl::OkStatus();
    if (!MayRollForward() || run_->step != args.step) {
      return absl::FailedPreconditionError(absl::StrCat(
          "roll forward: job \"", spec_.name, "\" cannot end step ", args.step,
          ": ",
          run_ && run_->over.ok() && run_->LiveSessions() > 0
              ? absl::StrCat(run_->LiveSessions(), " sessions are live")
          : MayRollForward()
              ? absl::StrCat("step ", run_->step, " is prepared")
              : absl::StrCat("no step is prepared, ", committed_.step,
                             " are committed")));
    }
    STOWAGE_RETURN_IF_ERROR(
        run_->rounds.CheckApply(args, committed_.applied_steps + 1));
    AcceptApply(args);
    busy_ = true;
  }
  log::Info("job_rolled_forward",
            {{"job", spec_.name}, {"step", args.step + 1}});
  RunApply();
  MutexLock lock(mutex_);
  if (!failed_because_.ok()) return failed_because_;
  if (committed_.step != args.step + 1) return run_->over;
  work_.NotifyOne();  // the run may go now
  return absl::OkStatus();
}

}  // namespace stowage::core
