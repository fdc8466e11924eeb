#include "server/core/job_registry.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "optim/kernels.h"
#include "server/core/admission.h"
#include "server/core/job.h"
#include "server/core/memory_plan.h"
#include "server/core/nvme_roots.h"
#include "storage/host/process_memory.h"
#include "storage/nvme/nvme_store.h"

namespace stowage::core {
namespace {

constexpr int kThreadsMax = 1024;

class JobRegistryImpl;

// The handle that the rpc layer holds. All work is the job's.
class JobSessionImpl final : public JobSession {
 public:
  JobSessionImpl(JobRegistryImpl* registry, std::shared_ptr<Job> job,
                 std::shared_ptr<SessionState> state)
      : registry_(registry), job_(std::move(job)), state_(std::move(state)) {}
  JobSessionImpl(const JobSessionImpl&) = delete;
  JobSessionImpl& operator=(const JobSessionImpl&) = delete;
  ~JobSessionImpl() override {
    Detach(/*clean=*/false, /*close_job=*/false, "its session was dropped");
  }

  const AttachInfo& info() const override { return state_->info(); }
  const Layout& layout() const override { return job_->layout(); }
  absl::Status PutState(std::int32_t unit, std::int64_t begin_elems,
                        std::span<const float> values) override {
    return job_->PutState(*state_, unit, begin_elems, values);
  }
  absl::Status FinishInitialization() override {
    return job_->FinishInitialization(*state_);
  }
  absl::Status SetForwardOrder(std::span<const std::int32_t> units,
                               std::span<const std::int32_t> uses) override {
    return job_->SetForwardOrder(*state_, units, uses);
  }
  absl::Status Notice(std::int64_t step, std::int32_t micro, std::int32_t unit,
                      bool empty, std::int32_t region) override {
    return job_->Notice(*state_, {step, micro, unit, empty, region});
  }
  absl::Status WriteGradient(std::int32_t micro, std::int32_t unit,
                             std::int32_t region, std::int64_t begin_bytes,
                             std::span<const std::byte> data) override {
    return job_->WriteGradient(*state_, {micro, unit, region}, begin_bytes,
                               data);
  }
  absl::Status ViewParams(
      std::int32_t unit, std::int64_t step, std::int64_t begin_bytes,
      std::int64_t bytes, const std::function<bool()>& go_on,
      const std::function<void(std::span<const std::byte>)>& view) override {
    return job_->ViewParams(*state_, {unit, step, begin_bytes, bytes}, go_on,
                            view);
  }
  absl::Status AwaitLanded(std::int32_t unit, std::int64_t total,
                           const std::function<bool()>& go_on) override {
    return job_->AwaitLanded(*state_, unit, total, go_on);
  }
  absl::Status Lease(std::int32_t unit, std::int64_t step) override {
    return job_->Lease(*state_, unit, step);
  }
  absl::Status Unlease(std::int32_t unit) override {
    return job_->Unlease(*state_, unit);
  }
  absl::Status Prepare(std::int64_t step,
                       std::vector<double> scalars) override {
    return job_->Prepare(*state_, step, std::move(scalars));
  }
  absl::StatusOr<std::vector<std::byte>> BeginRound(
      const ApplyArgs& args, std::int32_t round) override {
    return job_->BeginRound(*state_, args, round);
  }
  absl::StatusOr<bool> TakeRound(std::int64_t step, std::int32_t round,
                                 std::int64_t begin_bytes,
                                 std::span<const std::byte> data) override {
    return job_->TakeRound(*state_, {step, round, begin_bytes}, data);
  }
  absl::Status Apply(const ApplyArgs& args) override {
    return job_->Apply(*state_, args);
  }
  absl::Status ReadState(std::int32_t unit, StateKind kind,
                         std::int64_t begin_elems,
                         std::span<float> out) override {
    return job_->ReadState(*state_, unit, kind, begin_elems, out);
  }
  void Detach(bool clean, bool close_job, const std::string& reason) override;

