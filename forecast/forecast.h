// What a job will take on this machine before it runs: memory by tier, disk
// space, bytes moved, time of a step, disk wear, and what to change where it
// does not fit.
//
// Memory of the server is the server's own arithmetic (server/core/memory_plan)
// on the same job, so it cannot drift from what the server will take. Times
// come from ceilings measured on this machine (ceilings.h, and the model's own
// forward and backward measured by stow-calibrate).
//
// Pure: no I/O, no clock.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/layout.h"
#include "engine/config/config.h"
#include "forecast/ceilings.h"
#include "forecast/rank_traffic.h"

namespace stowage::forecast {

// One rank's compute at the job's shape, all ranks of the node at once.
struct RankCompute {
  double forward_seconds = 0;  // of one micro step
  // Of one micro step, gradients copied into segments.
  double backward_seconds = 0;
  // Private memory of the process with everything but parameters, their
  // gradients and Stowage itself; negative: not measured.
  std::int64_t process_bytes = -1;
};

struct Machine {
  int cores = 1;
  std::int64_t memory_bytes = 0;     // available; 0: unknown
  std::int64_t segment_bytes = 0;    // free in the segments' tmpfs; 0: unknown
  std::int64_t disk_free_bytes = 0;  // over the job's folders; 0: unknown
  std::optional<KernelCeilings> kernels;
  std::optional<RankCompute> compute;
  std::optional<DiskCeilings> disk;  // of all folders together
};

struct Workload {
  engine::config::Config config;
  Layout layout;
  std::int32_t local_ranks = 1;
  std::int32_t threads_per_rank = 1;
};

struct Amount {
  std::string what;
  std::int64_t bytes = 0;
};

struct Forecast {
  // --- Memory, bytes.
  std::int64_t server_state = 0;      // masters and moments, or their cache
  std::int64_t server_params = 0;     // segment that ranks read
  std::int64_t server_gradients = 0;  // segments and sums
  std::int64_t server_own = 0;        // program and bookkeeping
  std::int64_t rank_params = 0;       // private copy: stages 1 and 2
  std::int64_t rank_gathered = 0;     // at most gathered: stage 3
  // Of rank_private: gathered units and buffers of the c10d exchange. In
  // segments units are read in place.
  std::int64_t rank_exchange = 0;
  std::int64_t rank_state = 0;     // not offloaded
  std::int64_t rank_private = -1;  // whole process; negative: not known
  std::int64_t node_memory = 0;    // all of it on this node
  std::int64_t server_bytes() const {
    return server_state + server_params + server_gradients + server_own;
  }
  // --- Disk.
  std::int64_t disk_space = 0;
  std::int64_t disk_read = 0;     // a step
  std::int64_t disk_written = 0;  // a step
  // --- Bytes moved in a step, by what moves them.
  std::vector<Amount> moved;
  // What rank 0 sends to the others; absent where nothing is, and for 1-bit
  // optimizers, whose bytes depend on the step.
  std::optional<RankTraffic> traffic;
  // --- Seconds of a step. Negative: not known.
  double forward = -1;
  double backward = -1;
  double optimizer_exposed = -1;  // landing, update and disk behind nothing
  double step = -1;
  // --- Written per day of training at that pace; negative: not known.
  double wear_bytes_per_day = -1;
  // --- Sentences.
  std::vector<std::string> notes;
  std::vector<std::string> does_not_fit;  // empty: it fits
};

// Errors: kInvalidArgument or kResourceExhausted with what the server would
// say.
absl::StatusOr<Forecast> Predict(const Workload& workload,
                                 const Machine& machine);

}  // namespace stowage::forecast
