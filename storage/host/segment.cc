#include "storage/host/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/errno_status.h"
#include "common/status_macros.h"
#include "common/unique_fd.h"
#include "storage/host/pinned_arena.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace stowage::storage {
namespace {

absl::Status Allocate(const SegmentFolder& folder, const std::string& file,
                      int fd, std::int64_t bytes) {
  int error = 0;
  do {
    error = ::posix_fallocate(fd, 0, bytes);
  } while (error == EINTR);
  if (error == 0) return absl::OkStatus();
  if (error == ENOSPC || error == EFBIG || error == ENOMEM) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "segment ", folder.path(), "/", file, ": needs ", HumanBytes(bytes),
        " (", bytes, " bytes), the file system has ",
        HumanBytes(folder.FreeBytes()),
        " free; make the tmpfs larger (mount -o remount,size=..., docker "
        "--shm-size) or give another --shm-dir"));
  }
  return ErrnoStatus(absl::StrCat("segment ", folder.path(), "/", file,
                                  ": allocate ", bytes, " bytes"),
                     error);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Segment>> Segment::Create(
    const SegmentFolder& folder, const Options& options, MemoryBudget* budget,
    MemoryReservation reservation) {
  STOWAGE_CHECK(options.bytes > 0);
  STOWAGE_CHECK(reservation.bytes() == options.bytes);
  std::unique_ptr<Segment> segment(new Segment());
  segment->folder_ = &folder;
  segment->budget_ = budget;
  segment->reservation_ = std::move(reservation);
  segment->file_name_ = folder.NewName(options.kind);
  const std::string what =
      absl::StrCat("segment ", folder.path(), "/", segment->file_name_);
  const UniqueFd fd(::openat(folder.fd(), segment->file_name_.c_str(),
                             O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                             0600));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat(what, ": create"));
  segment->linked_ = true;
  STOWAGE_RETURN_IF_ERROR(
      Allocate(folder, segment->file_name_, fd.get(), options.bytes));
  const auto bytes = static_cast<std::size_t>(options.bytes);
  STOWAGE_ASSIGN_OR_RETURN(std::byte * address,
                           ReserveAlignedAddresses(options.bytes));
  void* data = ::mmap(address, bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_FIXED, fd.get(), 0);
  if (data == MAP_FAILED) {
    const absl::Status status =
        ErrnoStatus(absl::StrCat(what, ": map ", options.bytes, " bytes"));
    ::munmap(address, bytes);
    return status;
  }
  segment->data_ = static_cast<std::byte*>(data);
  segment->bytes_ = options.bytes;
  STOWAGE_ASSIGN_OR_RETURN(segment->guard_,
                           SigbusGuard::Create(data, options.bytes));
  // tmpfs ignores MADV_HUGEPAGE unless it is mounted so; MADV_COLLAPSE works
  // (Linux 6.1) and serves readers of the file too. Only speed depends on it.
  const std::int64_t whole = options.bytes / kHugePageBytes * kHugePageBytes;
  if (options.huge_pages && whole > 0) {
    ::madvise(data, static_cast<std::size_t>(whole), MADV_COLLAPSE);
  }
  if (options.lock_memory) {
    segment->locked_bytes_ = LockOrWarn(data, options.bytes, budget);
  }
  return segment;
}

Segment::~Segment() {
  if (linked_) ::unlinkat(folder_->fd(), file_name_.c_str(), 0);
  if (data_ == nullptr) return;
  guard_ = SigbusGuard();
  ::munmap(data_, static_cast<std::size_t>(bytes_));
  budget_->AddLocked(-locked_bytes_);
}

}  // namespace stowage::storage