 private:
  JobRegistryImpl* const registry_;
  // Shared with the registry: a session's job may end before the session.
  const std::shared_ptr<Job> job_;
  const std::shared_ptr<SessionState> state_;
  std::atomic<bool> detached_{false};
};

class JobRegistryImpl final : public JobRegistry {
 public:
  JobRegistryImpl(const RegistryOptions& options, std::int64_t limit_bytes,
                  const optim::KernelSet* kernels,
                  std::unique_ptr<storage::SegmentFolder> folder, int threads,
                  NvmeRoots roots, NvmeRoots export_roots)
      : options_(options),
        roots_(std::move(roots)),
        export_roots_(std::move(export_roots)),
        started_(std::chrono::steady_clock::now()),
        folder_(std::move(folder)),
        budget_(limit_bytes),
        team_(threads) {
    services_.team = &team_;
    services_.kernels = kernels;
    services_.budget = &budget_;
    services_.folder = folder_.get();
    services_.lock_memory = options.lock_memory;
    services_.kept_slots_max = options.kept_slots_max;
    services_.disk = options.disk;
    services_.io_backend = options.io_backend;
    services_.encode_record = options.encode_record;
  }
  JobRegistryImpl(const JobRegistryImpl&) = delete;
  JobRegistryImpl& operator=(const JobRegistryImpl&) = delete;
  ~JobRegistryImpl() override { Stop(); }

  absl::StatusOr<std::unique_ptr<JobSession>> Attach(
      const JobSpec& asked, const RunSpec& asked_run, std::int32_t local_rank,
      const std::string& client, SessionObserver* observer) override;
  std::vector<JobInfo> List() const override;
  absl::Status Drop(const std::string& name) override;
  absl::Status Rewind(const std::string& name, std::int64_t step) override;
  absl::Status RollForward(const std::string& name,
                           const ApplyArgs& args) override;
  ServerInfo Info() const override;
  absl::StatusOr<SaveInfo> Save(const SaveSpec& spec) override;
  absl::StatusOr<SaveInfo> LastSave(const std::string& job) const override;
  void Stop() override;

  // Offers the jobs that lie on NVMe again. Before the first Attach().
  void FindJobs();

  // Shuts an ended job down, its files too, and forgets it.
  void Remove(const std::shared_ptr<Job>& job, const absl::Status& why) {
    job->Shutdown(why, /*remove_files=*/true);
    Forget(job);
  }

 private:
  absl::StatusOr<std::shared_ptr<Job>> FindOrOpen(const JobSpec& spec);
  void FindJob(const std::string& folder, const std::string& name);
  absl::StatusOr<std::shared_ptr<Job>> OpenFound(
      const std::string& folder, const storage::NvmeStoreInfo& info);
  absl::StatusOr<std::shared_ptr<Job>> Find(const char* what,
                                            const std::string& name) const;
  void Forget(const std::shared_ptr<Job>& job);

  const RegistryOptions options_;
  const NvmeRoots roots_;
  const NvmeRoots export_roots_;
  const std::chrono::steady_clock::time_point started_;
  // Destroyed in reverse: jobs, then what they use.
  std::unique_ptr<storage::SegmentFolder> folder_;
  storage::MemoryBudget budget_;
  ComputeTeam team_;
  CoreServices services_;

