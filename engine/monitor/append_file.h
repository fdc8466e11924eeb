// A file that only grows: what every monitor writes to.

#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/unique_fd.h"

namespace stowage::engine::monitor {

// Makes `path` and its parents. Errors: that of mkdir, with path.
absl::Status MakeDirectories(const std::string& path);

// Ownership: owns its descriptor. Thread safety: externally synchronized.
class AppendFile {
 public:
  // Opens `path` at its end, making it if it is not there.
  static absl::StatusOr<AppendFile> Open(const std::string& path);

  // Writes all of `bytes`. Blocks: for the file system.
  // Errors: that of write, with path; a part may have been written.
  absl::Status Write(std::string_view bytes);

  const std::string& path() const { return path_; }

 private:
  AppendFile(std::string path, UniqueFd fd);

  std::string path_;
  UniqueFd fd_;
};

}  // namespace stowage::engine::monitor
