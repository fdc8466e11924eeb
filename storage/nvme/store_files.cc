#include "storage/nvme/store_files.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/bytes.h"
#include "common/status_macros.h"

namespace stowage::storage {
namespace {

absl::Status CheckAlignment(const DiskFile& file, std::int64_t align_bytes) {
  const IoAlignment asked = file.alignment();
  if (asked.offset_bytes <= align_bytes && asked.memory_bytes <= align_bytes) {
    return absl::OkStatus();
  }
  return absl::UnimplementedError(absl::StrCat(
      file.path(), ": direct I/O there needs offsets at multiples of ",
      asked.offset_bytes, " bytes and memory at ", asked.memory_bytes,
      "; stores are aligned to ", align_bytes, ": use another device"));
}

struct Kind {
  const char* name;
  ExtentFiles* files;
};

std::vector<Kind> KindsOf(StoreFiles* files, const StoreShape& shape) {
  std::vector<Kind> kinds = {{"state", &files->state}};
  if (shape.params) kinds.push_back({"params", &files->params});
  if (shape.gradient_spill) kinds.push_back({"sums", &files->sums});
  return kinds;
}

void FillMaps(const Layout& layout, const StoreShape& shape,
              StoreFiles* files) {
  files->state.map = StateMap(layout, shape);
  files->params.map = ParamMap(layout, shape);
  files->sums.map = SumMap(layout, shape);
}

absl::Status MakeFiles(Disk& disk, const StoreShape& shape, bool direct,
                       StoreFiles* files) {
  const std::string& first = shape.paths.front();
  for (const std::string& path : shape.paths) {
    const std::string folder = StoreFolder(path, shape.job_name);
    STOWAGE_RETURN_IF_ERROR(disk.MakeFolder(folder));
    // The name of the folder itself must survive as well.
    STOWAGE_RETURN_IF_ERROR(disk.SyncFolder(path));
  }
  STOWAGE_ASSIGN_OR_RETURN(files->lock,
                           disk.LockFile(LockFileName(first, shape.job_name)));
  for (const Kind& kind : KindsOf(files, shape)) {
    for (std::size_t f = 0; f < shape.paths.size(); ++f) {
      const auto folder = static_cast<std::int32_t>(f);
      STOWAGE_ASSIGN_OR_RETURN(
          std::unique_ptr<DiskFile> file,
          disk.Create(StoreFile(shape, kind.name, folder),
                      kind.files->map.file_bytes(folder), direct));
      STOWAGE_RETURN_IF_ERROR(CheckAlignment(*file, shape.align_bytes));
      kind.files->files.push_back(std::move(file));
    }
  }
  STOWAGE_ASSIGN_OR_RETURN(
      files->manifest,
      disk.Create(
          ManifestFile(first, shape.job_name),
          2 * ManifestSlotBytes(shape, files->state.map, files->params.map),
          direct));
  STOWAGE_RETURN_IF_ERROR(CheckAlignment(*files->manifest, shape.align_bytes));
  for (const std::string& path : shape.paths) {
    STOWAGE_RETURN_IF_ERROR(disk.SyncFolder(StoreFolder(path, shape.job_name)));
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<DiskFile*> ExtentFiles::pointers() const {
  std::vector<DiskFile*> result;
  for (const std::unique_ptr<DiskFile>& file : files) {
    result.push_back(file.get());
  }
  return result;
}

const std::string& FaultNames::UnitName(const ExtentFiles& files,
                                        std::int32_t extent) const {
  return layout_
      .units()[static_cast<std::size_t>(files.map.extent(extent).unit_index)]
      .name;
}

absl::Status FaultNames::OfTransfer(const char* operation,
                                    const ExtentFiles& files,
                                    std::int32_t extent, std::int32_t place,
                                    const Transfer& transfer) const {
  const Extent& at = files.map.extent(extent);
  const DiskFile& file = *files.files[static_cast<std::size_t>(at.file)];
  IoFault fault{.operation = operation,
                .job = job_,
                .unit = UnitName(files, extent),
                .extent = extent,
                .file = file.path(),
                .offset_bytes = files.map.OffsetBytes(extent, place),
                .bytes = at.bytes,
                .done_bytes = transfer.done_bytes,
                .error = transfer.error,
                .detail = ""};
  if (transfer.short_transfer) {
    fault.detail = absl::StrCat("short transfer: nothing more at offset ",
                                transfer.fault_offset_bytes, " (the file is ",
                                file.bytes(), " bytes long; is it truncated?)");
  } else {
    fault.detail =
        absl::StrCat("in the block at offset ", transfer.fault_offset_bytes);
  }
  return IoFaultStatus(fault);
}

absl::Status FaultNames::OfChecksum(const ExtentFiles& files,
                                    std::int64_t piece, std::int32_t place,
                                    std::uint32_t found,
                                    std::uint32_t written) const {
  const Piece& at = files.map.piece(piece);
  const DiskFile& file =
      *files.files[static_cast<std::size_t>(files.map.extent(at.extent).file)];
  return IoFaultStatus(
      {.operation = "verify",
       .job = job_,
       .unit = UnitName(files, at.extent),
       .extent = at.extent,
       .file = file.path(),
       .offset_bytes =
           files.map.OffsetBytes(at.extent, place) + at.offset_bytes,
       .bytes = at.bytes,
       .done_bytes = 0,
       .error = 0,
       .detail = absl::StrFormat("checksum %08x, the manifest says %08x", found,
                                 written)});
}

absl::Status FaultNames::OfFile(const char* operation, const DiskFile& file,
                                int error) const {
  return IoFaultStatus({.operation = operation,
                        .job = job_,
                        .unit = "",
                        .extent = -1,
                        .file = file.path(),
                        .offset_bytes = 0,
                        .bytes = file.bytes(),
                        .done_bytes = 0,
                        .error = error,
                        .detail = error == 0 ? "short transfer" : ""});
}

absl::StatusOr<StoreFiles> CreateStoreFiles(Disk& disk, const Layout& layout,
                                            const StoreShape& shape,
                                            bool direct) {
  for (const std::string& path : shape.paths) {
    const std::string folder = StoreFolder(path, shape.job_name);
    if (disk.List(folder).ok()) {
      return absl::AlreadyExistsError(
          absl::StrCat("NVMe store of job \"", shape.job_name, "\": ", folder,
                       " exists; open that job, drop it, or use another name"));
    }
  }
  StoreFiles files;
  FillMaps(layout, shape, &files);
  if (absl::Status made = MakeFiles(disk, shape, direct, &files); !made.ok()) {
    files = {};
    for (const std::string& path : shape.paths) {
      // The cause is what counts; what cannot be removed is found by name.
      disk.RemoveFolder(StoreFolder(path, shape.job_name)).IgnoreError();
    }
    return absl::Status(made.code(),
                        absl::StrCat("NVMe store of job \"", shape.job_name,
                                     "\": ", made.message()));
  }
  return files;
}

absl::StatusOr<StoreFiles> OpenStoreFiles(Disk& disk, const Layout& layout,
                                          const StoreShape& shape,
                                          bool direct) {
  const std::string& first = shape.paths.front();
  StoreFiles files;
  FillMaps(layout, shape, &files);
  STOWAGE_ASSIGN_OR_RETURN(files.lock,
                           disk.LockFile(LockFileName(first, shape.job_name)));
  for (const Kind& kind : KindsOf(&files, shape)) {
    for (std::size_t f = 0; f < shape.paths.size(); ++f) {
      const auto folder = static_cast<std::int32_t>(f);
      STOWAGE_ASSIGN_OR_RETURN(
          std::unique_ptr<DiskFile> file,
          disk.Open(StoreFile(shape, kind.name, folder), direct));
      const std::int64_t need = kind.files->map.file_bytes(folder);
      if (file->bytes() < need) {
        return IoFaultStatus(
            {.operation = "open",
             .job = shape.job_name,
             .unit = "",
             .extent = -1,
             .file = file->path(),
             .offset_bytes = file->bytes(),
             .bytes = need,
             .done_bytes = 0,
             .error = 0,
             .detail = absl::StrCat("truncated: the file is ", file->bytes(),
                                    " bytes long, must be ", need)});
      }
      STOWAGE_RETURN_IF_ERROR(CheckAlignment(*file, shape.align_bytes));
      kind.files->files.push_back(std::move(file));
    }
  }
  STOWAGE_ASSIGN_OR_RETURN(
      files.manifest, disk.Open(ManifestFile(first, shape.job_name), direct));
  return files;
}

absl::Status WriteOnce(const ExtentFiles& files, std::span<std::byte> zeros,
                       TransferQueue& queue, const std::string& job) {
  // As many transfers at once as keep the queue full, from the same zeros.
  constexpr std::size_t kTransfers = 8;
  const auto step = static_cast<std::int64_t>(zeros.size());
  for (std::size_t f = 0; f < files.files.size(); ++f) {
    const DiskFile& file = *files.files[f];
    Transfer transfers[kTransfers];
    const std::int64_t bytes =
        files.map.file_bytes(static_cast<std::int32_t>(f));
    const Transfer* failed = nullptr;
    std::size_t turn = 0;
    for (std::int64_t at = 0; at < bytes && failed == nullptr; at += step) {
      Transfer& transfer = transfers[turn++ % kTransfers];
      queue.Wait(transfer);
      if (!transfer.ok()) failed = &transfer;
      if (failed != nullptr) break;
      queue.Start(
          {.write = true,
           .file = static_cast<std::int32_t>(f),
           .offset_bytes = at,
           .buffer = -1},
          zeros.first(static_cast<std::size_t>(std::min(step, bytes - at))),
          &transfer);
    }
    queue.Drain();
    for (const Transfer& transfer : transfers) {
      if (!transfer.ok()) failed = &transfer;
    }
    if (failed != nullptr) {
      return IoFaultStatus(
          {.operation = "write for the first time",
           .job = job,
           .unit = "",
           .extent = -1,
           .file = file.path(),
           .offset_bytes = failed->fault_offset_bytes,
           .bytes = failed->bytes,
           .done_bytes = failed->done_bytes,
           .error = failed->error,
           .detail = failed->short_transfer ? "short transfer" : ""});
    }
  }
  return absl::OkStatus();
}

}  // namespace stowage::storage
