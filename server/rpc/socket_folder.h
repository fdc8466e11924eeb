// The Unix socket's place: a 0700 folder, nobody else's server in it.
//
// The folder is the lock on the door: whoever may enter it may use the server.
// A socket that a dead server left is removed; a live one is left alone.
//
// Source: unix(7); flock(2).

#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/unique_fd.h"

namespace stowage::rpc {

// Ownership: the socket file, and the folder if Prepare() made it; both are
//   removed by the destructor (if the socket is still the one we made).
// Thread safety: externally synchronized.
class SocketFolder {
 public:
  // Makes the folder (its last component only) or checks it, locks it against
  // servers that start at the same time, and removes a stale socket.
  // Errors: kPermissionDenied for a folder of somebody else or open to others;
  //   kAlreadyExists if a server answers at the path or the path is no socket;
  //   errno's code otherwise.
  // Blocks: at most 5 s for another server that is starting there.
  static absl::StatusOr<std::unique_ptr<SocketFolder>> Prepare(
      const std::string& socket_path);

  SocketFolder(const SocketFolder&) = delete;
  SocketFolder& operator=(const SocketFolder&) = delete;
  ~SocketFolder();

  // Call once the socket listens: restricts it to the owner, releases the lock.
  absl::Status Listening();

 private:
  SocketFolder() = default;

  std::string folder_;
  std::string path_;
  bool made_folder_ = false;
  UniqueFd lock_;
  dev_t device_ = 0;  // of the socket file that is ours; 0: none yet
  ino_t inode_ = 0;
};

}  // namespace stowage::rpc
