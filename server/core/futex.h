// Waiting on and waking a 32-bit word, inside the process and across it.
//
// Private calls are for the compute team; the shared wake is for the words of
// the parameter segment, where ranks sleep in other processes.
//
// Source: futex(2).

#pragma once

#include <atomic>
#include <cstdint>

namespace stowage::core {

// Sleeps while `word` equals `expected`; may return without cause.
void FutexWait(const std::atomic<std::uint32_t>& word, std::uint32_t expected);

// Wakes up to `waiters_max` threads of this process.
void FutexWake(const std::atomic<std::uint32_t>& word, int waiters_max);

// Wakes every waiter of every process that maps the word's page.
void FutexWakeShared(const std::atomic<std::uint32_t>& word);

// One turn of a spin loop.
inline void SpinPause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace stowage::core
