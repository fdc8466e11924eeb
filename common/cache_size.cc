#include "common/cache_size.h"

#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace stowage {
namespace {

std::string Line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// "32768K" -> 33554432; 0 for anything else.
std::int64_t ParseSize(std::string text) {
  std::int64_t unit = 1;
  if (!text.empty() && (text.back() == 'K' || text.back() == 'M')) {
    unit = text.back() == 'K' ? 1024 : 1024 * 1024;
    text.pop_back();
  }
  std::int64_t number = 0;
  if (!absl::SimpleAtoi(text, &number) || number < 0 || number > 1 << 30) {
    return 0;
  }
  return number * unit;
}

}  // namespace

std::int64_t LastLevelCacheBytes(const std::string& root) {
  int level_max = 0;
  std::int64_t bytes = 0;
  for (int index = 0; index < 16; ++index) {
    const std::string folder = absl::StrCat(root, "/index", index);
    const std::string type = Line(absl::StrCat(folder, "/type"));
    if (type.empty()) break;
    int level = 0;
    if (type == "Instruction" ||
        !absl::SimpleAtoi(Line(absl::StrCat(folder, "/level")), &level) ||
        level <= level_max) {
      continue;
    }
    level_max = level;
    bytes = ParseSize(Line(absl::StrCat(folder, "/size")));
  }
  return bytes;
}

bool FitsLastLevelCache(std::int64_t bytes) {
  static const std::int64_t cache_bytes = LastLevelCacheBytes();
  return bytes <= cache_bytes / 4 * 3;
}

}  // namespace stowage
