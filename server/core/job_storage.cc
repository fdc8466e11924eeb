// The part of Job that deals with its store: memory or NVMe, opening, loading
// what ranks read, returning to older steps, and the end of its files.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/crash_point.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "server/core/job.h"
#include "storage/host/host_store.h"
#include "storage/nvme/fsck.h"

namespace stowage::core {
namespace {

// Masters are read and rounded in pieces of 1 MiB.
constexpr std::int64_t kLoadElems = std::int64_t{256} * 1024;

// Nothing else of a store's options changes what it does or holds.
bool SameStore(const MemoryPlan& a, const MemoryPlan& b) {
  return a.need.state_bytes == b.need.state_bytes &&
         a.need.param_bytes == b.need.param_bytes &&
         a.params_leased == b.params_leased && a.ahead_units == b.ahead_units &&
         a.ahead_bytes == b.ahead_bytes &&
         a.store.window_elems == b.store.window_elems &&
         a.store.slots == b.store.slots &&
         a.store.cache_bytes == b.store.cache_bytes &&
         a.store.pipeline_read == b.store.pipeline_read &&
         a.store.pipeline_write == b.store.pipeline_write &&
         a.store.block_size == b.store.block_size &&
         a.store.queue_depth == b.store.queue_depth &&
         a.store.single_submit == b.store.single_submit &&
         a.store.overlap_events == b.store.overlap_events &&
         a.store.threads == b.store.threads;
}

}  // namespace

void Job::SetFound(JobRecord record, const storage::NvmeStoreInfo& info) {
  MutexLock lock(mutex_);
  on_disk_ = info;
  params_stale_ = true;
  initialized_ = true;
  committed_ = info.commits.back();
  for (const storage::CommitRecord& commit : info.commits) {
    kept_steps_.push_back(commit.step);
  }
  storage::NvmeStoreOptions options;
  options.paths = info.paths;
  options.kept_versions = info.kept_versions;
  options.params = info.params;
  options.gradient_spill = info.gradient_spill;
  options.extent_bytes = info.extent_bytes;
  disk_bytes_ = storage::NvmeSpaceBytes(layout_, options);
  forward_order_ = std::move(record.forward_order);
  trace_ = std::move(record.trace);
  payloads_current_ = record.params_current;
}

absl::StatusOr<std::unique_ptr<Job::Run>> Job::MakeRun(
    const RunSpec& run, const StorageSpec& storage) {
  STOWAGE_ASSIGN_OR_RETURN(const MemoryPlan plan, Plan(run, storage));
  // Nobody is attached: the store may be opened anew with other figures.
  if (nvme_ != nullptr && on_disk_.has_value() && !SameStore(plan, plan_)) {
    STOWAGE_RETURN_IF_ERROR(CloseState());
  }
  const MemoryNeed& need = plan.need;
  const bool whole_job = store_ == nullptr;
  if (OneBitUpdate* const one_bit = whole_job ? nullptr : update_->one_bit()) {
    if (const absl::Status same = one_bit->CheckRanks(run); !same.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("job \"", spec_.name, "\": ", same.message()));
    }
  }
  STOWAGE_ASSIGN_OR_RETURN(
      storage::MemoryReservation reservation,
      services_->budget->Reserve(
          need.run_bytes() + (whole_job ? need.job_bytes() : 0),
          absl::StrCat("job \"", spec_.name, "\" (",
                       DescribeNeed(need, whole_job, true), ")")));
  if (whole_job) {
    STOWAGE_RETURN_IF_ERROR(
        AllocateJob(run, reservation.Split(need.job_bytes()), plan));
  }
  plan_ = plan;
  if (nvme_ != nullptr && !plan.params_leased && payloads_current_) {
    // From here on steps are committed without writing them.
    STOWAGE_RETURN_IF_ERROR(SetPayloadsCurrent(false));
  }
  if (params_stale_) {
    STOWAGE_RETURN_IF_ERROR(LoadParams());
  } else if (residency_ != nullptr && !on_disk_.has_value()) {
    residency_->Reset(0);  // what an unfinished initialization left
  }
  STOWAGE_RETURN_IF_ERROR(LoadIfNew(run.load));
  auto made = std::make_unique<Run>(layout_, run, plan.slots);
  made->rounds = StepRounds(spec_.optimizer, layout_, run);
  made->epoch = services_->next_epoch.fetch_add(1);
  STOWAGE_ASSIGN_OR_RETURN(
      made->gradients,
      RunGradients::Create(
          layout_, run, plan.slots,
          {.buffers = plan.sum_buffers,
           .store = nvme_ == nullptr ? nullptr : nvme_->spill()},
          {.job_id = id_, .epoch = made->epoch}, *services_->folder,
          LocksMemory(), services_->budget, std::move(reservation)));
  if (residency_ != nullptr) {
    residency_->BeginRun(made->epoch, run.local_ranks, run.micro_steps,
                         store_->committed().step);
  }
  return made;
}

