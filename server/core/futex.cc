#include "server/core/futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>

namespace stowage::core {
namespace {

long Futex(const std::atomic<std::uint32_t>& word, int operation,
           std::uint32_t value) {
  static_assert(sizeof(word) == sizeof(std::uint32_t));
  return ::syscall(SYS_futex, &word, operation, value, nullptr, nullptr, 0);
}

}  // namespace

void FutexWait(const std::atomic<std::uint32_t>& word, std::uint32_t expected) {
  Futex(word, FUTEX_WAIT_PRIVATE, expected);
}

void FutexWake(const std::atomic<std::uint32_t>& word, int waiters_max) {
  Futex(word, FUTEX_WAKE_PRIVATE, static_cast<std::uint32_t>(waiters_max));
}

void FutexWakeShared(const std::atomic<std::uint32_t>& word) {
  Futex(word, FUTEX_WAKE, INT_MAX);
}

}  // namespace stowage::core
