#include "engine/monitor/process_memory.h"

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>

namespace stowage::engine::monitor {
namespace {

// The kB figure of each "Name:  123 kB" line that is asked for, as bytes.
struct Field {
  const char* name;
  std::int64_t* bytes;
};

template <std::size_t N>
void ReadFields(const char* path, const Field (&fields)[N]) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    for (const Field& field : fields) {
      const std::string name = std::string(field.name) + ":";
      if (line.compare(0, name.size(), name) != 0) continue;
      long long kilobytes = 0;
      if (std::sscanf(line.c_str() + name.size(), "%lld", &kilobytes) == 1) {
        *field.bytes = static_cast<std::int64_t>(kilobytes) * 1024;
      }
    }
  }
}

}  // namespace

MemoryUse ReadMemoryUse() {
  MemoryUse use;
  ReadFields("/proc/self/status", {{"VmRSS", &use.allocated_bytes},
                                   {"RssAnon", &use.private_bytes},
                                   {"VmHWM", &use.allocated_bytes_max},
                                   {"VmSize", &use.reserved_bytes},
                                   {"VmPeak", &use.reserved_bytes_max}});
  std::int64_t available = 0;
  ReadFields("/proc/meminfo", {{"MemTotal", &use.host_total_bytes},
                               {"MemAvailable", &available}});
  use.host_used_bytes = use.host_total_bytes - available;
  return use;
}

void ResetPeakMemory() {
  // proc(5): 5 resets the peak resident set size to its current value.
  std::ofstream("/proc/self/clear_refs") << "5";
}

}  // namespace stowage::engine::monitor
