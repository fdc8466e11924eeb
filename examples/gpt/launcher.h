// Starts N ranks of this program on this host (--ranks N).
//
// Forks before LibTorch has threads, sets torchrun's variables and a file for
// the rendezvous, passes signals on, and waits. When one rank fails the others
// learn it from the server; those that have not ended seven seconds later are
// asked to, and ended two seconds after that.

#pragma once

#include <functional>

namespace stowage::gpt {

// Runs `rank_main` in `ranks` child processes. Returns: the exit code for this
// process: that of the first rank that failed (kExitLost if a signal ended it,
// kExitInterrupted if that was SIGINT or SIGTERM), else 0.
int LaunchRanks(int ranks, const std::function<int()>& rank_main);

}  // namespace stowage::gpt
