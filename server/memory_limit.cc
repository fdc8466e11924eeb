#include "server/memory_limit.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

#include "absl/status/status.h"

namespace stowage {
namespace {

std::optional<std::int64_t> ReadNumber(const std::string& path) {
  std::ifstream in(path);
  std::int64_t value = 0;
  if (!(in >> value)) return std::nullopt;  // also for "max"
  return value;
}

// Lowers the view to the limits of the cgroup at `path` and its parents.
void ApplyCgroup(const std::string& mount, std::string path, bool v2,
                 MemoryView* view) {
  const std::string limit_file = v2 ? "/memory.max" : "/memory.limit_in_bytes";
  const std::string used_file =
      v2 ? "/memory.current" : "/memory.usage_in_bytes";
  while (true) {
    const std::string folder = mount + (path == "/" ? "" : path);
    const auto limit = ReadNumber(folder + limit_file);
    if (limit && *limit > 0 && *limit < view->total_bytes) {
      view->total_bytes = *limit;
    }
    if (limit && *limit > 0) {
      const std::int64_t used = ReadNumber(folder + used_file).value_or(0);
      view->available_bytes = std::min(
          view->available_bytes, std::max<std::int64_t>(0, *limit - used));
    }
    const std::size_t slash = path.rfind('/');
    if (path == "/" || slash == std::string::npos) return;
    path = slash == 0 ? "/" : path.substr(0, slash);
  }
}

}  // namespace

absl::StatusOr<MemoryView> ReadMemoryView(const std::string& root) {
  const std::string prefix = root == "/" ? "" : root;
  MemoryView view;
  std::ifstream meminfo(prefix + "/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    std::istringstream fields(line);
    std::string key;
    std::int64_t kib = 0;
    if (!(fields >> key >> kib)) continue;
    if (key == "MemTotal:") view.total_bytes = kib * 1024;
    if (key == "MemAvailable:") view.available_bytes = kib * 1024;
  }
  if (view.total_bytes == 0 || view.available_bytes == 0) {
    return absl::UnavailableError("/proc/meminfo: no MemAvailable");
  }
  std::ifstream cgroups(prefix + "/proc/self/cgroup");
  for (std::string line; std::getline(cgroups, line);) {
    // "0::/path" is v2; "5:memory:/path" v1.
    const std::size_t first = line.find(':');
    const std::size_t second =
        first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (names.empty()) {
      ApplyCgroup(prefix + "/sys/fs/cgroup", path, /*v2=*/true, &view);
    } else if (names.find("memory") != std::string::npos) {
      ApplyCgroup(prefix + "/sys/fs/cgroup/memory", path, /*v2=*/false, &view);
    }
  }
  return view;
}

}  // namespace stowage
