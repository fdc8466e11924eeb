#include "proto/grpc_lifetime.h"

#include <grpc/grpc.h>

namespace stowage::proto {

void KeepGrpcRunning() {
  [[maybe_unused]] static const bool started = [] {
    grpc_init();  // never paired with grpc_shutdown(): that is the point
    return true;
  }();
}

}  // namespace stowage::proto
