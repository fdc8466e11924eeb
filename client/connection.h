// The channel to one stowd, and what its errors mean to a user.
//
// Private to client/: it shows gRPC types.

#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace stowage::client {

// Makes a channel with a connection of its own; does not connect yet.
// Errors: kInvalidArgument for the address.
absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(
    const std::string& address);

// Why nobody answers, from the point of view of connect(2): "there is no such
// socket", "no process listens there"; empty if a connection can be made.
std::string ProbeAddress(const std::string& address);

// A call's end as this client's error: what stowd said as it is; what the
// transport said as kUnavailable "stowd at ADDRESS went away (...)".
absl::Status ToClientStatus(const grpc::Status& status,
                            const std::string& address);

}  // namespace stowage::client
