// Where a stowd listens: unix:/path or host:port.
//
// Server and client read addresses with the same code, so that what one
// accepts the other reaches. Pure but for DefaultAddress().
//
// Source: unix(7), "Pathname sockets" (length of sun_path).

#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace stowage::proto {

struct Address {
  bool is_unix = false;
  std::string path;  // of the socket; absolute
  std::string host;  // without brackets
  int port = 0;      // 0: the server picks one

  // What gRPC takes, and what people read: unix:/path, 127.0.0.1:80, [::1]:80.
  std::string ToString() const;
  // True for a Unix socket, 127.0.0.0/8, ::1 and localhost.
  bool IsLoopback() const;
};

// Errors: kInvalidArgument for anything else, a relative or too long path
//   (107 bytes), or a port above 65535; the message quotes the text.
absl::StatusOr<Address> ParseAddress(std::string_view text);

// STOWAGE_SERVER, else unix:$XDG_RUNTIME_DIR/stowage/stowd.sock, else
// unix:/tmp/stowage-<uid>/stowd.sock.
std::string DefaultAddress();

}  // namespace stowage::proto
