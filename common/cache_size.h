// How large the processor's last cache is.
//
// Whether a pass over memory should write past the caches depends on whether
// all of it fits into the last one. The server's step and the benches ask.
//
// Source: the Linux kernel's documentation of /sys/devices/system/cpu, cache/.
//   (sysconf(3) is not asked: in a virtual machine it may tell the host's.)

#pragma once

#include <cstdint>
#include <string>

namespace stowage {

// Bytes of the highest-level data cache that processor 0 uses; 0 if the kernel
// does not say. `root` is for tests.
std::int64_t LastLevelCacheBytes(
    const std::string& root = "/sys/devices/system/cpu/cpu0/cache");

// Whether a pass that touches `bytes` is best left to the last cache: it takes
// at most three quarters of it, the rest being everybody else's.
bool FitsLastLevelCache(std::int64_t bytes);

}  // namespace stowage
