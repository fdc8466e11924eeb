#include "storage/nvme/nvme_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "storage/nvme/io/disk.h"
#include "storage/nvme/manifest.h"
#include "storage/nvme/memory_plan.h"
#include "storage/nvme/nvme_store_impl.h"
#include "storage/nvme/store_files.h"

namespace stowage::storage {
namespace {

constexpr char kFolderSuffix[] = ".stowage";

Disk& DiskOf(Disk* disk) { return disk == nullptr ? MachineDisk() : *disk; }

absl::StatusOr<Manifest> ReadNewest(Disk& disk, const std::string& path,
                                    const std::string& job_name) {
  const std::string file = ManifestFile(path, job_name);
  absl::StatusOr<ManifestSlots> slots = ReadManifestFile(disk, file);
  if (!slots.ok()) {
    return absl::Status(slots.status().code(),
                        absl::StrCat("NVMe store of job \"", job_name,
                                     "\": ", slots.status().message()));
  }
  STOWAGE_ASSIGN_OR_RETURN(const Manifest* newest, slots->Newest(file));
  return *newest;
}

absl::Status CheckSame(const StoreShape& shape, const Layout& layout,
                       const NvmeStoreOptions& options) {
  if (shape.layout_fingerprint != layout.fingerprint()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "NVMe store of job \"", shape.job_name,
        "\": it was made for another model (layout ", shape.layout_fingerprint,
        ", this one is ", layout.fingerprint(),
        "); use another job name, or drop the job"));
  }
  if (shape.job_name != options.job_name || shape.paths != options.paths) {
    return absl::InvalidArgumentError(absl::StrCat(
        "NVMe store of job \"", options.job_name, "\": it was made as job \"",
        shape.job_name, "\" in ", shape.paths.size(), " folders, first ",
        shape.paths.front(), "; give the same folders in the same order (now ",
        options.paths.size(), ", first ", options.paths.front(), ")"));
  }
  return absl::OkStatus();
}

absl::StatusOr<PinnedArena> MakeArena(const MemoryPlan& plan,
                                      const NvmeStoreOptions& options,
                                      MemoryBudget* budget,
                                      MemoryReservation reservation) {
  const std::int64_t mapped = PinnedArena::MappedBytes(plan.total_bytes());
  if (reservation.bytes() != mapped) {
    return absl::InvalidArgumentError(absl::StrCat(
        "NVMe store of job \"", options.job_name, "\": ", reservation.bytes(),
        " bytes are reserved, it pins ", mapped,
        " (ask NvmePinnedBytes with the options of the store, from Peek)"));
  }
  return PinnedArena::Create(plan.total_bytes(), options.lock_memory, budget,
                             std::move(reservation));
}

}  // namespace

absl::StatusOr<std::unique_ptr<NvmeStore>> NvmeStore::Create(
    const Layout& layout, const NvmeStoreOptions& options, MemoryBudget* budget,
    MemoryReservation reservation) {
  STOWAGE_RETURN_IF_ERROR(CheckNvmeOptions(options));
  Disk& disk = DiskOf(options.disk);
  NvmeStoreImpl::Parts parts;
  parts.options = options;
  parts.shape = ShapeOf(layout, options);
  parts.job_record = options.job_record;
  parts.disk = &disk;
  const ExtentMap state = StateMap(layout, parts.shape);
  const ExtentMap params = ParamMap(layout, parts.shape);
  parts.plan = PlanMemory(state, params, parts.shape, options);
  // Memory first: it is quick to refuse and leaves nothing behind.
  STOWAGE_ASSIGN_OR_RETURN(parts.arena, MakeArena(parts.plan, options, budget,
                                                  std::move(reservation)));
  STOWAGE_ASSIGN_OR_RETURN(
      parts.files, CreateStoreFiles(disk, layout, parts.shape, options.direct));
  absl::Status status;
  {
    absl::StatusOr<std::unique_ptr<NvmeStoreImpl>> store =
        NvmeStoreImpl::Make(layout, std::move(parts));
    status = store.status();
    if (status.ok()) status = (*store)->Initialize();
    if (status.ok()) return *std::move(store);
  }
  // The cause is what counts.
  Remove(options.paths, options.job_name, options.disk).IgnoreError();
  return status;
}

