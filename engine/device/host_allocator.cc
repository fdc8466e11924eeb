
#include "engine/device/host_allocator.h"

#include <malloc.h>

#include "common/environment.h"

namespace stowage::engine {

void TuneHostAllocator() {
  if (!Environment("STOWAGE_KEEP_MALLOC").empty()) return;
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  // mallopt takes an int: the largest it can hold stands in for 4 GiB.
  mallopt(M_TRIM_THRESHOLD, 0x7fffffff);
  mallopt(M_TOP_PAD, 64 << 20);
}

void ReturnFreeMemory() { malloc_trim(0); }

}  // namespace stowage::engine
