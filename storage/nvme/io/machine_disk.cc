// The machine's file system as a Disk: O_DIRECT files, allocated when made.
//
// Source: open(2) on O_DIRECT, statx(2) on STATX_DIOALIGN, posix_fallocate(3),
//   flock(2), rename(2).

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/errno_status.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/unique_fd.h"
#include "storage/nvme/io/disk.h"
#include "storage/nvme/io/pool_engine.h"
#include "storage/nvme/io/uring_engine.h"

namespace stowage::storage {
namespace {

absl::Status PathError(const std::string& operation, const std::string& path,
                       int error) {
  return ErrnoStatus(absl::StrCat(operation, " ", path), error);
}

// What the file asks for, what its device asks for, or a page.
IoAlignment AskAlignment(int fd) {
  constexpr IoAlignment kPage = {.offset_bytes = 4096, .memory_bytes = 4096};
#ifdef STATX_DIOALIGN
  struct statx extended {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &extended) == 0 &&
      (extended.stx_mask & STATX_DIOALIGN) != 0 &&
      extended.stx_dio_offset_align != 0) {
    return {.offset_bytes = extended.stx_dio_offset_align,
            .memory_bytes = extended.stx_dio_mem_align};
  }
#endif
  struct stat info {};
  int sector_bytes = 0;
  if (::fstat(fd, &info) == 0 && S_ISBLK(info.st_mode) &&
      ::ioctl(fd, BLKSSZGET, &sector_bytes) == 0 && sector_bytes > 0) {
    return {.offset_bytes = sector_bytes, .memory_bytes = sector_bytes};
  }
  struct statvfs volume {};
  if (::fstatvfs(fd, &volume) == 0 && volume.f_bsize >= 512 &&
      volume.f_bsize <= 65536 && (volume.f_bsize & (volume.f_bsize - 1)) == 0) {
    const auto block = static_cast<std::int64_t>(volume.f_bsize);
    return {.offset_bytes = block, .memory_bytes = 4096};
  }
  return kPage;
}

class MachineFile final : public DiskFile {
 public:
  MachineFile(std::string path, UniqueFd fd, std::int64_t bytes, bool direct)
      : path_(std::move(path)),
        fd_(std::move(fd)),
        bytes_(bytes),
        direct_(direct),
        alignment_(direct ? AskAlignment(fd_.get())
                          : IoAlignment{.offset_bytes = 1, .memory_bytes = 1}) {
  }

  const std::string& path() const override { return path_; }
  std::int64_t bytes() const override { return bytes_; }
  IoAlignment alignment() const override { return alignment_; }
  bool direct() const override { return direct_; }
  int fd() const override { return fd_.get(); }

  int Flush() override {
    for (;;) {
      if (::fdatasync(fd_.get()) == 0) return 0;
      if (errno != EINTR) return errno;
    }
  }

  std::int64_t ReadAt(std::int64_t offset_bytes,
                      std::span<std::byte> into) override {
    for (;;) {
      const ssize_t got =
          ::pread(fd_.get(), into.data(), into.size(), offset_bytes);
      if (got >= 0) return got;
      if (errno != EINTR) return -errno;
    }
  }

  std::int64_t WriteAt(std::int64_t offset_bytes,
                       std::span<const std::byte> from) override {
    for (;;) {
      const ssize_t put =
          ::pwrite(fd_.get(), from.data(), from.size(), offset_bytes);
      if (put >= 0) return put;
      if (errno != EINTR) return -errno;
    }
  }

 private:
  const std::string path_;
  const UniqueFd fd_;
  const std::int64_t bytes_;
  const bool direct_;
  const IoAlignment alignment_;
};

class FileLock final : public Disk::Lock {
 public:
  explicit FileLock(UniqueFd fd) : fd_(std::move(fd)) {}

