#include "server/rpc/socket_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/errno_status.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace stowage::rpc {
namespace {

absl::Status CheckFolder(const std::string& folder) {
  struct stat info {};
  if (::lstat(folder.c_str(), &info) != 0) {
    return ErrnoStatus(absl::StrCat("socket folder ", folder));
  }
  if (!S_ISDIR(info.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat("socket folder ", folder, ": not a folder"));
  }
  if (info.st_uid != ::geteuid()) {
    return absl::PermissionDeniedError(
        absl::StrCat("socket folder ", folder, ": belongs to uid ", info.st_uid,
                     ", not to this server's ", ::geteuid()));
  }
  if ((info.st_mode & 077U) != 0) {
    return absl::PermissionDeniedError(absl::StrFormat(
        "socket folder %s: open to others (mode %04o); chmod 700 it or choose "
        "another one, which stowd will make",
        folder, info.st_mode & 07777U));
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> LockFolder(const std::string& folder) {
  UniqueFd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("open ", folder));
  for (int tries = 0; ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0; ++tries) {
    if (errno != EWOULDBLOCK && errno != EINTR) {
      return ErrnoStatus(absl::StrCat("lock ", folder));
    }
    if (tries >= 100) {
      return absl::AlreadyExistsError(
          absl::StrCat("socket folder ", folder,
                       ": another server has been starting in it for 5 s"));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return fd;
}

absl::Status RemoveStaleSocket(const std::string& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? absl::OkStatus()
                           : ErrnoStatus(absl::StrCat("socket ", path));
  }
  if (!S_ISSOCK(info.st_mode)) {
    return absl::AlreadyExistsError(
        absl::StrCat("socket ", path, ": a file that is no socket is there"));
  }
  const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!probe.valid()) return ErrnoStatus("socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address),
                sizeof(address)) == 0 ||
      errno == EAGAIN) {
    return absl::AlreadyExistsError(
        absl::StrCat("socket ", path, ": a server is listening there already"));
  }
  if (errno != ECONNREFUSED) {
    return ErrnoStatus(absl::StrCat("socket ", path));
  }
  log::Info("stale_socket_removed", {{"path", path}});
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    return ErrnoStatus(absl::StrCat("remove ", path));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SocketFolder>> SocketFolder::Prepare(
    const std::string& socket_path) {
  std::unique_ptr<SocketFolder> made(new SocketFolder);
  made->path_ = socket_path;
  const std::size_t slash = socket_path.rfind('/');
  made->folder_ = slash == 0 ? "/" : socket_path.substr(0, slash);
  if (::mkdir(made->folder_.c_str(), 0700) == 0) {
    made->made_folder_ = true;
  } else if (errno != EEXIST) {
    return ErrnoStatus(absl::StrCat("make socket folder ", made->folder_));
  }
  STOWAGE_RETURN_IF_ERROR(CheckFolder(made->folder_));
  STOWAGE_ASSIGN_OR_RETURN(made->lock_, LockFolder(made->folder_));
  STOWAGE_RETURN_IF_ERROR(RemoveStaleSocket(made->path_));
  return made;
}

absl::Status SocketFolder::Listening() {
  struct stat info {};
  if (::lstat(path_.c_str(), &info) != 0 || ::chmod(path_.c_str(), 0600) != 0) {
    return ErrnoStatus(absl::StrCat("socket ", path_));
  }
  device_ = info.st_dev;
  inode_ = info.st_ino;
  lock_.Reset();
  return absl::OkStatus();
}

SocketFolder::~SocketFolder() {
  struct stat info {};
  if (inode_ != 0 && ::lstat(path_.c_str(), &info) == 0 &&
      info.st_dev == device_ && info.st_ino == inode_) {
    ::unlink(path_.c_str());
  }
  if (made_folder_) ::rmdir(folder_.c_str());  // refused if not empty: right
}

}  // namespace stowage::rpc
