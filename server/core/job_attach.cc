// The part of Job that begins and ends sessions and runs, and takes in initial
// values.

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/log.h"
#include "common/segment_format.h"
#include "common/status_macros.h"
#include "server/core/job.h"

namespace stowage::core {
namespace {

// A client that sends single elements with gaps makes the coverage grow; more
// separate pieces than this of one unit is no real trainer.
constexpr std::int64_t kCoverageRangesMax = 65536;

// The largest magnitude that rounds to a finite fp16.
constexpr float kFp16RoundsToInfinity = 65520.0F;

// Empty if both are the same.
std::string OptimizerDifference(const OptimizerSpec& ours,
                                const OptimizerSpec& theirs) {
  if (ours.kind != theirs.kind) {
    return absl::StrCat("optimizer: ", OptimizerKindName(ours.kind),
                        ", the job has ", OptimizerKindName(theirs.kind));
  }
  if (ours.decoupled_weight_decay != theirs.decoupled_weight_decay) {
    return absl::StrCat(
        "optimizer: ", ours.decoupled_weight_decay ? "AdamW" : "Adam",
        ", the job has ", theirs.decoupled_weight_decay ? "AdamW" : "Adam");
  }
  if (ours.bias_correction != theirs.bias_correction) {
    return absl::StrCat(
        "optimizer: bias correction is ", ours.bias_correction ? "on" : "off",
        ", the job has it ", theirs.bias_correction ? "on" : "off");
  }
  if (ours.max_coeff != theirs.max_coeff ||
      ours.min_coeff != theirs.min_coeff) {
    return absl::StrCat("optimizer: trust ratios within [", ours.min_coeff,
                        ", ", ours.max_coeff, "], the job's within [",
                        theirs.min_coeff, ", ", theirs.max_coeff, "]");
  }
  if (ours.eps_inside_sqrt != theirs.eps_inside_sqrt) {
    return absl::StrCat("optimizer: eps is ",
                        ours.eps_inside_sqrt ? "inside" : "outside",
                        " the root, the job has it ",
                        theirs.eps_inside_sqrt ? "inside" : "outside");
  }
  if (ours.freeze_step != theirs.freeze_step) {
    return absl::StrCat("optimizer: freeze step ", ours.freeze_step,
                        ", the job's is ", theirs.freeze_step);
  }
  return ours == theirs ? ""
                        : "optimizer: coeff_beta, factor_max, factor_min or "
                          "factor_threshold";
}

}  // namespace

absl::Status Job::CheckSpec(const JobSpec& job) const {
  const auto differs = [&](const std::string& what) {
    return absl::InvalidArgumentError(
        absl::StrCat("job \"", spec_.name, "\" exists with another ", what));
  };
  if (const std::string layout = DescribeDifference(job.layout, spec_.layout);
      !layout.empty()) {
    return differs(absl::StrCat("layout: ", layout));
  }
  if (const std::string optimizer =
          OptimizerDifference(job.optimizer, spec_.optimizer);
      !optimizer.empty()) {
    return differs(optimizer);
  }
  if (job.durability != spec_.durability) return differs("durability");
  const StorageSpec& asked = job.storage;
  const StorageSpec& has = spec_.storage;
  if (asked.optimizer != has.optimizer) {
    return differs("placement of the optimizer's state");
  }
  if (asked.params != has.params) return differs("placement of parameters");
  if (asked.nvme_paths != has.nvme_paths) {
    return differs(absl::StrCat(
        "list of nvme paths: ", absl::StrJoin(asked.nvme_paths, ", "),
        "; the job lies in ", absl::StrJoin(has.nvme_paths, ", ")));
  }
  if (has.on_nvme() && asked.kept_steps != has.kept_steps) {
    return differs(absl::StrCat("number of kept steps: ", asked.kept_steps,
                                ", the job keeps ", has.kept_steps));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<SessionState>> Job::Attach(
    const JobSpec& job, const RunSpec& run, std::int32_t local_rank,
    const std::string& client, SessionObserver* observer, bool* gone) {
  *gone = false;
  MutexLock attach_lock(attach_mutex_);
  std::unique_ptr<Run> previous;
  Calls calls;
  {
    MutexLock lock(mutex_);
    for (;;) {
      if (closing_) {
        *gone = true;
        return absl::UnavailableError(
            absl::StrCat("job \"", spec_.name, "\" is ending"));
      }
      STOWAGE_RETURN_IF_ERROR(CheckSpec(job));
      if (!failed_because_.ok() && !recoverable_) {
        return absl::Status(
            failed_because_.code(),
            absl::StrCat(failed_because_.message(),
                         "; the job cannot go on: drop it and start it anew"));
      }
      if (run_ && run_->over.ok() && run_->LiveSessions() > 0) {
        return Join(run, local_rank, client, observer);
      }
      if (NothingRuns()) break;
      idle_.Wait(mutex_);
    }
    // Sessions of a run that is over but have not left yet find a later epoch.
    FailRun(absl::AbortedError(absl::StrCat("job \"", spec_.name,
                                            "\": another run has attached")),
            &calls);
    previous = std::move(run_);
    busy_ = true;
    if (recoverable_) params_stale_ = true;
  }
  calls.Make();
  previous.reset();
  absl::StatusOr<std::unique_ptr<Run>> made = MakeRun(run, job.storage);
  MutexLock lock(mutex_);
  EndBusy();
  STOWAGE_RETURN_IF_ERROR(made.status());
  if (closing_) {
    *gone = true;
    return absl::UnavailableError(
        absl::StrCat("job \"", spec_.name, "\" is ending"));
  }
  if (recoverable_) {
    log::Info("job_recovered", {{"job", spec_.name},
                                {"step", committed_.step},
                                {"from", failed_because_.message()}});
    recoverable_ = false;
    failed_because_ = absl::OkStatus();
  }
  run_ = *std::move(made);
  epoch_ = run_->epoch;
  run_->step = committed_.step;
  state_bytes_ = store_->pinned_bytes() + plan_.need.one_bit_bytes;
  // Of a leased segment only so much is ever in memory.
  param_bytes_ =
      plan_.params_leased ? plan_.need.param_bytes : params_->bytes();
  // A run that never finished its initialization left nothing that counts.
  if (!initialized_) {
    coverage_.assign(static_cast<std::size_t>(layout_.unit_count()), {});
  }
  params_->SetEpoch(epoch_);
  for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
    params_->PublishLanded(u, run_->step * run_->spec.micro_steps);
  }
  return AddSession(local_rank, client, observer);
}

absl::StatusOr<std::shared_ptr<SessionState>> Job::Join(
    const RunSpec& run, std::int32_t local_rank, const std::string& client,
    SessionObserver* observer) {
  const RunSpec& live = run_->spec;
  if (run.nonce != live.nonce) {
    std::string who;
    for (std::size_t r = 0; r < run_->phases.size() && who.empty(); ++r) {
      if (run_->phases[r] == RankPhase::kLive) who = run_->sessions[r]->Who();
    }
    return absl::AlreadyExistsError(
        absl::StrCat("job \"", spec_.name, "\" is in use by another run (", who,
                     "); give this one another name, or end that one first"));
  }
  if (run.world_size != live.world_size ||
      run.local_ranks != live.local_ranks ||
      run.micro_steps != live.micro_steps || run.shards != live.shards ||
      run.first_rank != live.first_rank) {
    return absl::InvalidArgumentError(absl::StrCat(
        "job \"", spec_.name, "\": rank ", local_rank,
        " of this run says world size ", run.world_size, ", local ranks ",
        run.local_ranks, " from ", run.first_rank, ", micro steps ",
        run.micro_steps, run.shards ? ", shards" : "",
        "; the ranks before it said ", live.world_size, ", ", live.local_ranks,
        " from ", live.first_rank, ", ", live.micro_steps,
        live.shards ? ", shards" : ""));
  }
  const auto rank = static_cast<std::size_t>(local_rank);
  if (run_->phases[rank] == RankPhase::kLive) {
    return absl::AlreadyExistsError(
        absl::StrCat("job \"", spec_.name, "\": ", run_->sessions[rank]->Who(),
                     " is attached already"));
  }
  if (run_->phases[rank] != RankPhase::kAbsent) {
    return absl::FailedPreconditionError(
        absl::StrCat("job \"", spec_.name, "\": rank ", local_rank,
                     " of this run has left; a rank attaches once in a run"));
  }
  return AddSession(local_rank, client, observer);
}

std::shared_ptr<SessionState> Job::AddSession(std::int32_t local_rank,
                                              const std::string& client,
                                              SessionObserver* observer) {
  AttachInfo info;
  info.job_id = id_;
  info.epoch = epoch_;
  info.initialized = initialized_;
  info.step = committed_.step;
  info.applied_steps = committed_.applied_steps;
  info.client_state = committed_.client_state;
  info.slots_per_rank = run_->plan.slots_per_rank;
  info.slots_are_ring = run_->plan.ring;
  info.shm_dir = services_->folder->path();
  info.param_segment = params_->file_name();
  info.gradient_segment = run_->gradients->file_name(local_rank);
  info.params_leased = residency_ != nullptr;
  info.leased_elems_max = residency_ != nullptr ? plan_.leased_elems_max : 0;
  info.gradient_regions = run_->plan.regions;
  info.loaded_from = loaded_from_;
  auto session = std::make_shared<SessionState>(std::move(info), local_rank,
                                                client, observer);
  run_->sessions[static_cast<std::size_t>(local_rank)] = session;
  run_->phases[static_cast<std::size_t>(local_rank)] = RankPhase::kLive;
  log::Info("rank_attached", {{"job", spec_.name},
                              {"rank", local_rank},
                              {"client", client},
                              {"epoch", epoch_},
                              {"step", committed_.step}});
  return session;
}

// ---------------------------------------------------------------------------
// Initial values

absl::Status Job::PutState(const SessionState& session, std::int32_t unit,
                           std::int64_t begin_elems,
                           std::span<const float> values) {
  STOWAGE_RETURN_IF_ERROR(CheckUnit(unit));
  const Layout::Unit& u = layout_.units()[static_cast<std::size_t>(unit)];
  const auto elems = static_cast<std::int64_t>(values.size());
  if (begin_elems < 0 || begin_elems > u.elems ||
      elems > u.elems - begin_elems) {
    return absl::InvalidArgumentError(
        absl::StrCat("put state of unit \"", u.name, "\": elements [",
                     begin_elems, ", +", elems, ") of ", u.elems));
  }
  // Parameter by parameter: what falls on padding is dropped, so that padding
  // stays zero. All are checked before any is stored.
  struct Piece {
    const Layout::Param* param;
    std::int64_t begin_elems;
    std::span<const float> values;
  };
  std::vector<Piece> pieces;
  for (const Layout::Param& param : u.params) {
    const std::int64_t begin = std::max(begin_elems, param.begin_elems);
    const std::int64_t end =
        std::min(begin_elems + elems, param.begin_elems + param.elems);
    if (begin >= end) continue;
    pieces.push_back(
        {&param, begin,
         values.subspan(static_cast<std::size_t>(begin - begin_elems),
                        static_cast<std::size_t>(end - begin))});
    STOWAGE_RETURN_IF_ERROR(CheckValues(param, pieces.back().values));
  }
  MutexLock lock(mutex_);
  STOWAGE_RETURN_IF_ERROR(CheckLive(session));
  if (initialized_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "put state of unit \"", u.name, "\": the job is initialized"));
  }
  RangeCoverage& coverage = coverage_[static_cast<std::size_t>(unit)];
  if (coverage.range_count() > kCoverageRangesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("put state of unit \"", u.name, "\": more than ",
                     kCoverageRangesMax, " separate pieces"));
  }
  for (const Piece& piece : pieces) {
    STOWAGE_RETURN_IF_ERROR(
        StorePiece(*piece.param, piece.begin_elems, piece.values));
  }
  return absl::OkStatus();
}