absl::StatusOr<MemoryPlan> Job::Plan(const RunSpec& run,
                                     const StorageSpec& storage) {
  asked_ = spec_;
  asked_.storage = storage;
  asked_.storage.nvme_paths = spec_.storage.nvme_paths;
  STOWAGE_ASSIGN_OR_RETURN(
      MemoryPlan plan,
      PlanMemory(layout_, asked_, run, services_->kept_slots_max,
                 on_disk_.has_value() ? &*on_disk_ : nullptr));
  if (!spec_.storage.on_nvme()) return plan;
  const std::int64_t space = storage::NvmeSpaceBytes(layout_, plan.store);
  if (storage.nvme_budget_bytes > 0 && space > storage.nvme_budget_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "job \"", spec_.name, "\": ", plan.store.kept_versions,
        " kept steps and the one being made take ", HumanBytes(space), " (",
        space, " bytes) of disk, stowage.nvme_budget is ",
        HumanBytes(storage.nvme_budget_bytes), " (", storage.nvme_budget_bytes,
        " bytes); raise it, or keep fewer steps"));
  }
  if (plan.store.job_id == 0) plan.store.job_id = id_;
  return plan;
}

absl::Status Job::AllocateJob(const RunSpec& run,
                              storage::MemoryReservation reservation,
                              const MemoryPlan& plan) {
  // The segment first: a full tmpfs shows at once, memory takes a while.
  STOWAGE_ASSIGN_OR_RETURN(
      std::unique_ptr<ParamSegment> params,
      ParamSegment::Create(
          layout_, *services_->folder,
          {.job_id = id_,
           .lock_memory = LocksMemory(),
           .leased_bytes = plan.params_leased
                               ? std::optional(plan.param_limit_bytes)
                               : std::nullopt},
          services_->budget, reservation.Split(plan.need.param_bytes)));
  std::vector<std::int32_t> first;
  {
    MutexLock lock(mutex_);
    first = forward_order_;
  }
  STOWAGE_ASSIGN_OR_RETURN(std::shared_ptr<const UpdateOrder> order,
                           UpdateOrder::Create(layout_, first));
  std::unique_ptr<OneBitUpdate> one_bit;
  if (spec_.optimizer.one_bit()) {
    one_bit = std::make_unique<OneBitUpdate>(
        layout_, spec_.optimizer, run,
        reservation.Split(plan.need.one_bit_bytes));
  }
  STOWAGE_RETURN_IF_ERROR(OpenStore(plan, std::move(reservation)));
  update_ = std::make_unique<StepUpdate>(layout_, std::move(one_bit));
  partials_.assign(layout_.chunks().size(), 0.0);
  params_ = std::move(params);
  plan_ = plan;
  if (plan.params_leased) MakeResidency(plan);
  MutexLock lock(mutex_);
  order_ = std::move(order);
  plan_leased_ = plan.params_leased;
  param_limit_bytes_ = plan.params_leased ? plan.param_limit_bytes : 0;
  return absl::OkStatus();
}

bool Job::LocksMemory() const {
  return services_->lock_memory && asked_.storage.pin_memory;
}

