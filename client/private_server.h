// A stowd of this trainer's own, for runs without a configured server.
//
// Local rank 0 starts it as a child on a Unix socket in a fresh 0700 folder;
// it ends with its parent (death signal, and a pipe whose end it watches), and
// its folder and segments with it.
//
// Source: prctl(2) PR_SET_PDEATHSIG.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace stowage::client {

// Ownership: the child. Thread safety: externally synchronized.
// Shutdown: Stop(), else the destructor stops it (SIGTERM, then SIGKILL after
//   5 s) and waits.
class PrivateServer {
 public:
  struct Options {
    std::string binary;   // empty: STOWAGE_STOWD, else stowd beside this
                          // executable, else in PATH
    std::string shm_dir;  // empty: stowd's default
    int threads = 0;      // 0: stowd's default
    std::vector<std::string> extra_args;
  };

  // Blocks: until the server answers, at most 20 s.
  // Errors: kNotFound without a binary (with the places looked at);
  //   kUnavailable if it ends or does not answer, with its last words.
  static absl::StatusOr<std::unique_ptr<PrivateServer>> Start(
      const Options& options);

  PrivateServer(const PrivateServer&) = delete;
  PrivateServer& operator=(const PrivateServer&) = delete;
  ~PrivateServer();

  const std::string& address() const { return address_; }  // "unix:..."
  int pid() const { return pid_; }
  void Stop();

 private:
  PrivateServer() = default;
  std::string address_;
  std::string folder_;
  int pid_ = -1;
  int pipe_fd_ = -1;
};

}  // namespace stowage::client