absl::Status Job::CheckValues(const Layout::Param& param,
                              std::span<const float> values) const {
  const std::int64_t at = optim::FirstNonFinite(
      {.slots = {}, .slot_dtype = Dtype::kFp32, .sum = values.data()},
      static_cast<std::int64_t>(values.size()));
  if (at >= 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "put state: parameter \"", param.name, "\" has the initial value ",
        values[static_cast<std::size_t>(at)]));
  }
  if (layout_.param_dtype() == Dtype::kFp16) {
    for (const float value : values) {
      if (std::fabs(value) >= kFp16RoundsToInfinity) {
        return absl::InvalidArgumentError(absl::StrCat(
            "put state: parameter \"", param.name, "\" has the initial value ",
            value, ", which is out of the range of fp16"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Job::StorePiece(const Layout::Param& param,
                             std::int64_t begin_elems,
                             std::span<const float> values) {
  if (!param.frozen) {
    STOWAGE_RETURN_IF_ERROR(store_->Put(param.unit_index, begin_elems, values));
  }
  const std::int32_t unit = param.unit_index;
  const bool was_whole = UnitGap(unit).ok();
  if (residency_ != nullptr) {
    STOWAGE_RETURN_IF_ERROR(
        residency_->BeginWrite(unit, /*load=*/was_whole, /*give_up=*/true));
  }
  services_->kernels->convert(values.data(), layout_.param_dtype(),
                              params_->param(unit, begin_elems),
                              static_cast<std::int64_t>(values.size()));
  coverage_[static_cast<std::size_t>(unit)].Add(
      begin_elems, begin_elems + static_cast<std::int64_t>(values.size()));
  if (residency_ != nullptr && UnitGap(unit).ok()) {
    std::vector<LeaseGrant> none;
    residency_->EndWrite(unit, 0, &none);
  }
  return absl::OkStatus();
}

absl::Status Job::UnitGap(std::int32_t unit_index) const {
  const Layout::Unit& unit =
      layout_.units()[static_cast<std::size_t>(unit_index)];
  const RangeCoverage& coverage =
      coverage_[static_cast<std::size_t>(unit_index)];
  for (const Layout::Param& param : unit.params) {
    const std::int64_t end = param.begin_elems + param.elems;
    const std::int64_t gap = coverage.FirstGap(param.begin_elems, end);
    if (gap < end) {
      return absl::FailedPreconditionError(absl::StrCat(
          "finish initialization: unit \"", unit.name, "\": parameter \"",
          param.name, "\" has no value from element ", gap - param.begin_elems,
          " on"));
    }
  }
  return absl::OkStatus();
}

absl::Status Job::FirstGap() const {
  for (std::int32_t unit = 0; unit < layout_.unit_count(); ++unit) {
    STOWAGE_RETURN_IF_ERROR(UnitGap(unit));
  }
  return absl::OkStatus();
}

absl::Status Job::FinishInitialization(SessionState& session) {
  Calls calls;
  bool already = false;
  absl::Status gap;
  {
    MutexLock lock(mutex_);
    STOWAGE_RETURN_IF_ERROR(CheckLive(session));
    already = initialized_;
    std::vector<bool>& finished = run_->finished_initialization;
    finished[static_cast<std::size_t>(session.rank())] = true;
    const bool all = std::all_of(finished.begin(), finished.end(),
                                 [](bool done) { return done; });
    if (!already && all) {
      gap = FirstGap();
      // Nothing lands before this: who is busy soon is not.
      while (gap.ok() && busy_) idle_.Wait(mutex_);
      if (gap.ok()) gap = CommitInitialState();
      if (gap.ok()) {
        initialized_ = true;
        coverage_.clear();
        for (std::size_t r = 0; r < run_->sessions.size(); ++r) {
          if (run_->phases[r] == RankPhase::kLive) {
            calls.initialized.push_back(run_->sessions[r]);
          }
        }
        log::Info(
            "job_initialized",
            {{"job", spec_.name}, {"parameters", layout_.parameter_count()}});
      } else {
        FailRun(gap, &calls);
      }
    }
  }
  calls.Make();
  if (already) session.TellInitialized();
  return gap;
}

// ---------------------------------------------------------------------------
// The end of a session

bool Job::Detach(SessionState& session, bool clean, bool close_job,
                 const std::string& reason) {
  session.Close();
  Calls calls;
  bool ended = false;
  {
    MutexLock lock(mutex_);
    const auto rank = static_cast<std::size_t>(session.rank());
    if (!run_ || run_->epoch != session.info().epoch ||
        run_->phases[rank] != RankPhase::kLive) {
      return false;
    }
    Run& run = *run_;
    run.phases[rank] = clean ? RankPhase::kLeft : RankPhase::kLost;
    if (residency_ != nullptr) residency_->DropRank(session.rank());
    if (clean && close_job && run.over.ok()) ++run.closed_ranks;
    if (!clean) {
      log::Warning(
          "rank_lost",
          {{"job", spec_.name}, {"who", session.Who()}, {"reason", reason}});
      FailRun(absl::UnavailableError(
                  absl::StrCat(session.Who(), " was lost: ", reason)),
              &calls);
    } else {
      log::Info("rank_left", {{"job", spec_.name}, {"who", session.Who()}});
      // Others may go on reading and closing, but not wait for this one.
      const bool awaited =
          !initialized_ ||
          (!run.prepared[rank] &&
           std::any_of(run.prepared.begin(), run.prepared.end(),
                       [](bool done) { return done; }));
      if (awaited && run.LiveSessions() > 0) {
        FailRun(absl::UnavailableError(absl::StrCat(
                    session.Who(), " has left, and other ranks wait for it")),
                &calls);
      }
    }
    if (run.LiveSessions() == 0) {
      ended = !closing_ &&
              (!initialized_ || run.closed_ranks == run.spec.local_ranks);
      if (ended) closing_ = true;
      if (run.over.ok()) {
        run.over = absl::AbortedError(
            absl::StrCat("job \"", spec_.name, "\": the run has ended"));
      }
      work_.NotifyOne();
    }
  }
  calls.Make();
  return ended;
}

}  // namespace stowage::core
