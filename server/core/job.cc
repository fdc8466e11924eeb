#include "server/core/job.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace stowage::core {
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

}  // namespace stowage::core
