// The one place that reads environment variables.
//
// Thread safety: as getenv(3): thread-safe as long as nobody calls setenv(3),
// which no code of Stowage does outside tests and before its threads start.

#pragma once

#include <cstdlib>
#include <string>

namespace stowage {

// Value of `name`; empty if it is not set. (An empty variable means "not set"
// for every variable that Stowage reads.)
inline std::string Environment(const char* name) {
  const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe)
  return value == nullptr ? "" : value;
}

}  // namespace stowage
