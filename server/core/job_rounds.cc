// The part of Job that lets the nodes of a run tell each other what the step
// needs of all of them (step_rounds.h).

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/crash_point.h"
#include "common/status_macros.h"
#include "server/core/job.h"

namespace stowage::core {

absl::Status Job::CheckJudged(std::int64_t step, const char* what) const {
  if (step < run_->step) {
    return absl::AbortedError(absl::StrCat(
        what, ": step ", step, " is stale, the job is at step ", run_->step));
  }
  if (step > run_->step || !run_->verdict ||
      run_->verdict->step != run_->step) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, ": step ", step,
                     " before its verdict; the job is at step ", run_->step));
  }
  return absl::OkStatus();
}

StepUpdateContext Job::UpdateContext(Run& run, const UpdateOrder& order,
                                     const StepGradients& gradients) {
  return {.layout = layout_,
          .optimizer = spec_.optimizer,
          .kernels = *services_->kernels,
          .store = *store_,
          .params = *params_,
          .run = *run.gradients,
          .gradients = gradients,
          .order = order,
          .micro_steps = run.spec.micro_steps,
          .residency = residency_.get(),
          .deliver = [this](const std::vector<LeaseGrant>& g) { Deliver(g); },
          .rounds = run.rounds};
}

absl::StatusOr<std::vector<std::byte>> Job::BeginRound(
    const SessionState& session, const ApplyArgs& args, std::int32_t round) {
  STOWAGE_RETURN_IF_ERROR(CheckApplyArgs(args, layout_));
  const auto copy = [&] {
    const std::span<const std::byte> out =
        update_->RoundOut(round, session.rank());
    return std::vector<std::byte>(out.begin(), out.end());
  };
  Run* run = nullptr;
  std::shared_ptr<const UpdateOrder> order;
  storage::CommitRecord from;
  StepGradients gradients;  // the ledger's may change under a hostile rank
  {
    MutexLock lock(mutex_);
    while (!NothingRuns()) idle_.Wait(mutex_);
    STOWAGE_RETURN_IF_ERROR(CheckLive(session));
    run = run_.get();
    STOWAGE_RETURN_IF_ERROR(CheckJudged(args.step, "begin round"));
    STOWAGE_RETURN_IF_ERROR(run->rounds.Begin(
        args, committed_.applied_steps + 1, round, session.rank()));
    if (run->rounds.made(round, session.rank())) return copy();
    order = order_;
    from = committed_;
    gradients = run->ledger.gradients();
    busy_ = true;
  }
  CrashPoint("round-begun");
  const absl::Status made =
      update_->MakeRound(UpdateContext(*run, *order, gradients), from, args,
                         round, session.rank(), *services_->team);
  Calls calls;
  absl::StatusOr<std::vector<std::byte>> out = std::vector<std::byte>();
  {
    MutexLock lock(mutex_);
    if (made.ok()) {
      run->rounds.MarkMade(round, session.rank());
      out = copy();
    } else {
      // Nothing that is committed was changed.
      out = absl::Status(
          made.code(),
          absl::StrCat("job \"", spec_.name, "\": round ", round, " of step ",
                       args.step, ": ", made.message()));
      if (params_->broken()) {
        FailJob(out.status(), &calls);
      } else {
        FailRun(out.status(), &calls);
      }
    }
    EndBusy();
  }
  calls.Make();
  return out;
}

absl::StatusOr<bool> Job::TakeRound(const SessionState& session,
                                    const RoundBytes& at,
                                    std::span<const std::byte> data) {
  MutexLock lock(mutex_);
  STOWAGE_RETURN_IF_ERROR(CheckLive(session));
  STOWAGE_RETURN_IF_ERROR(CheckJudged(at.step, "round result"));
  if (apply_pending_) {
    return absl::AbortedError(
        absl::StrCat("round result: step ", at.step, " is being applied"));
  }
  StepRounds& rounds = run_->rounds;
  const std::int32_t rank = session.rank();
  // A round that there is not, or that nobody made yet, has no place: Take()
  // says so.
  const bool known = at.round >= 0 &&
                     at.round < rounds.Count(committed_.applied_steps + 1) &&
                     rounds.made(at.round, rank);
  const std::span<std::byte> into =
      known ? update_->RoundIn(at.round, rank) : std::span<std::byte>();
  const auto total = static_cast<std::int64_t>(into.size());
  STOWAGE_ASSIGN_OR_RETURN(
      const bool fresh,
      rounds.Take(at.step, at.round, rank, at.begin_bytes,
                  static_cast<std::int64_t>(data.size()), total));
  if (!fresh) return true;
  std::copy(data.begin(), data.end(), into.begin() + at.begin_bytes);
  if (at.begin_bytes + static_cast<std::int64_t>(data.size()) < total) {
    return false;
  }
  STOWAGE_RETURN_IF_ERROR(update_->CheckRoundIn(at.round, rank));
  rounds.MarkHeld(at.round, rank);
  CrashPoint("round-held");
  return true;
}

}  // namespace stowage::core
