// What the process keeps of memory that its allocator has free.
//
// Chunks of payload and state come and go by the thousand, 1 MiB each: from the
// heap, which keeps a few MiB, they cost no fresh pages (a sixth of the time
// that a remote rank's payload took, 2026-11-25). But by default that much is
// kept in the arena of every thread that ever held chunks, at the arena's end,
// where malloc_trim() does not reach: 18 MiB once a job's first parameters had
// arrived (2026-11-26), for good. They belong to the job's memory_budget. So
// there is one arena, and what lies free in it for a second goes back.
//
// Source: mallopt(3), mallinfo2(3), malloc_trim(3), proc(5) on RssAnon.

#pragma once

#include <chrono>
#include <cstddef>
#include <thread>

#include "common/mutex.h"

namespace stowage {

// Blocks of up to a few MiB come from the heap, and from the same one for all
// threads; larger ones are rare and go back at once. Call first in main().
void KeepSmallBlocks();

// Gives free memory back to the system. It waits until as much was free in the
// last `calls` calls (while chunks come and go, that varies), but for no more
// than ten times as many; and nothing happens unless `keep_bytes` are free, and
// either as much more than after the last time is free, or the process has as
// much more of its own (what was given back counts as free still, and comes
// back to life without a change in that).
// Thread safety: one thread at a time. Blocks: all threads' allocations, while
// the heap is walked; about a millisecond.
class FreeMemory {
 public:
  FreeMemory(std::size_t keep_bytes, int calls)
      : keep_bytes_(keep_bytes), calls_(calls) {}

  // Returns: whether it gave some back.
  bool GiveBack();

 private:
  const std::size_t keep_bytes_;
  const int calls_;
  std::size_t free_last_ = 0;  // where the calm began
  int calm_ = 0;               // calls since
  int waited_ = 0;             // calls since the last time
  // After the last time; or less, if they fell since.
  std::size_t free_then_ = 0;
  std::size_t resident_then_ = 0;
};

// Calls FreeMemory's GiveBack() every `period`, from a thread of its own.
// Thread safety: one thread.
class HeapTrimmer {
 public:
  HeapTrimmer(std::size_t keep_bytes, int calls,
              std::chrono::milliseconds period);
  HeapTrimmer(const HeapTrimmer&) = delete;
  HeapTrimmer& operator=(const HeapTrimmer&) = delete;
  ~HeapTrimmer();

 private:
  void Run();

  const std::chrono::milliseconds period_;
  FreeMemory free_;
  Mutex mutex_;
  CondVar stop_changed_;
  bool stop_ GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last
};

}  // namespace stowage
