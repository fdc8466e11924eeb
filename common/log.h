// Structured logs: one line per event, `event key=value ...`.
//
// spdlog stays behind this header. Thread safety: thread-safe.

#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace stowage::log {

enum class Level { kDebug, kInfo, kWarning, kError };

// One `key=value`; values with spaces are quoted when printed.
struct Field {
  template <typename T>
  Field(std::string_view key_in, const T& value_in)
      : key(key_in), value(absl::StrCat(value_in)) {}
  std::string_view key;
  std::string value;
};

// Names the process in every line ("stowd", "stow-train") and sets what is
// printed; logs go to stderr. Call once, before other threads log.
void Initialize(std::string_view process_name, Level level);

// "debug", "info", "warning", "error".
absl::Status SetLevel(std::string_view name);

void Write(Level level, std::string_view event,
           std::initializer_list<Field> fields = {});

inline void Debug(std::string_view event,
                  std::initializer_list<Field> fields = {}) {
  Write(Level::kDebug, event, fields);
}
inline void Info(std::string_view event,
                 std::initializer_list<Field> fields = {}) {
  Write(Level::kInfo, event, fields);
}
inline void Warning(std::string_view event,
                    std::initializer_list<Field> fields = {}) {
  Write(Level::kWarning, event, fields);
}
inline void Error(std::string_view event,
                  std::initializer_list<Field> fields = {}) {
  Write(Level::kError, event, fields);
}

}  // namespace stowage::log
