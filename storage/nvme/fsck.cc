#include "storage/nvme/fsck.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/bytes.h"
#include "common/status_macros.h"
#include "storage/nvme/crc32c.h"
#include "storage/nvme/io/disk.h"
#include "storage/nvme/manifest.h"
#include "storage/nvme/store_files.h"

namespace stowage::storage {
namespace {

using Severity = FsckFault::Severity;

Disk& DiskOf(Disk* disk) { return disk == nullptr ? MachineDisk() : *disk; }

struct FreeDeleter {
  void operator()(std::byte* memory) const { std::free(memory); }
};

// What is checked, and where findings go.
struct Check {
  const Layout& layout;
  const Manifest& manifest;
  const ExtentFiles& files;
  const char* kind;
  std::span<std::byte> memory;  // of the largest extent, aligned
  FsckReport* report;
};

void AddFault(const Check& check, Severity severity, std::int32_t extent,
              std::int32_t place, std::int64_t step, std::string what) {
  const Extent& at = check.files.map.extent(extent);
  check.report->faults.push_back(
      {.severity = severity,
       .file = check.files.files[static_cast<std::size_t>(at.file)]->path(),
       .offset_bytes = check.files.map.OffsetBytes(extent, place),
       .bytes = at.bytes,
       .unit =
           check.layout.units()[static_cast<std::size_t>(at.unit_index)].name,
       .extent = extent,
       .step = step,
       .what = std::move(what)});
}

// One extent of one step; `known` are the tables that were checked already.
void CheckExtent(const Check& check, std::int32_t extent,
                 const PlaceTable& table, std::int64_t step,
                 Severity severity) {
  const auto e = static_cast<std::size_t>(extent);
  const std::uint8_t place = table.places[e];
  if (place == kPlaceZero) return;
  if (place == kPlaceMemory) {
    AddFault(check, severity, extent, 0, step,
             "was only in the memory of a server (durability `memory`)");
    return;
  }
  if (place >= check.files.map.shape().places) {
    AddFault(check, severity, extent, 0, step,
             absl::StrCat("place ", int{place}, " of ",
                          check.files.map.shape().places));
    return;
  }
  const Extent& at = check.files.map.extent(extent);
  DiskFile& file = *check.files.files[static_cast<std::size_t>(at.file)];
  const std::span<std::byte> into =
      check.memory.first(static_cast<std::size_t>(at.bytes));
  const std::int64_t got =
      file.ReadAt(check.files.map.OffsetBytes(extent, place), into);
  ++check.report->extents_checked;
  check.report->bytes_checked += std::max<std::int64_t>(0, got);
  if (got != at.bytes) {
    AddFault(check, severity, extent, place, step,
             got < 0 ? absl::StrCat("read: errno ", -got)
                     : absl::StrCat("read ", got, " of ", at.bytes,
                                    " bytes: the file ends there"));
    return;
  }
  if (!check.manifest.shape.checksums) return;
  for (std::int64_t p = at.begin; p < at.end; ++p) {
    const Piece& piece = check.files.map.piece(p);
    const std::uint32_t found =
        Crc32c(into.subspan(static_cast<std::size_t>(piece.offset_bytes),
                            static_cast<std::size_t>(piece.bytes)));
    const std::uint32_t written = table.checksums[static_cast<std::size_t>(p)];
    if (found == written) continue;
    AddFault(check, severity, extent, place, step,
             absl::StrFormat("%s bytes [%d, +%d): checksum %08x, the manifest "
                             "says %08x",
                             check.kind, piece.offset_bytes, piece.bytes, found,
                             written));
  }
}

// Every kept step, the last one first; what an older step shares with a newer
// one is not read twice.
void CheckSteps(const Check& check, bool params) {
  const std::vector<KeptCommit>& commits = check.manifest.commits;
  for (std::size_t back = 0; back < commits.size(); ++back) {
    const std::size_t i = commits.size() - 1 - back;
    const PlaceTable& table = params ? commits[i].params : commits[i].state;
    const Severity severity = back == 0 ? Severity::kState : Severity::kStep;
    for (std::size_t e = 0; e < table.places.size(); ++e) {
      const auto extent = static_cast<std::int32_t>(e);
      bool known = false;
      for (std::size_t j = i + 1; j < commits.size() && !known; ++j) {
        const PlaceTable& newer = params ? commits[j].params : commits[j].state;
        known = newer.places[e] == table.places[e];
      }
      if (!known) {
        CheckExtent(check, extent, table, commits[i].record.step, severity);
      }
    }
  }
}

// Both slots. Returns: the newest whole manifest, or nullptr.
const Manifest* CheckSlots(const ManifestSlots& slots, const std::string& file,
                           FsckReport* report) {
  const bool any = slots.slots[0].ok() || slots.slots[1].ok();
  const Manifest* newest = nullptr;
  for (std::size_t i = 0; i < 2; ++i) {
    const absl::StatusOr<Manifest>& slot = slots.slots[i];
    if (!slot.ok()) {
      report->faults.push_back(
          {.severity = any ? Severity::kNote : Severity::kState,
           .file = file,
           .offset_bytes = static_cast<std::int64_t>(i) * slots.slot_bytes,
           .bytes = slots.slot_bytes,
           .unit = "",
           .extent = -1,
           .step = -1,
           .what = absl::StrCat(
               "manifest slot ", i, ": ", slot.status().message(),
               any ? " (the other slot is whole: if no server died while it "
                     "committed, a step is lost)"
                   : "")});
    } else if (newest == nullptr || slot->sequence > newest->sequence) {
      newest = &*slot;
    }
  }
  if (newest != nullptr && newest->commits.empty()) {
    report->faults.push_back({.severity = Severity::kState,
                              .file = file,
                              .offset_bytes = 0,
                              .bytes = slots.slot_bytes,
                              .unit = "",
                              .extent = -1,
                              .step = -1,
                              .what = "no step was ever committed"});
  }
  return newest;
}

absl::StatusOr<std::unique_ptr<DiskFile>> OpenChecked(Disk& disk,
                                                      const std::string& path,
                                                      std::int64_t need,
                                                      FsckReport* report) {
  absl::StatusOr<std::unique_ptr<DiskFile>> file =
      disk.Open(path, /*direct=*/true);
  std::string what;
  if (!file.ok()) {
    what = std::string(file.status().message());
  } else if ((*file)->bytes() < need) {
    what = absl::StrCat("truncated: the file is ", (*file)->bytes(),
                        " bytes long, must be ", need);
  }
  if (!what.empty()) {
    report->faults.push_back({.severity = Severity::kState,
                              .file = path,
                              .offset_bytes = file.ok() ? (*file)->bytes() : -1,
                              .bytes = need,
                              .unit = "",
                              .extent = -1,
                              .step = -1,
                              .what = std::move(what)});
  }
  return file;
}

// Opens the files of one kind and checks them.
absl::Status CheckKind(Disk& disk, const Layout& layout,
                       const Manifest& manifest, const char* kind,
                       ExtentMap map, FsckReport* report) {
  ExtentFiles files;
  files.map = std::move(map);
  bool all = true;
  for (std::size_t f = 0; f < manifest.shape.paths.size(); ++f) {
    const auto folder = static_cast<std::int32_t>(f);
    absl::StatusOr<std::unique_ptr<DiskFile>> file =
        OpenChecked(disk, StoreFile(manifest.shape, kind, folder),
                    files.map.file_bytes(folder), report);
    all = all && file.ok();
    if (file.ok()) files.files.push_back(*std::move(file));
  }
  // A file that is missing is named; its extents are all gone with it.
  if (!all) return absl::OkStatus();
  const auto bytes = static_cast<std::size_t>(RoundUp(
      std::max<std::int64_t>(files.map.extent_bytes_max(), 4096), 4096));
  const std::unique_ptr<std::byte, FreeDeleter> memory(
      static_cast<std::byte*>(std::aligned_alloc(4096, bytes)));
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("fsck: no memory for an extent of ", bytes, " bytes"));
  }
  const Check check{.layout = layout,
                    .manifest = manifest,
                    .files = files,
                    .kind = kind,
                    .memory = {memory.get(), bytes},
                    .report = report};
  for (const KeptCommit& commit : manifest.commits) {
    const bool params = std::string_view(kind) == "params";
    const PlaceTable& table = params ? commit.params : commit.state;
    if (table.places.size() != files.map.extents().size() ||
        table.checksums.size() != files.map.pieces().size()) {
      report->faults.push_back(
          {.severity = Severity::kState,
           .file = ManifestFile(manifest.shape.paths.front(),
                                manifest.shape.job_name),
           .offset_bytes = -1,
           .bytes = 0,
           .unit = "",
           .extent = -1,
           .step = commit.record.step,
           .what = absl::StrCat("has ", table.places.size(), " extents of ",
                                kind, ", the layout makes ",
                                files.map.extents().size())});
      return absl::OkStatus();
    }
  }
  CheckSteps(check, std::string_view(kind) == "params");
  return absl::OkStatus();
}