absl::Status Job::OpenStore(const MemoryPlan& plan,
                            storage::MemoryReservation reservation) {
  if (!spec_.storage.on_nvme()) {
    STOWAGE_ASSIGN_OR_RETURN(
        store_,
        storage::HostStore::Create(layout_, LocksMemory(), services_->budget,
                                   std::move(reservation)));
    return absl::OkStatus();
  }
  storage::NvmeStoreOptions options = plan.store;
  options.disk = services_->disk;
  options.backend = services_->io_backend;
  options.lock_memory = options.lock_memory && services_->lock_memory;
  absl::StatusOr<std::unique_ptr<storage::NvmeStore>> opened;
  if (on_disk_.has_value()) {
    opened = storage::NvmeStore::Open(layout_, options, services_->budget,
                                      std::move(reservation));
  } else {
    const JobRecord record{.spec = asked_,
                           .forward_order = {},
                           .trace = {},
                           .params_current = false};
    options.job_record = services_->encode_record(record);
    opened = storage::NvmeStore::Create(layout_, options, services_->budget,
                                        std::move(reservation));
  }
  STOWAGE_RETURN_IF_ERROR(opened.status());
  CrashPoint("job-created");
  nvme_ = opened->get();
  store_ = *std::move(opened);
  log::Info("nvme_store_opened", {{"job", spec_.name},
                                  {"folder", options.paths.front()},
                                  {"io", nvme_->DescribeIo()},
                                  {"step", nvme_->committed().step},
                                  {"pinned", HumanBytes(nvme_->pinned_bytes())},
                                  {"cache", HumanBytes(options.cache_bytes)}});
  RefreshDiskFigures();
  MutexLock lock(mutex_);
  disk_bytes_ = storage::NvmeSpaceBytes(layout_, options);
  cache_bytes_ = options.cache_bytes;
  io_ = nvme_->DescribeIo();
  if (on_disk_.has_value()) committed_ = nvme_->committed();
  return absl::OkStatus();
}

absl::Status Job::CloseState() {
  EndSave(/*finish=*/true);
  absl::Status status;
  residency_.reset();
  if (nvme_ != nullptr) status = nvme_->Close();
  nvme_ = nullptr;
  store_.reset();
  params_.reset();
  params_stale_ = true;
  return status;
}

void Job::MakeResidency(const MemoryPlan& plan) {
  residency_ = std::make_unique<ParamResidency>(
      layout_, *params_, *nvme_->params(),
      ParamResidency::Options{
          .limit_bytes = plan.param_limit_bytes,
          .ahead_units = plan.ahead_units,
          .ahead_bytes = plan.ahead_bytes,
          .granted =
              [this](const std::vector<LeaseGrant>& grants) {
                Deliver(grants);
              },
          .failed =
              [this](const absl::Status& status) { ResidencyFailed(status); }});
  MutexLock lock(mutex_);
  residency_->SetTrace(trace_);
}

// Parameters could not be read or written: the job stops, its committed state
// is whole. An apply that runs meets the same error by itself.
void Job::ResidencyFailed(const absl::Status& status) {
  Calls calls;
  {
    MutexLock lock(mutex_);
    if (!failed_because_.ok()) return;
    recoverable_ = true;
    FailJob(absl::Status(status.code(),
                         absl::StrCat("job \"", spec_.name,
                                      "\": parameters: ", status.message())),
            &calls);
  }
  calls.Make();
}

// Kept on NVMe before anything relies on it.
absl::Status Job::SetPayloadsCurrent(bool current) {
  {
    MutexLock lock(mutex_);
    record_changed_ = true;
  }
  payloads_current_ = current;
  return KeepRecord();
}

