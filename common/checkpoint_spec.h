// What a trainer or a tool says when it has a job saved or a new job loaded,
// and what it hears of a save. Shared by client, wire and server core, as
// job_spec.h.

#pragma once

#include <cstdint>
#include <string>

namespace stowage {

inline constexpr std::int64_t kCheckpointPathBytesMax = 4096;
inline constexpr std::int32_t kCheckpointsKeptMax = 1'000'000;

// Where a new job's state comes from. Empty folder: from the ranks.
struct LoadSpec {
  // A folder of checkpoints, or one checkpoint; absolute, below one of the
  // server's --export-root.
  std::string folder;
  std::int64_t step = -1;  // -1: the one that was saved last
  // Without a checkpoint in the folder the job begins as if nothing was asked.
  bool if_any = false;

  friend bool operator==(const LoadSpec&, const LoadSpec&) = default;
};

struct SaveSpec {
  std::string job;
  std::string folder;  // absolute, below one of the server's --export-root
  // To be saved when it is committed; -1: the last committed step.
  std::int64_t step = -1;
  // Also the parameters in the ranks' type, as one set that Hugging Face's
  // loaders take.
  bool model = false;
  // False: that set alone, in a folder model-N, which nothing resumes from.
  bool state = true;
  // Complete checkpoints to keep in the folder, the ones saved last; 0: all.
  std::int32_t keep = 0;

  friend bool operator==(const SaveSpec&, const SaveSpec&) = default;
};

enum class SavePhase : std::uint8_t {
  kNone = 0,     // no save was asked for
  kWaiting = 1,  // for its step
  kWriting = 2,
  kDone = 3,
  kFailed = 4,
};

// Of a job's last save.
struct SaveInfo {
  std::string job;
  SavePhase phase = SavePhase::kNone;
  std::int64_t step = 0;
  std::string path;   // of the checkpoint, once it is complete
  std::string error;  // of one that failed
  std::int64_t bytes_done = 0;
  std::int64_t bytes_total = 0;
  double seconds = 0;  // since it began, or that it took
  // What it cost the steps that went on.
  double begin_ms = 0;            // between a commit and the next step
  std::int64_t copied_bytes = 0;  // by updates, before they overwrote them
  std::int64_t copies_bytes_max = 0;
  std::int64_t waits = 0;  // of updates, for room
  double wait_seconds = 0;

  bool running() const {
    return phase == SavePhase::kWaiting || phase == SavePhase::kWriting;
  }
  friend bool operator==(const SaveInfo&, const SaveInfo&) = default;
};

}  // namespace stowage
