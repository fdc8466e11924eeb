#include "storage/host/segment_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/errno_status.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace stowage::storage {
namespace {

constexpr std::string_view kPrefix = "stowage-";
constexpr std::string_view kLockSuffix = ".lock";
constexpr long kTmpfsMagic = 0x01021994;

bool IsServerId(std::string_view id) {
  return !id.empty() && id.size() <= 64 &&
         std::all_of(id.begin(), id.end(),
                     [](unsigned char c) { return std::isalnum(c) != 0; });
}

std::string LockName(std::string_view id) {
  return absl::StrCat(std::string(kPrefix), std::string(id),
                      std::string(kLockSuffix));
}

// The server id in one of our file names, empty for a file of somebody else.
std::string_view ServerIdOf(std::string_view name) {
  if (name.substr(0, kPrefix.size()) != kPrefix) return {};
  name.remove_prefix(kPrefix.size());
  const std::size_t end = name.find_first_of("-.");
  if (end == std::string_view::npos || !IsServerId(name.substr(0, end))) {
    return {};
  }
  return name.substr(0, end);
}

std::vector<std::string> ListFiles(int folder_fd) {
  std::vector<std::string> names;
  // A descriptor of its own, because closedir() closes it.
  const int fd = ::openat(folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* dir = fd < 0 ? nullptr : ::fdopendir(fd);
  if (dir == nullptr) {
    if (fd >= 0) ::close(fd);
    return names;
  }
  while (const dirent* entry =
             ::readdir(dir)) {  // NOLINT(concurrency-mt-unsafe)
    names.emplace_back(entry->d_name);
  }
  ::closedir(dir);
  return names;
}

}  // namespace

std::string RandomHex(int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) {
    unsigned char byte = 0;
    STOWAGE_CHECK(::getrandom(&byte, 1, 0) == 1);
    absl::StrAppend(&text, absl::Hex(byte, absl::kZeroPad2));
  }
  return text;
}

absl::StatusOr<std::unique_ptr<SegmentFolder>> SegmentFolder::Create(
    const std::string& path, const std::string& server_id) {
  if (path.empty() || path[0] != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("shm dir \"", path, "\": must be an absolute path"));
  }
  if (!IsServerId(server_id)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "server id \"", server_id, "\": 1 to 64 letters and digits"));
  }
  std::unique_ptr<SegmentFolder> folder(new SegmentFolder());
  folder->path_ = path;
  folder->server_id_ = server_id;
  STOWAGE_RETURN_IF_ERROR(folder->OpenFolder());
  STOWAGE_RETURN_IF_ERROR(folder->TakeLock());
  folder->RemoveFilesOfDeadServers();
  return folder;
}

SegmentFolder::~SegmentFolder() {
  if (lock_.valid()) ::unlinkat(fd(), LockName(server_id_).c_str(), 0);
}

absl::Status SegmentFolder::OpenFolder() {
  const std::string what = absl::StrCat("shm dir ", path_);
  if (::mkdir(path_.c_str(), 0700) != 0 && errno != EEXIST) {
    return ErrnoStatus(absl::StrCat(what, ": mkdir"));
  }
  folder_.Reset(
      ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!folder_.valid()) {
    if (errno == ELOOP || errno == ENOTDIR) {
      return absl::PermissionDeniedError(
          absl::StrCat(what, ": is a link or not a folder"));
    }
    return ErrnoStatus(absl::StrCat(what, ": open"));
  }
  struct stat info {};
  if (::fstat(fd(), &info) != 0) {
    return ErrnoStatus(absl::StrCat(what, ": stat"));
  }
  if (info.st_uid != ::geteuid()) {
    return absl::PermissionDeniedError(
        absl::StrCat(what, ": belongs to user ", info.st_uid,
                     ", the server runs as ", ::geteuid()));
  }
  if ((info.st_mode & 0077U) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat(what, ": is open to group or others (mode ",
                     absl::Hex((info.st_mode >> 6) & 7U),
                     absl::Hex((info.st_mode >> 3) & 7U),
                     absl::Hex(info.st_mode & 7U), "); it must be 0700"));
  }
  struct statfs fs {};
  if (::fstatfs(fd(), &fs) == 0 && fs.f_type != kTmpfsMagic) {
    log::Warning("shm_dir_not_tmpfs",
                 {{"path", path_},
                  {"effect", "segments are written to disk; use a tmpfs"}});
  }
  return absl::OkStatus();
}

absl::Status SegmentFolder::TakeLock() {
  const std::string name = LockName(server_id_);
  const std::string what = absl::StrCat("lock ", path_, "/", name);
  // A cleaner may remove the file between our open and our flock; then the lock
  // we hold is on a file without a name, and we start over.
  for (int attempt = 0; attempt < 16; ++attempt) {
    lock_.Reset(::openat(fd(), name.c_str(),
                         O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!lock_.valid()) return ErrnoStatus(absl::StrCat(what, ": open"));
    if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
      const int error = errno;
      lock_.Reset();
      if (error == EWOULDBLOCK) {
        return absl::AlreadyExistsError(
            absl::StrCat(what, ": a server with this id is running"));
      }
      return ErrnoStatus(absl::StrCat(what, ": flock"), error);
    }
    struct stat info {};
    if (::fstat(lock_.get(), &info) == 0 && info.st_nlink > 0) {
      return absl::OkStatus();
    }
  }
  lock_.Reset();
  return absl::UnavailableError(
      absl::StrCat(what, ": removed again and again by others"));
}

void SegmentFolder::RemoveFilesOfDeadServers() const {
  const std::vector<std::string> names = ListFiles(fd());
  std::set<std::string, std::less<>> ids;
  for (const std::string& name : names) {
    if (const std::string_view id = ServerIdOf(name); !id.empty()) {
      ids.emplace(id);
    }
  }
  ids.erase(server_id_);
  for (const std::string& id : ids) {
    const std::string lock_name = LockName(id);
    // Created if it is missing: files without a lock file are orphans too, and
    // taking the lock keeps two cleaners apart.
    const UniqueFd lock(::openat(fd(), lock_name.c_str(),
                                 O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC,
                                 0600));
    if (!lock.valid() || ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) continue;
    int removed = 0;
    for (const std::string& name : names) {
      if (ServerIdOf(name) != id || name == lock_name) continue;
      if (::unlinkat(fd(), name.c_str(), 0) == 0) ++removed;
    }
    ::unlinkat(fd(), lock_name.c_str(), 0);
    log::Info("removed_segments_of_dead_server",
              {{"server_id", id}, {"files", removed}});
  }
}

std::string SegmentFolder::NewName(std::string_view kind) const {
  return absl::StrCat(std::string(kPrefix), server_id_, "-", RandomHex(12), ".",
                      std::string(kind));
}

std::int64_t SegmentFolder::FreeBytes() const {
  struct statfs fs {};
  if (::fstatfs(fd(), &fs) != 0 || fs.f_blocks == 0) return -1;
  return static_cast<std::int64_t>(fs.f_bavail) *
         static_cast<std::int64_t>(fs.f_bsize);
}

}  // namespace stowage::storage