// What a manifest of this length can have extents for, so that a layout that is
// not this store's costs no more memory than the store could.
LayoutLimits LimitsOf(const Manifest& manifest) {
  constexpr std::int64_t kExtentRecordBytesMin = 8;
  constexpr std::int64_t kInMemoryElems = std::int64_t{1} << 36;  // frozen
  const std::int64_t extents = manifest.slot_bytes / kExtentRecordBytesMin + 1;
  const std::int64_t each =
      std::max<std::int64_t>(manifest.shape.extent_bytes, kChunkElems);
  LayoutLimits limits;
  if (extents < (limits.elems_max - kInMemoryElems) / each) {
    limits.elems_max = kInMemoryElems + extents * each;
  }
  return limits;
}

}  // namespace

std::string ToString(const FsckFault& fault) {
  std::string line;
  switch (fault.severity) {
    case Severity::kNote:
      line = "note: ";
      break;
    case Severity::kStep:
      line = "older step lost: ";
      break;
    case Severity::kState:
      line = "state lost: ";
      break;
  }
  absl::StrAppend(&line, fault.file);
  if (fault.offset_bytes >= 0) {
    absl::StrAppend(&line, " at offset ", fault.offset_bytes);
  }
  if (fault.bytes > 0) absl::StrAppend(&line, ", ", fault.bytes, " bytes");
  if (fault.step >= 0) absl::StrAppend(&line, ", step ", fault.step);
  if (!fault.unit.empty()) {
    absl::StrAppend(&line, ", unit \"", fault.unit, "\"");
  }
  if (fault.extent >= 0) absl::StrAppend(&line, ", extent ", fault.extent);
  return absl::StrCat(line, ": ", fault.what);
}

