// The tmpfs folder that holds the segments, and who of several servers owns
// which file in it.
//
// Every file is named `stowage-<server id>-<random>.<kind>`; a server holds an
// exclusive flock on `stowage-<server id>.lock` for as long as it lives. The
// kernel drops that lock however the server dies, and flock works across
// containers that share the folder as a volume (process ids do not): so a file
// whose server's lock can be taken belongs to nobody, and a starting server
// removes it.
//
// Source: flock(2); open(2) on O_EXCL and O_NOFOLLOW.

#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/unique_fd.h"

namespace stowage::storage {

// Thread safety: immutable after Create(). The lock file goes with the object.
class SegmentFolder {
 public:
  // Makes `path` (0700) if it is not there, takes the lock of `server_id`
  // (letters and digits, at most 64), removes files of dead servers.
  // Errors, all naming the path: kInvalidArgument for a relative path or a bad
  //   id; kPermissionDenied if the folder is a link, another user's, or open to
  //   group or others; kAlreadyExists if the id is live; errno's otherwise.
  static absl::StatusOr<std::unique_ptr<SegmentFolder>> Create(
      const std::string& path, const std::string& server_id);

  SegmentFolder(const SegmentFolder&) = delete;
  SegmentFolder& operator=(const SegmentFolder&) = delete;
  ~SegmentFolder();

  const std::string& path() const { return path_; }
  int fd() const { return folder_.get(); }

  // A file name nobody can guess, of this server; `kind` is its suffix.
  std::string NewName(std::string_view kind) const;

  // Bytes the folder's file system can still take; -1 if it does not say.
  std::int64_t FreeBytes() const;

 private:
  SegmentFolder() = default;
  absl::Status OpenFolder();
  absl::Status TakeLock();
  void RemoveFilesOfDeadServers() const;

  std::string path_;
  std::string server_id_;
  UniqueFd folder_;
  UniqueFd lock_;
};

// `bytes` random bytes from the kernel, in hexadecimal.
std::string RandomHex(int bytes);

}  // namespace stowage::storage
