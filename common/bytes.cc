#include "common/bytes.h"

#include <cmath>
#include <cstdio>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace stowage {

std::string HumanBytes(std::int64_t bytes) {
  static constexpr const char* kSuffix[] = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (bytes < kKiB && bytes > -kKiB) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes) / 1024.0;
  int suffix = 0;
  while (std::fabs(value) >= 1024.0 && suffix < 4) {
    value /= 1024.0;
    ++suffix;
  }
  char text[48];
  std::snprintf(text, sizeof(text), "%.1f %s", value, kSuffix[suffix]);
  return text;
}

absl::StatusOr<std::int64_t> ParseBytes(std::string_view text) {
  const std::string trimmed(
      absl::StripAsciiWhitespace(absl::string_view(text.data(), text.size())));
  const auto bad = [&](std::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("size \"", absl::string_view(text.data(), text.size()),
                     "\": ", absl::string_view(why.data(), why.size()),
                     "; write for example 512MiB or 2GiB"));
  };
  const std::size_t digits = trimmed.find_first_not_of("0123456789.");
  double number = 0;
  if (digits == 0 || !absl::SimpleAtod(trimmed.substr(0, digits), &number)) {
    return bad("not a number");
  }
  std::string suffix;
  if (digits != std::string::npos) {
    suffix = absl::AsciiStrToLower(
        absl::StripAsciiWhitespace(trimmed.substr(digits)));
  }
  double factor = 0;
  if (suffix.empty() || suffix == "b") factor = 1;
  if (suffix == "k" || suffix == "kib") factor = 1024.0;
  if (suffix == "m" || suffix == "mib") factor = 1048576.0;
  if (suffix == "g" || suffix == "gib") factor = 1073741824.0;
  if (suffix == "t" || suffix == "tib") factor = 1099511627776.0;
  if (suffix == "kb") factor = 1e3;
  if (suffix == "mb") factor = 1e6;
  if (suffix == "gb") factor = 1e9;
  if (suffix == "tb") factor = 1e12;
  if (factor == 0) return bad("unknown suffix");
  const double bytes = number * factor;
  if (!(bytes < 9.0e18)) return bad("too large");
  return static_cast<std::int64_t>(std::llround(bytes));
}

}  // namespace stowage