absl::StatusOr<FsckReport> Fsck(const std::string& path,
                                const std::string& job_name, Disk* disk_in) {
  Disk& disk = DiskOf(disk_in);
  const std::string file = ManifestFile(path, job_name);
  STOWAGE_ASSIGN_OR_RETURN(const ManifestSlots before,
                           ReadManifestFile(disk, file));
  STOWAGE_ASSIGN_OR_RETURN(const std::unique_ptr<Disk::Lock> lock,
                           disk.LockFile(LockFileName(path, job_name)));
  STOWAGE_ASSIGN_OR_RETURN(const ManifestSlots slots,
                           ReadManifestFile(disk, file));
  for (const absl::StatusOr<Manifest>& slot : slots.slots) {
    if (absl::IsUnimplemented(slot.status())) {
      return absl::UnimplementedError(
          absl::StrCat(file, ": ", slot.status().message()));
    }
  }
  FsckReport report;
  const Manifest* manifest = CheckSlots(slots, file, &report);
  if (manifest == nullptr) return report;
  absl::StatusOr<NvmeStoreInfo> info = NvmeStore::Peek(path, job_name, disk_in);
  absl::StatusOr<Layout> layout = absl::DataLossError("no layout");
  if (info.ok()) {
    report.info = *std::move(info);
    STOWAGE_ASSIGN_OR_RETURN(const std::string bytes,
                             disk.ReadSmall(JobFileName(path, job_name)));
    STOWAGE_ASSIGN_OR_RETURN(const JobFile job, DecodeJobFile(bytes));
    layout = Layout::Create(job.layout, LimitsOf(*manifest));
    if (layout.ok() &&
        layout->fingerprint() != manifest->shape.layout_fingerprint) {
      layout = absl::DataLossError("its layout is not the manifest's");
    }
  } else {
    layout = info.status();
  }
  if (!layout.ok()) {
    report.faults.push_back({.severity = Severity::kState,
                             .file = JobFileName(path, job_name),
                             .offset_bytes = -1,
                             .bytes = 0,
                             .unit = "",
                             .extent = -1,
                             .step = -1,
                             .what = std::string(layout.status().message())});
    return report;
  }
  STOWAGE_RETURN_IF_ERROR(CheckKind(disk, *layout, *manifest, "state",
                                    StateMap(*layout, manifest->shape),
                                    &report));
  if (manifest->shape.params) {
    STOWAGE_RETURN_IF_ERROR(CheckKind(disk, *layout, *manifest, "params",
                                      ParamMap(*layout, manifest->shape),
                                      &report));
  }
  return report;
}

