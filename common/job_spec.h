// What a client says when it opens a job and when it steps; what it gets back.
//
// Plain values shared by client, wire and server core, so that core knows
// nothing of messages and the client's headers nothing of gRPC.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/checkpoint_spec.h"
#include "common/layout.h"
#include "common/storage_spec.h"

namespace stowage {

// Version of the wire protocol and of the segment format. A server speaks
// exactly this one and the previous one (none yet).
inline constexpr std::int32_t kProtocolVersion = 1;

inline constexpr std::int64_t kClientStateBytesMax = std::int64_t{64} * 1024;
inline constexpr std::int64_t kJobNameBytesMax = 128;
inline constexpr std::int32_t kWorldSizeMax = 65536;
inline constexpr std::int32_t kLocalRanksMax = 256;
inline constexpr std::int32_t kMicroStepsMax = 65536;
inline constexpr std::int32_t kScalarsPerRankMax = 65536;

enum class OptimizerKind : std::uint8_t {
  kAdam = 1,
  kLamb = 2,
  kOneBitAdam = 3,
  kOneBitLamb = 4
};

constexpr const char* OptimizerKindName(OptimizerKind kind) {
  switch (kind) {
    case OptimizerKind::kAdam:
      return "Adam";
    case OptimizerKind::kLamb:
      return "Lamb";
    case OptimizerKind::kOneBitAdam:
      return "OneBitAdam";
    case OptimizerKind::kOneBitLamb:
      return "OneBitLamb";
  }
  return "an unknown one";
}

// What fixes the meaning of the state. Learning rate, betas, eps and weight
// decay may change every step and come with ApplyArgs.
struct OptimizerSpec {
  OptimizerKind kind = OptimizerKind::kAdam;
  bool decoupled_weight_decay = true;  // AdamW; false: L2 added to the gradient
  bool bias_correction = true;
  // Lamb and OneBitLamb: bounds of a tensor's trust ratio. Lamb: where eps
  // goes.
  double max_coeff = 10;
  double min_coeff = 0.01;
  bool eps_inside_sqrt = false;
  // OneBitAdam and OneBitLamb: applied steps before momenta travel as signs.
  std::int64_t freeze_step = 100'000;
  // OneBitLamb: how its frozen trust ratios are made and may move.
  double coeff_beta = 0.9;
  double factor_max = 4;
  double factor_min = 0.5;
  double factor_threshold = 0.1;

  bool one_bit() const {
    return kind == OptimizerKind::kOneBitAdam ||
           kind == OptimizerKind::kOneBitLamb;
  }

  friend bool operator==(const OptimizerSpec&, const OptimizerSpec&) = default;
};

// A job's identity and shape. Another layout, optimizer, durability, placement,
// folders or kept steps under the same name is an error, never another job.
struct JobSpec {
  std::string name;  // [A-Za-z0-9._-]+, at most kJobNameBytesMax bytes
  LayoutSpec layout;
  OptimizerSpec optimizer;
  Durability durability = Durability::kMemory;
  StorageSpec storage;
};

// What a server must remember of a job, beside its state, to offer it again
// after its own end.
struct JobRecord {
  JobSpec spec;
  // The order of first uses in a forward, and all uses of one pass; empty as
  // long as no rank has told them.
  std::vector<std::int32_t> forward_order;
  std::vector<std::int32_t> trace;
  // The parameters on NVMe are those of each committed step; else they are made
  // of the masters.
  bool params_current = false;
};

// One run of a trainer over a job. All its ranks give the same values; the
// nonce tells them from another run that wants the same job.
struct RunSpec {
  std::string nonce;             // 16 to 64 bytes, random
  std::int32_t world_size = 1;   // ranks over all nodes
  std::int32_t local_ranks = 1;  // ranks of this node; local rank is 0..n-1
  std::int32_t micro_steps = 1;  // gradient accumulation steps
  // Ranks have reduced their gradients among themselves: all of them write
  // into one gradient segment, each its own range of a unit. They agree on
  // what is empty and on regions. False: a segment for each rank.
  bool shards = false;
  // The run's number of this node's local rank 0.
  std::int32_t first_rank = 0;

  // The run's ranks are on several nodes, each with a part of the job.
  bool spread() const { return world_size > local_ranks; }
  std::int32_t gradient_segments() const { return shards ? 1 : local_ranks; }
  // Where the state of a job comes from that is not initialized yet.
  LoadSpec load = {};
};

// Constants of a step for one parameter group.
struct GroupStep {
  double lr = 0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;

  friend bool operator==(const GroupStep&, const GroupStep&) = default;
};

// Trust ratios of one Lamb step, over the job's trainable tensors.
struct TrustRatios {
  std::int64_t tensors = 0;  // 0: no Lamb step was applied yet
  double min = 0;
  double mean = 0;
  double max = 0;

  friend bool operator==(const TrustRatios&, const TrustRatios&) = default;
};

// What a 1-bit optimizer's signs cost, of the last step that was compressed.
struct Compression {
  std::int64_t rounds = 0;  // compressed steps since the state is in memory
  // What rank 0's signs lost, as a share of what they stood for (L2 norms).
  double error = 0;

