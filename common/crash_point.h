// Places where a test ends the process as a crash would.
//
// STOWAGE_CRASH_AT=NAME or NAME:N ends it with SIGKILL the first (N-th) time
// that it passes CrashPoint("NAME"). Builds without tests have none of it.

#pragma once

#ifdef STOWAGE_CRASH_POINTS

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <string>
#include <string_view>

namespace stowage {

inline void CrashPoint(std::string_view name) {
  struct Plan {
    std::string name;
    std::atomic<long> passes{0};
    Plan() {
      // NOLINTNEXTLINE(concurrency-mt-unsafe): nobody sets it.
      const char* text = std::getenv("STOWAGE_CRASH_AT");
      if (text == nullptr) return;
      name = text;
      passes = 1;
      if (const std::size_t colon = name.find(':');
          colon != std::string::npos) {
        passes = std::strtol(name.c_str() + colon + 1, nullptr, 10);
        name.resize(colon);
      }
    }
  };
  static Plan plan;
  if (plan.name != name) return;
  if (plan.passes.fetch_sub(1) == 1) std::raise(SIGKILL);
}

}  // namespace stowage

#else

#include <string_view>

namespace stowage {
inline void CrashPoint(std::string_view /*name*/) {}
}  // namespace stowage

#endif
