#include "storage/checkpoint/folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/crash_point.h"
#include "common/errno_status.h"
#include "common/status_macros.h"

namespace stowage::storage {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "step-";
constexpr char kModelPrefix[] = "model-";
constexpr char kPartialSuffix[] = ".partial";
constexpr char kOldSuffix[] = ".old";

std::string Name(const char* prefix, std::int64_t step) {
  return absl::StrFormat("%s%010d", prefix, step);
}

// The step, or -1.
std::int64_t ParseName(const char* prefix, const std::string& name) {
  absl::string_view digits = name;
  std::int64_t step = -1;
  if (!absl::ConsumePrefix(&digits, prefix) ||
      !absl::SimpleAtoi(digits, &step) || step < 0 ||
      Name(prefix, step) != name) {
    return -1;
  }
  return step;
}

absl::Status SyncFolder(const std::string& path) {
  const UniqueFd folder(
      ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.valid() || ::fsync(folder.get()) != 0) {
    return ErrnoStatus(absl::StrCat("flush the folder ", path));
  }
  return absl::OkStatus();
}

absl::Status Remove(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return ErrnoStatus(absl::StrCat("remove ", path), error.value());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> Names(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator at(folder, error);
  for (; !error && at != fs::directory_iterator(); at.increment(error)) {
    names.push_back(at->path().filename().string());
  }
  if (error) {
    return ErrnoStatus(absl::StrCat("list ", folder), error.value());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// The lock of a folder that is being written; invalid if another has it.
UniqueFd LockFolder(const std::string& path) {
  UniqueFd folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.valid() && ::flock(folder.get(), LOCK_EX | LOCK_NB) != 0) {
    folder.Reset();
  }
  return folder;
}

// Folders with one of the two suffixes that nobody is writing.
void RemoveLeftovers(const std::string& folder) {
  const absl::StatusOr<std::vector<std::string>> names = Names(folder);
  if (!names.ok()) return;
  for (const std::string& name : *names) {
    absl::string_view stem = name;
    if (!absl::ConsumeSuffix(&stem, kPartialSuffix) &&
        !absl::ConsumeSuffix(&stem, kOldSuffix)) {
      continue;
    }
    if (ParseName(kPrefix, std::string(stem)) < 0 &&
        ParseName(kModelPrefix, std::string(stem)) < 0) {
      continue;
    }
    const std::string path = absl::StrCat(folder, "/", name);
    if (const UniqueFd lock = LockFolder(path); lock.valid()) {
      Remove(path).IgnoreError();  // whoever needs the name hears of it
    }
  }
}

// As a whole; a second step is needed where the file system cannot exchange.
absl::Status Replace(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
  if (errno != ENOTEMPTY && errno != EEXIST) {
    return ErrnoStatus(absl::StrCat("rename ", from, " to ", to));
  }
  const std::string old = absl::StrCat(to, kOldSuffix);
  STOWAGE_RETURN_IF_ERROR(Remove(old));
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(),
                  RENAME_EXCHANGE) == 0) {
    if (::rename(from.c_str(), old.c_str()) != 0) {
      return ErrnoStatus(absl::StrCat("rename ", from, " to ", old));
    }
  } else {
    if (::rename(to.c_str(), old.c_str()) != 0) {
      return ErrnoStatus(absl::StrCat("rename ", to, " to ", old));
    }
    if (::rename(from.c_str(), to.c_str()) != 0) {
      return ErrnoStatus(absl::StrCat("rename ", from, " to ", to));
    }
  }
  return Remove(old);
}

absl::Status CheckFiles(const std::string& path,
                        const CheckpointManifest& manifest) {
  for (const CheckpointFile& file : manifest.files) {
    struct stat info {};
    const std::string name = absl::StrCat(path, "/", file.name);
    if (::stat(name.c_str(), &info) != 0) {
      const int error = errno;
      if (error == ENOENT) {
        return absl::DataLossError(absl::StrCat(name, " is missing"));
      }
      return ErrnoStatus(absl::StrCat("stat ", name), error);
    }
    if (!S_ISREG(info.st_mode) || info.st_size != file.bytes) {
      return absl::DataLossError(absl::StrCat(name, " is ", info.st_size,
                                              " bytes long, written were ",
                                              file.bytes));
    }
  }
  return absl::OkStatus();
}

struct Saved {
  std::int64_t time = 0;
  std::int64_t step = 0;
  std::string path;
};

// Those whose manifest reads, by the time when they were saved; the first that
// does not is told in `unread`.
std::vector<Saved> BySaveTime(const std::string& folder,
                              const std::vector<std::int64_t>& steps,
                              absl::Status* unread) {
  std::vector<Saved> saved;
  for (const std::int64_t step : steps) {
    const std::string path = absl::StrCat(folder, "/", CheckpointName(step));
    const absl::StatusOr<CheckpointManifest> manifest = ReadCheckpoint(path);
    unread->Update(manifest.status());
    if (manifest.ok()) saved.push_back({manifest->time, step, path});
  }
  std::sort(saved.begin(), saved.end(), [](const Saved& a, const Saved& b) {
    return a.time != b.time ? a.time < b.time : a.step < b.step;
  });
  return saved;
}

}  // namespace