absl::Status RewindClosed(const std::string& path, const std::string& job_name,
                          std::int64_t step, Disk* disk_in) {
  Disk& disk = DiskOf(disk_in);
  const std::string file = ManifestFile(path, job_name);
  STOWAGE_ASSIGN_OR_RETURN(const std::unique_ptr<Disk::Lock> lock,
                           disk.LockFile(LockFileName(path, job_name)));
  STOWAGE_ASSIGN_OR_RETURN(const ManifestSlots slots,
                           ReadManifestFile(disk, file));
  STOWAGE_ASSIGN_OR_RETURN(const Manifest* newest, slots.Newest(file));
  Manifest rewound = *newest;
  std::vector<std::int64_t> kept;
  for (const KeptCommit& commit : rewound.commits) {
    kept.push_back(commit.record.step);
  }
  const auto found = std::find(kept.begin(), kept.end(), step);
  if (found == kept.end()) {
    return absl::NotFoundError(
        absl::StrCat("rewind job \"", job_name, "\": step ", step,
                     " is not kept; kept are ", absl::StrJoin(kept, ", ")));
  }
  const auto keep = static_cast<std::size_t>(found - kept.begin()) + 1;
  const std::vector<std::uint8_t>& places =
      rewound.commits[keep - 1].state.places;
  if (std::find(places.begin(), places.end(), kPlaceMemory) != places.end()) {
    return absl::DataLossError(
        absl::StrCat("rewind job \"", job_name, "\": step ", step,
                     " was only in the memory of a server"));
  }
  rewound.commits.resize(keep);
  rewound.sequence += 1;
  const std::string bytes = EncodeManifest(rewound);
  STOWAGE_ASSIGN_OR_RETURN(std::unique_ptr<DiskFile> manifest,
                           disk.Open(file, /*direct=*/false));
  const std::int64_t offset_bytes =
      static_cast<std::int64_t>(rewound.sequence % 2) * rewound.slot_bytes;
  const std::int64_t put = manifest->WriteAt(
      offset_bytes, std::as_bytes(std::span<const char>(bytes)));
  int error = put < 0 ? static_cast<int>(-put) : 0;
  if (put == static_cast<std::int64_t>(bytes.size())) {
    error = manifest->Flush();
    if (error == 0) return absl::OkStatus();
  }
  return IoFaultStatus({.operation = "write the manifest",
                        .job = job_name,
                        .unit = "",
                        .extent = -1,
                        .file = file,
                        .offset_bytes = offset_bytes,
                        .bytes = static_cast<std::int64_t>(bytes.size()),
                        .done_bytes = std::max<std::int64_t>(0, put),
                        .error = error,
                        .detail = error == 0 ? "short transfer" : ""});
}

}  // namespace stowage::storage
