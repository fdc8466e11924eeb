// Strings: concatenation, splitting and letter case over std::string_view.
//
// Debian builds Abseil with a string_view of its own, which std::string_view
// does not convert to; these functions stand between the two.

#pragma once

#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace stowage::engine::config {

template <typename T>
decltype(auto) ForAbseil(const T& value) {
  if constexpr (std::is_same_v<T, std::string_view>) {
    return absl::string_view(value.data(), value.size());
  } else {
    return (value);
  }
}

// As absl::StrCat() and absl::StrAppend().
template <typename... Parts>
std::string Cat(const Parts&... parts) {
  return absl::StrCat(ForAbseil(parts)...);
}
template <typename... Parts>
void Append(std::string* out, const Parts&... parts) {
  absl::StrAppend(out, ForAbseil(parts)...);
}

// The parts between `separator`s, empty ones included; none for "".
inline std::vector<std::string_view> Split(std::string_view text,
                                           char separator) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const std::size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
  return parts;
}

inline std::string Lower(std::string_view text) {
  std::string out(text);
  absl::AsciiStrToLower(&out);
  return out;
}

}  // namespace stowage::engine::config