std::string CheckpointName(std::int64_t step) { return Name(kPrefix, step); }

std::int64_t ParseCheckpointName(const std::string& name) {
  return ParseName(kPrefix, name);
}

std::string ModelFolderName(std::int64_t step) {
  return Name(kModelPrefix, step);
}

std::string PartialPath(const std::string& path) {
  return absl::StrCat(path, kPartialSuffix);
}

std::string CheckpointManifestName(std::int32_t node) {
  return node == 0 ? "checkpoint.json"
                   : absl::StrCat("checkpoint-node-", node, ".json");
}

absl::StatusOr<std::vector<std::int64_t>> ListCheckpoints(
    const std::string& folder) {
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::string> names, Names(folder));
  std::vector<std::int64_t> steps;
  for (const std::string& name : names) {
    if (const std::int64_t step = ParseCheckpointName(name); step >= 0) {
      steps.push_back(step);
    }
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

absl::StatusOr<CheckpointManifest> ReadCheckpoint(const std::string& path,
                                                  std::int32_t node) {
  const std::string file =
      absl::StrCat(path, "/", CheckpointManifestName(node));
  STOWAGE_ASSIGN_OR_RETURN(const std::string bytes,
                           ReadSmallFile(file, kCheckpointManifestBytesMax));
  absl::StatusOr<CheckpointManifest> manifest = DecodeCheckpointManifest(bytes);
  if (!manifest.ok()) {
    return absl::Status(manifest.status().code(),
                        absl::StrCat(file, ": ", manifest.status().message()));
  }
  if (manifest->node != node) {
    return absl::DataLossError(absl::StrCat(file, ": is the part of node ",
                                            manifest->node, ", not of ", node));
  }
  STOWAGE_RETURN_IF_ERROR(CheckFiles(path, *manifest));
  return manifest;
}

absl::StatusOr<std::string> FindCheckpoint(const std::string& folder,
                                           std::int64_t step) {
  std::error_code error;
  if (fs::exists(absl::StrCat(folder, "/", CheckpointManifestName(0)), error)) {
    STOWAGE_ASSIGN_OR_RETURN(const CheckpointManifest manifest,
                             ReadCheckpoint(folder));
    if (step >= 0 && manifest.step != step) {
      return absl::NotFoundError(absl::StrCat("checkpoint ", folder,
                                              " is of step ", manifest.step,
                                              ", not of ", step));
    }
    return folder;
  }
  absl::StatusOr<std::vector<std::int64_t>> steps = ListCheckpoints(folder);
  if (absl::IsNotFound(steps.status())) {
    return absl::NotFoundError(
        absl::StrCat("no checkpoint: there is no folder ", folder));
  }
  STOWAGE_RETURN_IF_ERROR(steps.status());
  if (step >= 0) {
    if (std::find(steps->begin(), steps->end(), step) == steps->end()) {
      return absl::NotFoundError(absl::StrCat(
          "no checkpoint of step ", step, " in ", folder, "; there ",
          steps->empty() ? "is none"
                         : absl::StrCat("are those of steps ",
                                        absl::StrJoin(*steps, ", "))));
    }
    return absl::StrCat(folder, "/", CheckpointName(step));
  }
  absl::Status first;
  const std::vector<Saved> saved = BySaveTime(folder, *steps, &first);
  // An older whole one is better than none.
  if (!saved.empty()) return saved.back().path;
  if (!first.ok()) return first;
  return absl::NotFoundError(absl::StrCat("no checkpoint in ", folder));
}

absl::StatusOr<std::unique_ptr<PartialCheckpoint>> PartialCheckpoint::Create(
    const std::string& path) {
  auto partial = absl::WrapUnique(new PartialCheckpoint);
  partial->folder_ = path.substr(0, path.rfind('/'));
  partial->final_path_ = path;
  partial->path_ = PartialPath(path);
  RemoveLeftovers(partial->folder_);
  const bool made = ::mkdir(partial->path_.c_str(), 0755) == 0;
  if (!made && errno != EEXIST) {
    partial->published_ = true;  // not ours to remove
    return ErrnoStatus(absl::StrCat("make ", partial->path_));
  }
  if (made) partial->lock_ = LockFolder(partial->path_);
  if (!partial->lock_.valid()) {
    partial->published_ = true;
    return absl::UnavailableError(
        absl::StrCat(partial->path_, ": another save is being written there"));
  }
  return partial;
}

PartialCheckpoint::~PartialCheckpoint() {
  if (!published_) Remove(path_).IgnoreError();  // the next save tries again
}

absl::Status PartialCheckpoint::Publish() {
  STOWAGE_RETURN_IF_ERROR(SyncFolder(path_));
  CrashPoint("checkpoint-written");
  STOWAGE_RETURN_IF_ERROR(Replace(path_, final_path_));
  published_ = true;
  CrashPoint("checkpoint-renamed");
  return SyncFolder(folder_);
}

absl::StatusOr<std::vector<std::int64_t>> KeepNewest(const std::string& folder,
                                                     std::int32_t keep) {
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::int64_t> steps,
                           ListCheckpoints(folder));
  absl::Status unread;
  const std::vector<Saved> saved = BySaveTime(folder, steps, &unread);
  std::vector<std::int64_t> removed;
  absl::Status first;
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < saved.size();
       ++i) {
    const std::string old = absl::StrCat(saved[i].path, kOldSuffix);
    // Renamed first: what has the name of a complete one is complete.
    if (::rename(saved[i].path.c_str(), old.c_str()) != 0) {
      first.Update(
          ErrnoStatus(absl::StrCat("rename ", saved[i].path, " to ", old)));
      continue;
    }
    CrashPoint("checkpoint-retired");
    first.Update(Remove(old));
    removed.push_back(saved[i].step);
  }
  if (!first.ok()) return first;
  return removed;
}