  mutable Mutex mutex_;
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::uint64_t next_job_id_ GUARDED_BY(mutex_) = 1;
  // Shared with the sessions of the job.
  std::map<std::string, std::shared_ptr<Job>> jobs_ GUARDED_BY(mutex_);
  // Found on NVMe but not fit to be offered, and why.
  struct Unfit {
    std::string folder;
    absl::Status why;
  };
  std::map<std::string, Unfit> unfit_ GUARDED_BY(mutex_);
};

void JobSessionImpl::Detach(bool clean, bool close_job,
                            const std::string& reason) {
  if (detached_.exchange(true)) return;
  if (job_->Detach(*state_, clean, close_job, reason)) {
    registry_->Remove(job_, absl::AbortedError("the job was closed"));
  }
}

absl::StatusOr<std::shared_ptr<Job>> JobRegistryImpl::FindOrOpen(
    const JobSpec& spec) {
  {
    MutexLock lock(mutex_);
    if (stopping_) return absl::UnavailableError("server is stopping");
    const auto found = jobs_.find(spec.name);
    if (found != jobs_.end()) return found->second;
    if (const auto unfit = unfit_.find(spec.name); unfit != unfit_.end()) {
      return absl::Status(
          unfit->second.why.code(),
          absl::StrCat("job \"", spec.name, "\" in ", unfit->second.folder,
                       ": ", unfit->second.why.message(),
                       "; see stowctl fsck, drop it, or take another name"));
    }
  }
  STOWAGE_RETURN_IF_ERROR(CheckElementsFit(spec, budget_.limit_bytes()));
  STOWAGE_ASSIGN_OR_RETURN(
      Layout layout,
      Layout::Create(spec.layout, LayoutLimitsOf(budget_.limit_bytes())));
  MutexLock lock(mutex_);
  if (stopping_) return absl::UnavailableError("server is stopping");
  const auto found =
      jobs_.find(spec.name);  // another rank may have been faster
  if (found != jobs_.end()) return found->second;
  if (static_cast<int>(jobs_.size()) >= options_.jobs_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("job \"", spec.name, "\": the server has ", jobs_.size(),
                     " jobs, which is its limit; drop one first"));
  }
  auto job = std::make_shared<Job>(&services_, next_job_id_++, spec,
                                   std::move(layout));
  jobs_.emplace(spec.name, job);
  return job;
}

absl::StatusOr<std::unique_ptr<JobSession>> JobRegistryImpl::Attach(
    const JobSpec& asked, const RunSpec& asked_run, std::int32_t local_rank,
    const std::string& client, SessionObserver* observer) {
  STOWAGE_RETURN_IF_ERROR(CheckJobSpec(asked));
  JobSpec job = asked;
  STOWAGE_ASSIGN_OR_RETURN(job.storage.nvme_paths,
                           roots_.Resolve(asked.storage.nvme_paths));
  STOWAGE_RETURN_IF_ERROR(CheckRunSpec(asked_run, local_rank));
  RunSpec run = asked_run;
  if (!run.load.folder.empty()) {
    STOWAGE_ASSIGN_OR_RETURN(run.load.folder,
                             export_roots_.ResolveToRead(run.load.folder));
  }
  std::string name = client.substr(0, 256);
  for (char& c : name) {
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  }
  for (;;) {
    STOWAGE_ASSIGN_OR_RETURN(std::shared_ptr<Job> found, FindOrOpen(job));
    bool gone = false;
    absl::StatusOr<std::shared_ptr<SessionState>> state =
        found->Attach(job, run, local_rank, name, observer, &gone);
    if (state.ok()) {
      return std::make_unique<JobSessionImpl>(this, std::move(found),
                                              *std::move(state));
    }
    if (!gone) {
      // A job that could not even be allocated must not keep the name.
      if (found->TryEndUnused()) Remove(found, state.status());
      return state.status();
    }
    found->AwaitShutdown();
    Forget(found);
  }
}

void JobRegistryImpl::Forget(const std::shared_ptr<Job>& job) {
  MutexLock lock(mutex_);
  const auto found = jobs_.find(job->name());
  if (found != jobs_.end() && found->second == job) jobs_.erase(found);
}

std::vector<JobInfo> JobRegistryImpl::List() const {
  std::vector<std::shared_ptr<Job>> jobs;
  {
    MutexLock lock(mutex_);
    for (const auto& [name, job] : jobs_) jobs.push_back(job);
  }
  std::vector<JobInfo> infos;
  infos.reserve(jobs.size());
  for (const auto& job : jobs) infos.push_back(job->Info());
  MutexLock lock(mutex_);
  for (const auto& [name, unfit] : unfit_) {
    JobInfo info;
    info.name = name;
    info.nvme_paths = {unfit.folder};
    info.failed_because = std::string(unfit.why.message());
    infos.push_back(std::move(info));
  }
  return infos;
}

void JobRegistryImpl::FindJobs() {
  for (const std::string& folder : roots_.Folders()) {
    const auto names = storage::NvmeStore::List(folder, options_.disk);
    if (!names.ok()) {
      log::Warning("nvme_root_not_read",
                   {{"folder", folder}, {"reason", names.status().message()}});
      continue;
    }
    for (const std::string& name : *names) FindJob(folder, name);
  }
}

void JobRegistryImpl::FindJob(const std::string& folder,
                              const std::string& name) {
  absl::StatusOr<storage::NvmeStoreInfo> info =
      storage::NvmeStore::Peek(folder, name, options_.disk);
  absl::Status why = info.status();
  if (info.ok() && info->commits.empty()) {
    // Its initialization was never finished: nothing in it counts.
    const absl::Status removed =
        storage::NvmeStore::Remove(info->paths, info->job_name, options_.disk);
    log::Info("unfinished_job_removed",
              {{"job", name},
               {"folder", folder},
               {"result", removed.ok() ? "OK" : removed.message()}});
    return;
  }
  if (why.ok()) {
    absl::StatusOr<std::shared_ptr<Job>> job = OpenFound(folder, *info);
    why = job.status();
    if (why.ok()) {
      const JobInfo found = (*job)->Info();
      log::Info("job_found",
                {{"job", name}, {"folder", folder}, {"step", found.step}});
      return;
    }
  }
  log::Error("job_not_offered",
             {{"job", name}, {"folder", folder}, {"reason", why.message()}});
  MutexLock lock(mutex_);
  if (jobs_.count(name) == 0) unfit_.emplace(name, Unfit{folder, why});
}

absl::StatusOr<std::shared_ptr<Job>> JobRegistryImpl::OpenFound(
    const std::string& folder, const storage::NvmeStoreInfo& info) {
  STOWAGE_ASSIGN_OR_RETURN(JobRecord record,
                           options_.decode_record(info.job_record));
  STOWAGE_RETURN_IF_ERROR(CheckJobSpec(record.spec));
  if (record.spec.name != info.job_name) {
    return absl::DataLossError(
        absl::StrCat("its record is of job \"", record.spec.name,
                     "\", its files of \"", info.job_name, "\""));
  }
  if (info.paths.empty() || info.paths.front() != folder) {
    return absl::FailedPreconditionError(absl::StrCat(
        "it was made in ", info.paths.empty() ? "?" : info.paths.front(),
        ", where its other parts are sought; mount it there again"));
  }
  STOWAGE_ASSIGN_OR_RETURN(record.spec.storage.nvme_paths,
                           roots_.Resolve(info.paths));
  STOWAGE_ASSIGN_OR_RETURN(
      Layout layout, Layout::Create(record.spec.layout,
                                    LayoutLimitsOf(budget_.limit_bytes())));
  if (layout.fingerprint() != info.layout_fingerprint) {
    return absl::DataLossError("its record has another layout than its files");
  }
  MutexLock lock(mutex_);
  if (jobs_.count(info.job_name) > 0) {
    return absl::AlreadyExistsError(
        "another folder has a job of this name; take one of the two away");
  }
  if (static_cast<int>(jobs_.size()) >= options_.jobs_max) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the server has ", jobs_.size(), " jobs, which is its limit"));
  }
  auto job = std::make_shared<Job>(&services_, next_job_id_++, record.spec,
                                   std::move(layout));
  job->SetFound(std::move(record), info);
  jobs_.emplace(info.job_name, job);
  return job;
}