absl::Status Job::LoadParams() {
  const std::int64_t step = nvme_->committed().step;
  if (residency_ != nullptr) residency_->Reset(step);
  for (std::int32_t unit = 0; unit < layout_.unit_count(); ++unit) {
    absl::Status status;
    if (residency_ == nullptr) {
      status = LoadUnit(unit);
    } else if (!payloads_current_) {
      status = residency_->BeginWrite(
          unit,
          /*load=*/HasFrozen(layout_.units()[static_cast<std::size_t>(unit)]),
          /*give_up=*/true);
      if (status.ok()) status = LoadUnit(unit);
      if (status.ok()) {
        std::vector<LeaseGrant> none;
        residency_->EndWrite(unit, step, &none);
        status = residency_->Settle();
      }
    }
    if (!status.ok()) {
      return absl::Status(
          status.code(),
          absl::StrCat("job \"", spec_.name, "\": load the parameters of step ",
                       nvme_->committed().step, ": ", status.message()));
    }
  }
  for (std::int32_t unit = 0; unit < layout_.unit_count(); ++unit) {
    params_->PublishVersion(unit, nvme_->committed().step);
  }
  params_stale_ = false;
  return absl::OkStatus();
}

absl::Status Job::LoadUnit(std::int32_t unit) {
  const Layout::Unit& shape = layout_.units()[static_cast<std::size_t>(unit)];
  if (HasFrozen(shape) && residency_ == nullptr) {
    storage::UnitStore& payloads = *nvme_->params();
    STOWAGE_RETURN_IF_ERROR(payloads.StartRead(
        unit, {params_->param(unit, 0),
               static_cast<std::size_t>(payloads.payload_bytes(unit))}));
    STOWAGE_RETURN_IF_ERROR(payloads.Await(unit));
  }
  std::vector<float> masters;
  for (const Layout::Run& run : shape.runs) {
    for (std::int64_t at = run.begin_elems; at < run.end_elems;
         at += kLoadElems) {
      const std::int64_t elems = std::min(kLoadElems, run.end_elems - at);
      masters.resize(static_cast<std::size_t>(elems));
      STOWAGE_RETURN_IF_ERROR(
          store_->Read(unit, StateKind::kMaster, at, masters));
      services_->kernels->convert(masters.data(), layout_.param_dtype(),
                                  params_->param(unit, at), elems);
    }
  }
  return absl::OkStatus();
}

absl::Status Job::CommitInitialState() {
  if (!spec_.storage.on_nvme()) return absl::OkStatus();
  busy_ = true;
  mutex_.Unlock();
  absl::Status status = WriteInitialState({});
  if (status.ok()) RefreshDiskFigures();
  mutex_.Lock();
  EndBusy();
  return status;
}

absl::Status Job::WriteInitialState(const storage::CommitRecord& record) {
  if (residency_ != nullptr) STOWAGE_RETURN_IF_ERROR(residency_->Settle());
  for (std::int32_t unit = 0; unit < layout_.unit_count(); ++unit) {
    if (residency_ != nullptr) break;  // each was written when it was whole
    if (!HasFrozen(layout_.units()[static_cast<std::size_t>(unit)])) continue;
    storage::UnitStore& payloads = *nvme_->params();
    STOWAGE_RETURN_IF_ERROR(payloads.StartWrite(
        unit, {params_->param(unit, 0),
               static_cast<std::size_t>(payloads.payload_bytes(unit))}));
    STOWAGE_RETURN_IF_ERROR(payloads.Await(unit));
  }
  CrashPoint("initial-state-written");
  STOWAGE_RETURN_IF_ERROR(nvme_->Commit(record));
  on_disk_ =
      storage::NvmeStoreInfo{.job_name = spec_.name,
                             .job_id = plan_.store.job_id,
                             .layout_fingerprint = layout_.fingerprint(),
                             .durability = spec_.durability,
                             .kept_versions = plan_.store.kept_versions,
                             .params = plan_.store.params,
                             .gradient_spill = plan_.store.gradient_spill,
                             .extent_bytes = plan_.store.extent_bytes,
                             .paths = plan_.store.paths,
                             .commits = {record},
                             .job_record = nvme_->job_record()};
  if (residency_ != nullptr) return SetPayloadsCurrent(true);
  return absl::OkStatus();
}

