#include <chrono>

#include "cli/command.h"

namespace stowage::cli {

absl::StatusOr<std::unique_ptr<client::OffloadClient>> Connect(
    const Invocation& invocation) {
  client::ConnectOptions options;
  options.connect_timeout = std::chrono::milliseconds(
      static_cast<std::int64_t>(invocation.timeout_seconds * 1000));
  return client::OffloadClient::Connect(invocation.server, options);
}

}  // namespace stowage::cli