absl::StatusOr<std::shared_ptr<Job>> JobRegistryImpl::Find(
    const char* what, const std::string& name) const {
  MutexLock lock(mutex_);
  const auto found = jobs_.find(name);
  if (found != jobs_.end()) return found->second;
  return absl::NotFoundError(absl::StrCat(
      what, ": no job \"", name.substr(0, kJobNameBytesMax), "\""));
}

absl::Status JobRegistryImpl::Rewind(const std::string& name,
                                     std::int64_t step) {
  STOWAGE_ASSIGN_OR_RETURN(const std::shared_ptr<Job> job,
                           Find("rewind", name));
  return job->Rewind(step);
}

absl::Status JobRegistryImpl::RollForward(const std::string& name,
                                          const ApplyArgs& args) {
  STOWAGE_ASSIGN_OR_RETURN(const std::shared_ptr<Job> job,
                           Find("roll forward", name));
  return job->RollForward(args);
}

absl::StatusOr<SaveInfo> JobRegistryImpl::Save(const SaveSpec& spec) {
  STOWAGE_ASSIGN_OR_RETURN(const std::shared_ptr<Job> job,
                           Find("save", spec.job));
  SaveSpec resolved = spec;
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::string> folders,
                           export_roots_.Resolve({spec.folder}));
  resolved.folder = folders.front();
  return job->Save(resolved);
}

absl::StatusOr<SaveInfo> JobRegistryImpl::LastSave(
    const std::string& name) const {
  STOWAGE_ASSIGN_OR_RETURN(const std::shared_ptr<Job> job, Find("save", name));
  return job->LastSave();
}

