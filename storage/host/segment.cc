#include "storage/host/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/errno_status.h"
#include "common/status_macros.h"
#include "common/unique_fd.h"
#include "storage/host/pinned_arena.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace stowage::storage {
namespace {

constexpr std::size_t kSmallPageBytes = 4096;
constexpr std::int64_t kCollapseSliceBytes = std::int64_t{64} << 20;
// On a machine that is busy or short of huge pages collapsing can take seconds;
// an attach must not. The rest of the segment then has small pages.
constexpr std::chrono::milliseconds kCollapseTimeMax{500};

// Fills an empty, mapped file with huge pages as far as the kernel gives them
// (Linux 6.1; tmpfs ignores MADV_HUGEPAGE unless mounted with huge=advise).
// Readers of the file get them too. One small page in each huge one first:
// MADV_COLLAPSE does not work on a hole alone, and collapsing onto allocated
// small pages copies them (256 MiB: 53 ms this way, 490 ms after
// posix_fallocate, 245 ms without huge pages; 2 cores, 2026-11-23). Failure
// costs speed only: ServerInfo::huge_page_bytes says what is true.
void FillWithHugePages(std::byte* data, std::int64_t bytes) {
  const auto deadline = std::chrono::steady_clock::now() + kCollapseTimeMax;
  const std::int64_t whole = bytes / kHugePageBytes * kHugePageBytes;
  for (std::int64_t begin = 0; begin < whole; begin += kCollapseSliceBytes) {
    const std::int64_t end = std::min(begin + kCollapseSliceBytes, whole);
    for (std::int64_t at = begin; at < end; at += kHugePageBytes) {
      // Not a plain write: that would be a SIGBUS on a full file system.
      if (::madvise(data + at, kSmallPageBytes, MADV_POPULATE_WRITE) != 0) {
        return;
      }
    }
    if (::madvise(data + begin, static_cast<std::size_t>(end - begin),
                  MADV_COLLAPSE) != 0 ||
        std::chrono::steady_clock::now() > deadline) {
      return;
    }
  }
}

absl::Status FileSystemIsFull(const SegmentFolder& folder,
                              const std::string& file, std::int64_t bytes) {
  return absl::ResourceExhaustedError(absl::StrCat(
      "segment ", folder.path(), "/", file, ": needs ", HumanBytes(bytes), " (",
      bytes, " bytes), the file system has ", HumanBytes(folder.FreeBytes()),
      " free; make the tmpfs larger (mount -o remount,size=..., docker "
      "--shm-size) or give another --shm-dir"));
}

absl::Status Allocate(const SegmentFolder& folder, const std::string& file,
                      int fd, std::int64_t offset_bytes, std::int64_t bytes) {
  int error = 0;
  do {
    error = ::posix_fallocate(fd, offset_bytes, bytes);
  } while (error == EINTR);
  if (error == 0) return absl::OkStatus();
  if (error == ENOSPC || error == EFBIG || error == ENOMEM) {
    return FileSystemIsFull(folder, file, bytes);
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
  STOWAGE_CHECK(options.hole_bytes > 0 || reservation.bytes() == options.bytes);
  STOWAGE_CHECK(options.hole_bytes % kHugePageBytes == 0 &&
                options.hole_bytes <= options.bytes);
  std::unique_ptr<Segment> segment(new Segment());
  segment->folder_ = &folder;
  segment->budget_ = budget;
  segment->reservation_ = std::move(reservation);
  segment->file_name_ = folder.NewName(options.kind);
  const std::string what =
      absl::StrCat("segment ", folder.path(), "/", segment->file_name_);
  // Early, before time is spent on pages that would go again.
  if (const std::int64_t free_bytes = folder.FreeBytes();
      free_bytes >= 0 && free_bytes < segment->reservation_.bytes()) {
    return FileSystemIsFull(folder, segment->file_name_,
                            segment->reservation_.bytes());
  }
  UniqueFd fd(::openat(folder.fd(), segment->file_name_.c_str(),
                       O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                       0600));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat(what, ": create"));
  segment->linked_ = true;
  if (::ftruncate(fd.get(), options.bytes) != 0) {
    return ErrnoStatus(
        absl::StrCat(what, ": extend to ", options.bytes, " bytes"));
  }
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
  const std::int64_t whole_bytes = options.bytes - options.hole_bytes;
  std::byte* const whole = segment->data_ + options.hole_bytes;
  if (options.huge_pages) FillWithHugePages(whole, whole_bytes);
  // What decides: every byte that is still missing, or a refusal.
  if (whole_bytes > 0) {
    STOWAGE_RETURN_IF_ERROR(Allocate(folder, segment->file_name_, fd.get(),
                                     options.hole_bytes, whole_bytes));
    if (options.lock_memory) {
      segment->locked_bytes_ = LockOrWarn(whole, whole_bytes, budget);
    }
  }
  if (options.hole_bytes > 0) segment->fd_ = std::move(fd);
  return segment;
}

absl::Status Segment::Populate(std::int64_t offset_bytes, std::int64_t bytes) {
  STOWAGE_CHECK(fd_.valid());
  return Allocate(*folder_, file_name_, fd_.get(), offset_bytes, bytes);
}

void Segment::Punch(std::int64_t offset_bytes, std::int64_t bytes) {
  STOWAGE_CHECK(fd_.valid());
  // It fails on a file that cannot be written only, which this is not.
  STOWAGE_CHECK(::fallocate(fd_.get(),
                            FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                            offset_bytes, bytes) == 0);
}

Segment::~Segment() {
  if (linked_) ::unlinkat(folder_->fd(), file_name_.c_str(), 0);
  if (data_ == nullptr) return;
  guard_ = SigbusGuard();
  ::munmap(data_, static_cast<std::size_t>(bytes_));
  budget_->AddLocked(-locked_bytes_);
}

}  // namespace stowage::storage
