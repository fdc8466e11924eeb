#include "client/segment.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errno_status.h"
#include "common/unique_fd.h"

namespace stowage::client {
namespace {

// A version that is nearly there comes within a few microseconds; beyond that
// a sleeping thread leaves its core to the one that is making it.
constexpr std::chrono::microseconds kSpin{10};
constexpr std::chrono::milliseconds kSlice{50};

void SpinHint() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

absl::Status Precondition(const std::string& path, const std::string& why) {
  return absl::FailedPreconditionError(
      absl::StrCat("segment ", path, ": ", why));
}

absl::Status CheckHeader(const std::string& path, const std::byte* data,
                         const SegmentIdentity& identity) {
  const auto* header = reinterpret_cast<const SegmentHeader*>(data);
  if (header->magic != identity.magic) {
    return Precondition(path, "not a segment of this kind");
  }
  if (header->format_version != static_cast<std::uint32_t>(kProtocolVersion)) {
    return Precondition(path,
                        absl::StrCat("format version ", header->format_version,
                                     ", this client knows ", kProtocolVersion));
  }
  if (header->job_id != identity.job_id) {
    return Precondition(path, "belongs to another job");
  }
  if (header->layout_fingerprint != identity.layout_fingerprint) {
    return Precondition(path, "was made for another layout");
  }
  return absl::OkStatus();
}

}  // namespace

MappedSegment::MappedSegment(MappedSegment&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)) {}

MappedSegment& MappedSegment::operator=(MappedSegment&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

MappedSegment::~MappedSegment() {
  if (data_ != nullptr) {
    ::munmap(data_, static_cast<std::size_t>(size_bytes_));
  }
}

absl::StatusOr<MappedSegment> MappedSegment::Map(
    const std::string& path, const Options& options,
    const SegmentIdentity& identity) {
  const UniqueFd fd(
      ::open(path.c_str(),
             (options.writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) {
    const absl::Status cause = ErrnoStatus("open");
    return Precondition(
        path, absl::StrCat(cause.message(),
                           "; if the server sees this folder under another "
                           "name (a container), set STOWAGE_SHM_DIR"));
  }
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoStatus("fstat " + path);
  const std::int64_t size_bytes = info.st_size;
  if (size_bytes < options.bytes ||
      (size_bytes > options.bytes && !options.or_longer)) {
    return Precondition(
        path, absl::StrCat("has ", size_bytes, " bytes, the layout needs ",
                           options.bytes));
  }
  void* address = ::mmap(nullptr, static_cast<std::size_t>(size_bytes),
                         options.writable ? PROT_READ | PROT_WRITE : PROT_READ,
                         MAP_SHARED, fd.get(), 0);
  if (address == MAP_FAILED) {
    return Precondition(path, std::string(ErrnoStatus("mmap").message()));
  }
  MappedSegment made;
  made.data_ = static_cast<std::byte*>(address);
  made.size_bytes_ = size_bytes;
  if (absl::Status s = CheckHeader(path, made.data_, identity); !s.ok()) {
    return s;
  }
  return made;
}

absl::Status WaitForWord(const std::atomic<std::uint32_t>& word,
                         std::uint32_t target,
                         std::atomic<std::uint32_t>& waiters,
                         std::chrono::milliseconds timeout,
                         const std::function<absl::Status()>& check) {
  const auto start = std::chrono::steady_clock::now();
  const auto spin_end = start + kSpin;
  while (true) {
    for (int i = 0; i < 16; ++i) {
      if (WordReached(word.load(std::memory_order_acquire), target)) {
        return absl::OkStatus();
      }
      SpinHint();
    }
    if (std::chrono::steady_clock::now() >= spin_end) break;
  }
  while (true) {
    // The hint first, then the word: the server stores the word first, then
    // reads the hint; with both sequentially consistent one sees the other.
    waiters.fetch_add(1, std::memory_order_seq_cst);
    const std::uint32_t seen = word.load(std::memory_order_seq_cst);
    if (!WordReached(seen, target)) {
      const timespec slice{0, std::chrono::nanoseconds(kSlice).count()};
      ::syscall(SYS_futex, &word, FUTEX_WAIT, seen, &slice, nullptr, 0);
    }
    waiters.fetch_sub(1, std::memory_order_seq_cst);
    if (WordReached(word.load(std::memory_order_acquire), target)) {
      return absl::OkStatus();
    }
    if (absl::Status s = check(); !s.ok()) return s;
    if (std::chrono::steady_clock::now() - start > timeout) {
      return absl::DeadlineExceededError("");
    }
  }
}

}  // namespace stowage::client
