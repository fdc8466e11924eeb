// Where a job's state lies and with what it is moved: the part of a JobSpec
// that a DeepSpeed file says in offload_optimizer, offload_param and aio, and
// in the `stowage` block.
//
// Placement, durability, folders and kept steps are the job's for life; the
// rest is tuning that a later run may change. None of it changes a bit of the
// result.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace stowage {

inline constexpr std::int32_t kNvmePathsMax = 16;
inline constexpr std::int64_t kNvmePathBytesMax = 1024;
inline constexpr std::int32_t kKeptStepsMax = 63;
// Of one rank's gradient segment; more would be slots.
inline constexpr std::int32_t kGradientRegionsMax = 64;
// Entries of a trace: a pass uses a unit a few times.
inline constexpr std::int64_t kTraceUsesMax = std::int64_t{1} << 20;
inline constexpr std::int32_t kBuffersMax = 65536;
inline constexpr std::int32_t kQueueDepthMax = 65536;
inline constexpr std::int32_t kAioThreadsMax = 1024;
inline constexpr std::int64_t kAioBlockBytesMin = 4096;
inline constexpr std::int64_t kAioBlockBytesMax = std::int64_t{1} << 30;

// What a job's committed steps survive (DESIGN, "Promises" 3).
enum class Durability : std::uint8_t {
  kMemory = 1,  // the trainer's end; with a store on NVMe the server's stop too
  kPower = 3,   // power loss; needs an NVMe store
};

enum class Placement : std::uint8_t {
  kMemory = 1,  // the server's memory
  kNvme = 2,    // files below StorageSpec::nvme_paths, memory as their cache
};

// How requests to the disks are made (DeepSpeed's `aio`).
struct AioSpec {
  std::int64_t block_size_bytes = std::int64_t{1} << 20;  // of one request
  std::int32_t queue_depth = 8;
  std::int32_t intra_op_parallelism = 1;
  bool single_submit = false;
  bool overlap_events = true;

  friend bool operator==(const AioSpec&, const AioSpec&) = default;
};

struct StorageSpec {
  Placement optimizer = Placement::kMemory;  // masters and moments
  Placement params = Placement::kMemory;     // the ranks' copy
  // Absolute folders; the state is striped over them, the manifest lies in the
  // first. Empty if and only if both placements are memory.
  std::vector<std::string> nvme_paths;
  std::int32_t kept_steps = 1;  // committed steps that can be returned to

  AioSpec aio;
  // Windows of the optimizer's pipeline and their elements (sub_group_size).
  std::int32_t optimizer_buffers = 4;
  std::int64_t sub_group_elems = 1'000'000'000;
  bool pipeline_read = false;
  bool pipeline_write = false;
  // How far parameters are read ahead of the ranks: so many units, and at most
  // buffers x buffer elements.
  std::int32_t param_buffers = 5;
  std::int64_t param_buffer_elems = 100'000'000;
  // Parameters kept in memory although they are placed on NVMe, in elements of
  // the whole job.
  std::int64_t max_in_cpu_elems = 1'000'000'000;
  bool pin_memory = true;  // of a job in memory too: mlock where allowed
  // Hard limit of what the job pins, private memory and segments together; 0:
  // the server's own limit. With it the memory left over becomes cache.
  std::int64_t memory_budget_bytes = 0;
  std::int64_t nvme_budget_bytes = 0;  // of disk; 0: what is free

  bool on_nvme() const {
    return optimizer == Placement::kNvme || params == Placement::kNvme;
  }

  friend bool operator==(const StorageSpec&, const StorageSpec&) = default;
};

}  // namespace stowage
