#include "storage/host/sigbus_guard.h"

#include <sys/mman.h>

#include <atomic>
#include <csignal>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace stowage::storage {
namespace {

constexpr std::uintptr_t kPageBytes = 4096;

// Lock-free because the handler reads it: a lock held by the interrupted thread
// would never be released. `end` is written last and cleared first, so a range
// is seen whole or not at all.
struct Range {
  std::atomic<bool> taken{false};
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::uintptr_t> end{0};
  std::atomic<bool> broken{false};
};
static_assert(std::atomic<std::uintptr_t>::is_always_lock_free);

Range ranges[SigbusGuard::kRangesMax];
struct sigaction previous_action;

void PassOn(int signal_number, siginfo_t* info, void* context) {
  if ((previous_action.sa_flags & SA_SIGINFO) != 0) {
    previous_action.sa_sigaction(signal_number, info, context);
    return;
  }
  if (previous_action.sa_handler != SIG_DFL &&
      previous_action.sa_handler != SIG_IGN) {
    previous_action.sa_handler(signal_number);
    return;
  }
  // Default action: returning re-runs the instruction, which now ends the
  // process as if this handler had never been.
  struct sigaction fallback {};
  fallback.sa_handler = SIG_DFL;
  ::sigaction(SIGBUS, &fallback, nullptr);
}

void OnSigbus(int signal_number, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (Range& range : ranges) {
    const std::uintptr_t end = range.end.load(std::memory_order_acquire);
    if (address >= end ||
        address < range.begin.load(std::memory_order_relaxed)) {
      continue;
    }
    range.broken.store(true, std::memory_order_release);
    // NOLINTNEXTLINE(performance-no-int-to-ptr): siginfo gives a number.
    void* page = reinterpret_cast<void*>(address / kPageBytes * kPageBytes);
    if (::mmap(page, kPageBytes, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) {
      break;
    }
    errno = saved_errno;
    return;
  }
  PassOn(signal_number, info, context);
  errno = saved_errno;
}

void InstallOnce() {
  static const bool installed = [] {
    struct sigaction action {};
    action.sa_sigaction = OnSigbus;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    STOWAGE_CHECK(::sigaction(SIGBUS, &action, &previous_action) == 0);
    return true;
  }();
  (void)installed;
}

}  // namespace

absl::StatusOr<SigbusGuard> SigbusGuard::Create(const void* begin,
                                                std::int64_t bytes) {
  InstallOnce();
  for (int i = 0; i < kRangesMax; ++i) {
    if (ranges[i].taken.exchange(true, std::memory_order_acq_rel)) continue;
    const auto address = reinterpret_cast<std::uintptr_t>(begin);
    ranges[i].broken.store(false, std::memory_order_relaxed);
    ranges[i].begin.store(address, std::memory_order_relaxed);
    ranges[i].end.store(address + static_cast<std::uintptr_t>(bytes),
                        std::memory_order_release);
    return SigbusGuard(i);
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("segments: more than ", kRangesMax, " at once"));
}

SigbusGuard::SigbusGuard(SigbusGuard&& other) noexcept
    : index_(std::exchange(other.index_, -1)) {}

SigbusGuard& SigbusGuard::operator=(SigbusGuard&& other) noexcept {
  if (this != &other) {
    Reset();
    index_ = std::exchange(other.index_, -1);
  }
  return *this;
}

SigbusGuard::~SigbusGuard() { Reset(); }

void SigbusGuard::Reset() {
  if (index_ < 0) return;
  ranges[index_].end.store(0, std::memory_order_release);
  ranges[index_].begin.store(0, std::memory_order_relaxed);
  ranges[index_].taken.store(false, std::memory_order_release);
  index_ = -1;
}

bool SigbusGuard::broken() const {
  return index_ >= 0 && ranges[index_].broken.load(std::memory_order_acquire);
}

}  // namespace stowage::storage
