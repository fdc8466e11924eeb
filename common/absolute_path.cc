#include "common/absolute_path.h"

#include <filesystem>
#include <system_error>

namespace stowage {

std::string AbsolutePath(const std::string& path) {
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  std::string text =
      (error ? std::filesystem::path(path) : absolute.lexically_normal())
          .string();
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  return text;
}

}  // namespace stowage