absl::StatusOr<std::unique_ptr<NvmeStore>> NvmeStore::Open(
    const Layout& layout, const NvmeStoreOptions& options, MemoryBudget* budget,
    MemoryReservation reservation) {
  STOWAGE_RETURN_IF_ERROR(CheckNvmeOptions(options));
  Disk& disk = DiskOf(options.disk);
  const std::string& first = options.paths.front();
  // The shape first; what the manifest says counts once the lock is held.
  STOWAGE_ASSIGN_OR_RETURN(const Manifest before,
                           ReadNewest(disk, first, options.job_name));
  STOWAGE_RETURN_IF_ERROR(CheckSame(before.shape, layout, options));
  NvmeStoreImpl::Parts parts;
  parts.options = options;
  parts.shape = before.shape;
  parts.disk = &disk;
  const ExtentMap state = StateMap(layout, parts.shape);
  const ExtentMap params = ParamMap(layout, parts.shape);
  parts.plan = PlanMemory(state, params, parts.shape, options);
  STOWAGE_ASSIGN_OR_RETURN(parts.arena, MakeArena(parts.plan, options, budget,
                                                  std::move(reservation)));
  STOWAGE_ASSIGN_OR_RETURN(
      parts.files, OpenStoreFiles(disk, layout, parts.shape, options.direct));
  STOWAGE_ASSIGN_OR_RETURN(const Manifest manifest,
                           ReadNewest(disk, first, options.job_name));
  STOWAGE_ASSIGN_OR_RETURN(
      const std::string job_bytes,
      disk.ReadSmall(JobFileName(first, options.job_name)));
  absl::StatusOr<JobFile> job = DecodeJobFile(job_bytes);
  if (!job.ok()) {
    return absl::Status(job.status().code(),
                        absl::StrCat(JobFileName(first, options.job_name), ": ",
                                     job.status().message()));
  }
  parts.job_record = std::move(job->job_record);
  STOWAGE_ASSIGN_OR_RETURN(std::unique_ptr<NvmeStoreImpl> store,
                           NvmeStoreImpl::Make(layout, std::move(parts)));
  STOWAGE_RETURN_IF_ERROR(store->Adopt(manifest));
  return store;
}

absl::StatusOr<NvmeStoreInfo> NvmeStore::Peek(const std::string& path,
                                              const std::string& job_name,
                                              Disk* disk) {
  STOWAGE_ASSIGN_OR_RETURN(Manifest manifest,
                           ReadNewest(DiskOf(disk), path, job_name));
  NvmeStoreInfo info{.job_name = manifest.shape.job_name,
                     .job_id = manifest.shape.job_id,
                     .layout_fingerprint = manifest.shape.layout_fingerprint,
                     .format_version = manifest.format_version,
                     .durability = manifest.durability,
                     .kept_versions = manifest.shape.kept_versions,
                     .params = manifest.shape.params,
                     .gradient_spill = manifest.shape.gradient_spill,
                     .extent_bytes = manifest.shape.extent_bytes,
                     .paths = manifest.shape.paths,
                     .commits = {},
                     .job_record = ""};
  for (KeptCommit& commit : manifest.commits) {
    info.commits.push_back(std::move(commit.record));
  }
  const std::string file = JobFileName(path, job_name);
  STOWAGE_ASSIGN_OR_RETURN(const std::string bytes,
                           DiskOf(disk).ReadSmall(file));
  absl::StatusOr<JobFile> job = DecodeJobFile(bytes);
  if (!job.ok()) {
    return absl::Status(job.status().code(),
                        absl::StrCat(file, ": ", job.status().message()));
  }
  info.job_record = std::move(job->job_record);
  return info;
}

absl::StatusOr<std::vector<std::string>> NvmeStore::List(
    const std::string& path, Disk* disk) {
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                           DiskOf(disk).List(path));
  std::vector<std::string> jobs;
  for (const std::string& name : names) {
    if (!absl::EndsWith(name, kFolderSuffix)) continue;
    std::string job = name.substr(0, name.size() - (sizeof(kFolderSuffix) - 1));
    // Folders of a store beside the first hold no manifest.
    if (DiskOf(disk).Open(ManifestFile(path, job), /*direct=*/false).ok()) {
      jobs.push_back(std::move(job));
    }
  }
  return jobs;
}

absl::Status NvmeStore::Remove(const std::vector<std::string>& paths,
                               const std::string& job_name, Disk* disk) {
  for (const std::string& path : paths) {
    STOWAGE_RETURN_IF_ERROR(
        DiskOf(disk).RemoveFolder(StoreFolder(path, job_name)));
  }
  return absl::OkStatus();
}

}  // namespace stowage::storage
