// What stow-train's exit codes mean; also in its --help and in README.

#pragma once

#include "absl/status/status.h"

namespace stowage::gpt {

inline constexpr int kExitOk = 0;
inline constexpr int kExitInternal = 1;  // our bug, or LibTorch's
inline constexpr int kExitUsage = 2;     // flags, configuration or data,
                                         // or other ones than the job's
inline constexpr int kExitServer = 3;    // no server, or another version
inline constexpr int kExitRefused = 4;   // job name in use, memory
inline constexpr int kExitLost = 5;      // a rank or the server was lost
inline constexpr int kExitDiverged = 6;  // the loss scale hit its minimum
inline constexpr int kExitInterrupted = 130;

// The code for an error before the job was attached, and after.
int ExitCodeBefore(const absl::Status& status);
int ExitCodeDuring(const absl::Status& status);

}  // namespace stowage::gpt
