// What the kernel says about this process's memory.
//
// Source: proc(5) on /proc/pid/statm and /proc/pid/smaps_rollup.

#pragma once

#include <cstdint>

namespace stowage::storage {

// Resident bytes, shared pages included; 0 if /proc cannot be read.
std::int64_t ResidentBytes();

// Bytes mapped by huge pages: anonymous and tmpfs. MADV_HUGEPAGE returning 0
// means nothing; this is what is true. Cost: a walk of the page tables, about a
// millisecond per GiB of small pages.
std::int64_t HugePageBytes();

// Physical memory of the machine; the cgroup's limit if that is smaller.
std::int64_t MachineMemoryBytes();

}  // namespace stowage::storage
