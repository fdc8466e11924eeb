// Keeps gRPC's library running until the process ends.
//
// The last channel or server to go takes the library down with it, and that
// joins a poller which may be asleep for another 10 s (gRPC 1.51, seen in one
// of three stops after large messages). Nobody wants to wait for it.

#pragma once

namespace stowage::proto {

// Call before making a channel or server. Idempotent. Thread-safe.
void KeepGrpcRunning();

}  // namespace stowage::proto