  friend bool operator==(const Compression&, const Compression&) = default;
};

// The answer to prepare: this node's view of the step's gradients. All ranks
// get the same values.
struct Verdict {
  std::int64_t step = 0;
  // Over all trainable parameters, of the plain sum of all micro-batches'
  // gradients (not divided, not unscaled). Not finite if any element is not.
  double sum_of_squares = 0;
  std::string first_nonfinite_param;  // empty if all are finite
  // What the ranks gave to prepare, rank by rank, each as long as it was.
  std::vector<std::vector<double>> rank_scalars;
  // Where the time until this answer went. Rank by rank, how long its prepare
  // waited for the last rank's; empty from a server that does not say.
  std::vector<double> rank_wait_seconds;
  // What the server's updates have waited for its disks, cumulative.
  double disk_wait_seconds = 0;
  // Of the last step applied since the server has the job in memory.
  TrustRatios trust_ratios;
  Compression compression;  // likewise
};

// Ends step `step` (counted from 0: the step that makes version step + 1).
struct ApplyArgs {
  std::int64_t step = 0;
  bool skip = false;           // overflow: tensors stay, step and state commit
  double gradient_factor = 1;  // 1/(scale * micro-batches) * clip coefficient
  std::vector<GroupStep> groups;  // one per group of the layout, also frozen
  std::string client_state;       // opaque; at most kClientStateBytesMax

  friend bool operator==(const ApplyArgs&, const ApplyArgs&) = default;
};

// Where a job stands; given to every rank that attaches.
struct AttachInfo {
  std::uint64_t job_id = 0;
  std::uint64_t epoch = 0;          // a new one for every run
  bool initialized = false;         // false: ranks must put the initial values
  std::int64_t step = 0;            // committed steps, skipped ones included
  std::int64_t applied_steps = 0;   // Adam's t
  std::string client_state;         // as of `step`; empty before the first
  std::int32_t slots_per_rank = 1;  // gradient slots of one rank
  // False: slot = micro step, kept until apply. True: slots are a ring (slot =
  // micro step mod slots_per_rank); before writing micro step k of a unit the
  // rank waits until its micro step k - slots_per_rank has landed.
  bool slots_are_ring = false;
  std::string shm_dir;           // the server's; a client may override it
  std::string param_segment;     // file names inside it
  std::string gradient_segment;  // of the rank that attached
  // True: a unit may be read under a lease only (Session::Lease). At most
  // leased_elems_max elements, or one use, may be leased by a rank at a time.
  bool params_leased = false;
  std::int64_t leased_elems_max = 0;
  // Above zero: the gradient segment is so many regions, each as long as the
  // largest unit's trainable elements, instead of slots; slots_are_ring holds.
  std::int32_t gradient_regions = 0;
  // Not on the wire: this rank has no shared memory with the server; payload
  // goes over the stream.
  bool remote = false;
  // The checkpoint that this run's attach loaded; empty: none.
  std::string loaded_from;
};

// What ReadState can return. Masters and moments exist for trainable
// parameters only; kParam is the ranks' copy widened to fp32.
enum class StateKind : std::uint8_t {
  kMaster = 1,
  kMoment1 = 2,
  kMoment2 = 3,
  kParam = 4
};

// For list and info.
struct JobInfo {
  std::string name;
  std::uint64_t job_id = 0;
  std::uint64_t epoch = 0;
  bool initialized = false;
  std::int64_t step = 0;
  std::int64_t applied_steps = 0;
  std::int64_t parameters = 0;
  std::int32_t live_sessions = 0;
  std::int32_t local_ranks = 0;
  std::int64_t state_bytes = 0;     // master and moments
  std::int64_t param_bytes = 0;     // parameter segment
  std::int64_t gradient_bytes = 0;  // gradient segments and fp32 sums
  std::string failed_because;       // empty: healthy
  // Work done, cumulative.
  std::int64_t units_landed = 0;
  double landing_seconds = 0;
  double apply_seconds = 0;
  // Jobs with state on NVMe.
  std::vector<std::string> nvme_paths;
  std::string durability;
  std::vector<std::int64_t> kept_steps;  // that can be returned to, ascending
  std::int64_t disk_bytes = 0;           // of its files
  std::int64_t cache_bytes = 0;          // of state_bytes: state kept in memory
  std::int64_t disk_bytes_read = 0;  // cumulative since the server opened it
  std::int64_t disk_bytes_written = 0;
  bool params_leased = false;
  std::int64_t param_limit_bytes = 0;  // of parameters in memory, if leased
  std::string io;                      // how the disk is read, in words
  // Step `step` (the next) has a verdict and no apply, its run has ended, and
  // RollForward() can end it.
  bool prepared = false;
  TrustRatios trust_ratios;  // as Verdict's
  Compression compression;

  friend bool operator==(const JobInfo&, const JobInfo&) = default;
};

struct ServerInfo {
  std::string version;
  std::int32_t protocol_version = 0;
  std::int32_t pid = 0;
  std::string isa;  // kernel set in use
  std::int32_t threads = 0;
  std::int64_t memory_limit_bytes = 0;
  std::int64_t pinned_bytes = 0;  // private and tmpfs together
  std::int64_t locked_bytes = 0;  // of it, what mlock holds
  std::int64_t huge_page_bytes = 0;
  std::int64_t rss_bytes = 0;
  double uptime_seconds = 0;
  std::string shm_dir;
};

}  // namespace stowage
