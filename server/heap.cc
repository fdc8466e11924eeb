#include "server/heap.h"

#include <malloc.h>

#include <algorithm>
#include <cstdio>

namespace stowage {
namespace {

// Half a chunk: one that comes or goes is a change.
constexpr std::size_t kCalmBytes = std::size_t{512} << 10;

// Pages that are this process' own; 0 if /proc does not say.
std::size_t ResidentBytes() {
  std::FILE* status = std::fopen("/proc/self/status", "re");
  if (status == nullptr) return 0;
  std::size_t kib = 0;
  char line[256];
  while (std::fgets(line, sizeof(line), status) != nullptr) {
    if (std::sscanf(line, "RssAnon: %zu kB", &kib) == 1) break;
  }
  std::fclose(status);
  return kib << 10;
}

}  // namespace

void KeepSmallBlocks() {
  // NOLINTBEGIN(concurrency-mt-unsafe): first in main()
  ::mallopt(M_MMAP_THRESHOLD, 4 << 20);
  ::mallopt(M_TRIM_THRESHOLD, 8 << 20);
  ::mallopt(M_ARENA_MAX, 1);
  // NOLINTEND(concurrency-mt-unsafe)
}

bool FreeMemory::GiveBack() {
  const std::size_t free_bytes = ::mallinfo2().fordblks;
  const std::size_t resident = ResidentBytes();
  const std::size_t change =
      std::max(free_bytes, free_last_) - std::min(free_bytes, free_last_);
  if (change >= kCalmBytes) {
    free_last_ = free_bytes;
    calm_ = 0;
  }
  free_then_ = std::min(free_then_, free_bytes);
  resident_then_ = std::min(resident_then_, resident);
  const bool patient = ++waited_ < 10 * calls_;
  if ((++calm_ < calls_ && patient) || free_bytes < keep_bytes_ ||
      (free_bytes < free_then_ + keep_bytes_ &&
       resident < resident_then_ + keep_bytes_)) {
    return false;
  }
  ::malloc_trim(0);
  free_then_ = ::mallinfo2().fordblks;
  resident_then_ = ResidentBytes();
  waited_ = 0;
  return true;
}

HeapTrimmer::HeapTrimmer(std::size_t keep_bytes, int calls,
                         std::chrono::milliseconds period)
    : period_(period), free_(keep_bytes, calls), thread_([this] { Run(); }) {}

HeapTrimmer::~HeapTrimmer() {
  {
    const MutexLock lock(mutex_);
    stop_ = true;
  }
  stop_changed_.NotifyAll();
  thread_.join();
}

void HeapTrimmer::Run() {
  MutexLock lock(mutex_);
  while (!stop_) {
    stop_changed_.WaitFor(mutex_, period_);
    if (!stop_) free_.GiveBack();
  }
}

}  // namespace stowage
