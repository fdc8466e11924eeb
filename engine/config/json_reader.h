// The tolerant JSON parser behind ReadConfigFile().
//
// JSON (RFC 8259) plus // # and /* */ comments, trailing commas, Infinity,
// -Infinity and NaN. A recursive descent whose depth, values and text are
// bounded, so that no input can exhaust stack or memory.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/config/document.h"

namespace stowage::engine::config {

inline constexpr std::int64_t kTextBytesMax = std::int64_t{4} << 20;
inline constexpr int kDepthMax = 64;
inline constexpr std::int64_t kValuesMax = 100'000;

// Parses one value of any kind that fills `text`; `file` is for messages only.
// Errors: kInvalidArgument with file:line:column.
absl::StatusOr<Value> ParseJson(std::string_view text, std::string_view file);

}  // namespace stowage::engine::config