void Job::RefreshDiskFigures() {
  if (nvme_ == nullptr) return;
  const std::vector<std::int64_t> steps = nvme_->KeptSteps();
  storage::NvmeStoreStats stats = nvme_->stats();
  for (const storage::UnitStore* units : {nvme_->params(), nvme_->spill()}) {
    if (units == nullptr) continue;
    stats.bytes_read += units->bytes_read();
    stats.bytes_written += units->bytes_written();
  }
  MutexLock lock(mutex_);
  kept_steps_ = steps;
  disk_stats_ = stats;
}

// An error is logged; what is kept serves the first step after a restart.
absl::Status Job::KeepRecord() {
  JobRecord record{.spec = asked_,
                   .forward_order = {},
                   .trace = {},
                   .params_current = payloads_current_};
  {
    MutexLock lock(mutex_);
    if (nvme_ == nullptr || !record_changed_) return absl::OkStatus();
    record_changed_ = false;
    record.forward_order = forward_order_;
    record.trace = trace_;
  }
  absl::Status status = nvme_->SetJobRecord(services_->encode_record(record));
  if (!status.ok()) {
    log::Warning("job_record_not_kept",
                 {{"job", spec_.name}, {"reason", status.message()}});
  }
  return status;
}

absl::Status Job::Rewind(std::int64_t step) {
  MutexLock attach_lock(attach_mutex_);
  {
    MutexLock lock(mutex_);
    if (!spec_.storage.on_nvme()) {
      return absl::FailedPreconditionError(
          absl::StrCat("rewind: job \"", spec_.name,
                       "\" keeps no steps: its state is in memory"));
    }
    for (;;) {
      if (closing_) {
        return absl::UnavailableError(
            absl::StrCat("job \"", spec_.name, "\" is ending"));
      }
      if (run_ && run_->over.ok() && run_->LiveSessions() > 0) {
        return absl::FailedPreconditionError(
            absl::StrCat("rewind: job \"", spec_.name, "\" has ",
                         run_->LiveSessions(), " live sessions"));
      }
      if (!initialized_) {
        return absl::FailedPreconditionError(absl::StrCat(
            "rewind: job \"", spec_.name, "\" has no committed step yet"));
      }
      if (NothingRuns()) break;
      idle_.Wait(mutex_);
    }
    busy_ = true;
  }
  absl::Status status = RewindBusy(step);
  RefreshDiskFigures();
  MutexLock lock(mutex_);
  EndBusy();
  if (!status.ok()) return status;
  committed_ = on_disk_->commits.back();
  log::Info("job_rewound", {{"job", spec_.name}, {"step", step}});
  return status;
}

absl::Status Job::RewindBusy(std::int64_t step) {
  if (nvme_ != nullptr) {
    EndSave(/*finish=*/true);  // it reads what is given up here
    STOWAGE_RETURN_IF_ERROR(nvme_->Rewind(step));
    params_stale_ = true;
    on_disk_->commits = {nvme_->committed()};
    return absl::OkStatus();
  }
  const std::string& folder = spec_.storage.nvme_paths.front();
  STOWAGE_RETURN_IF_ERROR(
      storage::RewindClosed(folder, spec_.name, step, services_->disk));
  STOWAGE_ASSIGN_OR_RETURN(
      on_disk_, storage::NvmeStore::Peek(folder, spec_.name, services_->disk));
  std::vector<std::int64_t> steps;
  for (const storage::CommitRecord& commit : on_disk_->commits) {
    steps.push_back(commit.step);
  }
  MutexLock lock(mutex_);
  kept_steps_ = std::move(steps);
  return absl::OkStatus();
}

void Job::RemoveFiles(const std::string& why) {
  absl::Status status = storage::NvmeStore::Remove(spec_.storage.nvme_paths,
                                                   spec_.name, services_->disk);
  if (status.ok()) {
    log::Info("nvme_store_removed", {{"job", spec_.name}, {"reason", why}});
  } else {
    log::Error("nvme_store_not_removed",
               {{"job", spec_.name}, {"reason", status.message()}});
  }
}

}  // namespace stowage::core
