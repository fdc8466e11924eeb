#include "server/core/step_rounds.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "server/core/admission.h"

namespace stowage::core {

StepRounds::StepRounds(const OptimizerSpec& optimizer, const Layout& layout,
                       const RunSpec& run)
    : ranks_(run.local_ranks),
      one_bit_(optimizer.one_bit()),
      freeze_step_(optimizer.freeze_step) {
  if (!run.spread() || layout.trainable_count() == 0) return;
  if (one_bit_) {
    rounds_ = 2;
  } else if (optimizer.kind == OptimizerKind::kLamb) {
    rounds_ = 1;
  }
  const std::size_t places = At(rounds_, 0);
  made_.resize(places);
  taken_bytes_.resize(places);
  held_.resize(places);
}

std::int32_t StepRounds::Count(std::int64_t t) const {
  return one_bit_ && t <= freeze_step_ ? 0 : rounds_;
}

absl::Status StepRounds::Begin(const ApplyArgs& args, std::int64_t t,
                               std::int32_t round, std::int32_t rank) {
  if (args.skip || round < 0 || round >= Count(t)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "round ", round, " of step ", args.step, ", which has ",
        args.skip ? 0 : Count(t), args.skip ? ": it is skipped" : ""));
  }
  if (!args_ || args_->step != args.step) {
    args_ = args;
    made_.assign(made_.size(), false);
    taken_bytes_.assign(taken_bytes_.size(), 0);
    held_.assign(held_.size(), false);
  } else if (const std::string field = FirstDifference(args, *args_);
             !field.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("round ", round, " of step ", args.step, ": rank ", rank,
                     " gives another ", field, " than the rank before it"));
  }
  if (round > 0 && Brings(round - 1, rank) && !held(round - 1, rank)) {
    return absl::FailedPreconditionError(
        absl::StrCat("round ", round, " of step ", args.step, ": rank ", rank,
                     " has not brought back the result of round ", round - 1));
  }
  return absl::OkStatus();
}

void StepRounds::MarkMade(std::int32_t round, std::int32_t rank) {
  if (round > 0) {
    made_[At(round, rank)] = true;
    return;
  }
  for (std::int32_t r = 0; r < ranks_; ++r) made_[At(0, r)] = true;
}

absl::StatusOr<bool> StepRounds::Take(std::int64_t step, std::int32_t round,
                                      std::int32_t rank,
                                      std::int64_t begin_bytes,
                                      std::int64_t bytes, std::int64_t total) {
  if (round < 0 || round >= rounds_ || !Brings(round, rank)) {
    return absl::InvalidArgumentError(
        absl::StrCat("round result: rank ", rank, " brings nothing of round ",
                     round, "; this job has ", rounds_));
  }
  if (!args_ || args_->step != step || !made(round, rank)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "round result: step ", step, ", round ", round, " was not begun"));
  }
  if (held(round, rank)) return false;
  std::int64_t& taken = taken_bytes_[At(round, rank)];
  if (begin_bytes != taken || bytes > total - taken) {
    return absl::InvalidArgumentError(absl::StrCat(
        "round result: step ", step, ", round ", round, ": ", bytes,
        " bytes from ", begin_bytes, " of ", total, ", expected from ", taken));
  }
  taken += bytes;
  return true;
}

absl::Status StepRounds::CheckApply(const ApplyArgs& args,
                                    std::int64_t t) const {
  const std::int32_t count = Count(t);
  if (args.skip || count == 0) return absl::OkStatus();
  const bool begun = args_ && args_->step == args.step;
  for (std::int32_t round = 0; round < count; ++round) {
    if (begun && held(round, 0)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("apply: step ", args.step,
                     " needs what the run's other nodes gave in "
                     "round ",
                     round, " of ", count, ", which is not here"));
  }
  if (const std::string field = FirstDifference(args, *args_); !field.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("apply: step ", args.step, " has another ", field,
                     " than its rounds were made for"));
  }
  return absl::OkStatus();
}

}  // namespace stowage::core