 private:
  UniqueFd fd_;  // closing drops the lock
};

// Opens with O_DIRECT; a file system without it (some tmpfs, some overlays)
// gets the page cache and one warning.
absl::StatusOr<UniqueFd> OpenFd(const std::string& path, int flags,
                                bool* direct) {
  constexpr mode_t kMode = 0600;
  const int common = O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags;
  if (*direct) {
    UniqueFd fd(::open(path.c_str(), common | O_DIRECT, kMode));
    if (fd.valid()) return fd;
    if (errno != EINVAL) return PathError("open", path, errno);
    static std::atomic<bool> warned{false};
    if (!warned.exchange(true)) {
      log::Warning("no_direct_io", {{"path", path},
                                    {"effect",
                                     "the file system refuses O_DIRECT: "
                                     "transfers go through the page cache"}});
    }
    *direct = false;
    // The refused open may have made the file.
    if ((flags & O_EXCL) != 0) ::unlink(path.c_str());
  }
  UniqueFd fd(::open(path.c_str(), common, kMode));
  if (!fd.valid()) return PathError("open", path, errno);
  return fd;
}

absl::Status WriteAll(int fd, const std::string& path,
                      const std::string& contents) {
  std::size_t done = 0;
  while (done < contents.size()) {
    const ssize_t put =
        ::write(fd, contents.data() + done, contents.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return PathError("write", path, errno);
    done += static_cast<std::size_t>(put);
  }
  if (::fsync(fd) != 0) return PathError("flush", path, errno);
  return absl::OkStatus();
}

absl::Status NoSpace(const std::string& path, std::int64_t bytes,
                     std::int64_t free_bytes, int error) {
  const absl::Status status = PathError("allocate", path, error);
  return absl::ResourceExhaustedError(absl::StrCat(
      status.message(), ": needs ", HumanBytes(bytes), " (", bytes,
      " bytes), free are ", HumanBytes(free_bytes), " (", free_bytes, ")"));
}

class MachineDiskImpl final : public Disk {
 public:
  absl::StatusOr<std::unique_ptr<DiskFile>> Create(const std::string& path,
                                                   std::int64_t bytes,
                                                   bool direct) override {
    // Asked first: some file systems fill up before they find out.
    const std::string folder =
        std::filesystem::path(path).parent_path().string();
    STOWAGE_ASSIGN_OR_RETURN(const std::int64_t free_bytes, FreeBytes(folder));
    if (bytes > free_bytes) return NoSpace(path, bytes, free_bytes, ENOSPC);
    STOWAGE_ASSIGN_OR_RETURN(UniqueFd fd,
                             OpenFd(path, O_CREAT | O_EXCL, &direct));
    if (const int error = ::posix_fallocate(fd.get(), 0, bytes); error != 0) {
      ::unlink(path.c_str());
      return NoSpace(path, bytes, free_bytes, error);
    }
    return std::make_unique<MachineFile>(path, std::move(fd), bytes, direct);
  }

  absl::StatusOr<std::unique_ptr<DiskFile>> Open(const std::string& path,
                                                 bool direct) override {
    STOWAGE_ASSIGN_OR_RETURN(UniqueFd fd, OpenFd(path, 0, &direct));
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return PathError("stat", path, errno);
    return std::make_unique<MachineFile>(path, std::move(fd), info.st_size,
                                         direct);
  }

  absl::Status Replace(const std::string& path,
                       const std::string& contents) override {
    const std::string beside = absl::StrCat(path, ".new");
    UniqueFd fd(::open(beside.c_str(),
                       O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
                       0600));
    if (!fd.valid()) return PathError("open", beside, errno);
    STOWAGE_RETURN_IF_ERROR(WriteAll(fd.get(), beside, contents));
    if (::rename(beside.c_str(), path.c_str()) != 0) {
      return PathError("rename", beside, errno);
    }
    return SyncFolder(std::filesystem::path(path).parent_path().string());
  }

  absl::StatusOr<std::string> ReadSmall(const std::string& path) override {
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (!fd.valid()) return PathError("open", path, errno);
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return PathError("stat", path, errno);
    if (info.st_size > kGiB) {
      return absl::InvalidArgumentError(
          absl::StrCat("read ", path, ": ", info.st_size, " bytes"));
    }
    std::string contents(static_cast<std::size_t>(info.st_size), '\0');
    std::size_t done = 0;
    while (done < contents.size()) {
      const ssize_t got =
          ::read(fd.get(), contents.data() + done, contents.size() - done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return PathError("read", path, errno);
      if (got == 0) break;
      done += static_cast<std::size_t>(got);
    }
    contents.resize(done);
    return contents;
  }

  absl::Status MakeFolder(const std::string& path) override {
    if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
      return PathError("make folder", path, errno);
    }
    return absl::OkStatus();
  }

  absl::Status SyncFolder(const std::string& path) override {
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd.valid()) return PathError("open folder", path, errno);
    if (::fsync(fd.get()) != 0) return PathError("flush folder", path, errno);
    return absl::OkStatus();
  }

  absl::Status RemoveFolder(const std::string& path) override {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (error) return PathError("remove", path, error.value());
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> List(
      const std::string& path) override {
    std::error_code error;
    std::vector<std::string> names;
    std::filesystem::directory_iterator it(path, error);
    while (!error && it != std::filesystem::directory_iterator()) {
      names.push_back(it->path().filename().string());
      it.increment(error);
    }
    if (error) return PathError("list", path, error.value());
    std::sort(names.begin(), names.end());
    return names;
  }

  absl::StatusOr<std::int64_t> FreeBytes(const std::string& path) override {
    struct statvfs volume {};
    if (::statvfs(path.c_str(), &volume) != 0) {
      return PathError("statvfs", path, errno);
    }
    return static_cast<std::int64_t>(volume.f_bavail) *
           static_cast<std::int64_t>(volume.f_frsize);
  }

  absl::StatusOr<std::unique_ptr<Lock>> LockFile(
      const std::string& path) override {
    UniqueFd fd(
        ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd.valid()) return PathError("open", path, errno);
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return PathError("lock", path, errno);
      return absl::FailedPreconditionError(absl::StrCat(
          "lock ", path, ": another server or tool has this store open"));
    }
    return std::make_unique<FileLock>(std::move(fd));
  }

  absl::StatusOr<std::unique_ptr<IoEngine>> NewEngine(
      IoBackend backend, const IoEngineOptions& options,
      std::span<DiskFile* const> files,
      std::span<const std::span<std::byte>> buffers) override {
    if (backend != IoBackend::kPool) {
      absl::StatusOr<std::unique_ptr<IoEngine>> uring =
          NewUringEngine(options, files, buffers);
      if (uring.ok() || backend == IoBackend::kUring) return uring;
      static std::atomic<bool> warned{false};
      if (!warned.exchange(true)) {
        log::Warning("io_uring_refused",
                     {{"reason", uring.status().message()},
                      {"effect", "pread and pwrite by threads instead"},
                      {"allow",
                       "kernel.io_uring_disabled=0; in a container a seccomp "
                       "profile that permits io_uring_setup"}});
      }
    }
    return NewPoolEngine(options, files);
  }
};

}  // namespace

Disk& MachineDisk() {
  static auto& disk = *std::make_unique<MachineDiskImpl>().release();
  return disk;
}

}  // namespace stowage::storage