absl::Status JobRegistryImpl::Drop(const std::string& name) {
  {
    MutexLock lock(mutex_);
    if (const auto unfit = unfit_.find(name); unfit != unfit_.end()) {
      STOWAGE_RETURN_IF_ERROR(storage::NvmeStore::Remove({unfit->second.folder},
                                                         name, options_.disk));
      unfit_.erase(unfit);
      log::Info("job_dropped", {{"job", name}});
      return absl::OkStatus();
    }
  }
  STOWAGE_ASSIGN_OR_RETURN(const std::shared_ptr<Job> job, Find("drop", name));
  if (const SaveInfo save = job->LastSave();
      save.phase == SavePhase::kWriting) {
    return absl::FailedPreconditionError(absl::StrCat(
        "drop: job \"", name, "\": its step ", save.step,
        " is being saved; wait for that (stowctl checkpoint status)"));
  }
  std::int32_t live = 0;
  if (!job->TryEnd(&live)) {
    return absl::FailedPreconditionError(
        absl::StrCat("drop: job \"", name, "\" has ", live, " live sessions"));
  }
  Remove(job, absl::AbortedError("the job was dropped"));
  log::Info("job_dropped", {{"job", name}});
  return absl::OkStatus();
}

ServerInfo JobRegistryImpl::Info() const {
  ServerInfo info;
  info.version = STOWAGE_VERSION;
  info.protocol_version = kProtocolVersion;
  info.pid = ::getpid();
  info.isa = std::string(optim::IsaName(services_.kernels->isa));
  info.threads = team_.threads();
  info.memory_limit_bytes = budget_.limit_bytes();
  info.pinned_bytes = budget_.in_use_bytes();
  info.locked_bytes = budget_.locked_bytes();
  info.huge_page_bytes = storage::HugePageBytes();
  info.rss_bytes = storage::ResidentBytes();
  info.uptime_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started_)
          .count();
  info.shm_dir = folder_->path();
  return info;
}

void JobRegistryImpl::Stop() {
  std::map<std::string, std::shared_ptr<Job>> jobs;
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    jobs.swap(jobs_);
  }
  for (const auto& [name, job] : jobs) {
    job->Shutdown(absl::UnavailableError("server is stopping"),
                  /*remove_files=*/false);
  }
}

absl::StatusOr<const optim::KernelSet*> ChooseKernels(const std::string& isa) {
  if (isa.empty()) return &optim::BestKernels();
  for (const optim::Isa candidate :
       {optim::Isa::kPortable, optim::Isa::kAvx2, optim::Isa::kAvx512}) {
    if (isa == optim::IsaName(candidate)) {
      return optim::KernelsFor(candidate);
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("isa \"", isa, "\": expected portable, avx2 or avx512"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<JobRegistry>> JobRegistry::Create(
    const RegistryOptions& options) {
  if (options.threads < 0 || options.threads > kThreadsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "threads ", options.threads, ": expected 0 to ", kThreadsMax));
  }
  if (options.memory_limit_bytes < 0) {
    return absl::InvalidArgumentError("memory limit: negative");
  }
  if (options.kept_slots_max < 0 || options.kept_slots_max > kKeptSlotsLimit) {
    return absl::InvalidArgumentError(
        absl::StrCat("kept slots ", options.kept_slots_max, ": expected 0 to ",
                     kKeptSlotsLimit));
  }
  if (options.jobs_max < 1) {
    return absl::InvalidArgumentError("jobs max: below 1");
  }
  STOWAGE_ASSIGN_OR_RETURN(const optim::KernelSet* kernels,
                           ChooseKernels(options.isa));
  const std::string id =
      options.server_id.empty() ? storage::RandomHex(8) : options.server_id;
  STOWAGE_ASSIGN_OR_RETURN(NvmeRoots roots,
                           NvmeRoots::Create(options.nvme_roots));
  if (!roots.empty() && (!options.encode_record || !options.decode_record)) {
    return absl::InvalidArgumentError("nvme roots without a record codec");
  }
  STOWAGE_ASSIGN_OR_RETURN(NvmeRoots export_roots,
                           NvmeRoots::Create(options.export_roots, "export"));
  STOWAGE_ASSIGN_OR_RETURN(std::unique_ptr<storage::SegmentFolder> folder,
                           storage::SegmentFolder::Create(options.shm_dir, id));
  const int processors =
      std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const std::int64_t limit_bytes = options.memory_limit_bytes > 0
                                       ? options.memory_limit_bytes
                                       : storage::MachineMemoryBytes() / 10 * 9;
  auto registry = std::make_unique<JobRegistryImpl>(
      options, limit_bytes, kernels, std::move(folder),
      options.threads > 0 ? options.threads : processors, std::move(roots),
      std::move(export_roots));
  registry->FindJobs();
  return registry;
}

}  // namespace stowage::core
