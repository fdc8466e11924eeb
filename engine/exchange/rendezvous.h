// How the ranks of a run find each other: a small key-value store.
//
// torchrun's variables (MASTER_ADDR, MASTER_PORT) name a TCPStore; the
// launcher of stow-train (one host) names a file in STOWAGE_RENDEZVOUS_FILE.
// Used to agree on the server's address and the run's nonce, and by the c10d
// exchange for its process groups.

#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include <c10/util/intrusive_ptr.h>

namespace c10d {
class Store;
}  // namespace c10d

namespace stowage::engine {

// A process's place among the ranks, from torchrun's variables.
struct LaunchInfo {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  int local_world_size = 1;

  // Reads RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE; none set: one rank.
  // Errors: kInvalidArgument naming the variable that is missing or wrong.
  static absl::StatusOr<LaunchInfo> FromEnvironment();
};

// Thread safety: externally synchronized.
class Rendezvous {
 public:
  Rendezvous() = default;
  Rendezvous(const Rendezvous&) = delete;
  Rendezvous& operator=(const Rendezvous&) = delete;
  virtual ~Rendezvous() = default;

  // One rank: a store in this process. Errors: kInvalidArgument without the
  //   variables that say where; kUnavailable if the store is out of reach.
  // Blocks: until rank 0's store answers, at most `timeout`.
  static absl::StatusOr<std::unique_ptr<Rendezvous>> Create(
      const LaunchInfo& launch, std::chrono::milliseconds timeout);

  virtual absl::Status Set(const std::string& key,
                           const std::string& value) = 0;
  // Blocks: until somebody sets the key, at most the timeout (kDeadlineExceeded
  // naming the key).
  virtual absl::StatusOr<std::string> Get(const std::string& key) = 0;

  // LibTorch's store behind it, for process groups.
  virtual c10::intrusive_ptr<c10d::Store> store() = 0;
};

}  // namespace stowage::engine