absl::StatusOr<std::int64_t> FreeBytes(const std::string& path) {
  struct statvfs space {};
  if (::statvfs(path.c_str(), &space) != 0) {
    return ErrnoStatus(absl::StrCat("free space of ", path));
  }
  return static_cast<std::int64_t>(space.f_bavail * space.f_frsize);
}

absl::Status WriteSmallFile(const std::string& path,
                            const std::string& contents) {
  UniqueFd file(
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!file.valid()) return ErrnoStatus(absl::StrCat("create ", path));
  for (std::size_t done = 0; done < contents.size();) {
    const ssize_t wrote =
        ::write(file.get(), contents.data() + done, contents.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) {
      return ErrnoStatus(absl::StrCat("write ", path, ", offset ", done));
    }
    done += static_cast<std::size_t>(wrote);
  }
  if (::fsync(file.get()) != 0) {
    return ErrnoStatus(absl::StrCat("flush ", path));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          std::int64_t bytes_max) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return ErrnoStatus(absl::StrCat("open ", path));
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) {
    return ErrnoStatus(absl::StrCat("stat ", path));
  }
  if (!S_ISREG(info.st_mode) || info.st_size > bytes_max) {
    return absl::DataLossError(absl::StrCat(path, " is ", info.st_size,
                                            " bytes long, at most ", bytes_max,
                                            " are read"));
  }
  std::string contents(static_cast<std::size_t>(info.st_size), '\0');
  for (std::size_t done = 0; done < contents.size();) {
    const ssize_t got =
        ::read(file.get(), contents.data() + done, contents.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(absl::StrCat("read ", path));
    if (got == 0) contents.resize(done);
    done += static_cast<std::size_t>(got);
  }
  return contents;
}

}  // namespace stowage::storage
