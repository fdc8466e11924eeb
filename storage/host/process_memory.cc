#include "storage/host/process_memory.h"

#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <memory>

namespace stowage::storage {
namespace {

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, FileCloser>;

}  // namespace

std::int64_t ResidentBytes() {
  const File file(std::fopen("/proc/self/statm", "re"));
  std::int64_t total_pages = 0;
  std::int64_t resident_pages = 0;
  if (!file || std::fscanf(file.get(), "%" SCNd64 " %" SCNd64, &total_pages,
                           &resident_pages) != 2) {
    return 0;
  }
  return resident_pages * ::sysconf(_SC_PAGESIZE);
}

std::int64_t HugePageBytes() {
  const File file(std::fopen("/proc/self/smaps_rollup", "re"));
  if (!file) return 0;
  std::int64_t bytes = 0;
  char line[256];
  while (std::fgets(line, sizeof(line), file.get()) != nullptr) {
    std::int64_t kib = 0;
    if (std::sscanf(line, "AnonHugePages: %" SCNd64, &kib) == 1 ||
        std::sscanf(line, "ShmemPmdMapped: %" SCNd64, &kib) == 1) {
      bytes += kib * 1024;
    }
  }
  return bytes;
}

std::int64_t MachineMemoryBytes() {
  std::int64_t bytes = static_cast<std::int64_t>(::sysconf(_SC_PHYS_PAGES)) *
                       ::sysconf(_SC_PAGESIZE);
  for (const char* path : {"/sys/fs/cgroup/memory.max",
                           "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    const File file(std::fopen(path, "re"));
    std::int64_t limit = 0;
    // "max" (no limit) does not parse and is passed over.
    if (file && std::fscanf(file.get(), "%" SCNd64, &limit) == 1 && limit > 0) {
      bytes = std::min(bytes, limit);
    }
  }
  return bytes;
}

}  // namespace stowage::storage
