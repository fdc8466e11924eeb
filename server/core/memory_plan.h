// What a job keeps in memory and what on NVMe: the division of its DRAM budget
// among gradients, parameters and state, and the refusal with the figure it
// needs.
//
// Bytes of memory save disk traffic differently: a byte of a gradient sum or a
// parameter kept in memory saves two bytes of traffic a step, a byte of state
// one (durability `power`) or two. So gradients come first, then parameters,
// and what is left is cache of the state (storage::FitNvmeOptions()).
//
// Pure: no state, no I/O.

#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "common/job_spec.h"
#include "common/layout.h"
#include "server/core/admission.h"
#include "storage/nvme/nvme_options.h"
#include "storage/nvme/nvme_store.h"

namespace stowage::core {

// What StorageSpec::memory_budget_bytes takes off for the server itself: its
// program, gRPC, stacks and one job's bookkeeping. Idle and once asked it has
// 10 MiB of PSS (2026-11-24); the rest is room for sessions and layouts,
// chosen, not measured.
inline constexpr std::int64_t kServerOwnBytes = std::int64_t{32} << 20;

struct MemoryPlan {
  SlotPlan slots;
  MemoryNeed need;
  // State on NVMe; empty paths: all in memory.
  storage::NvmeStoreOptions store;
  // Parameters in memory are at most param_limit_bytes (words not counted) and
  // read under leases; a rank may hold leased_elems_max elements.
  bool params_leased = false;
  std::int64_t param_limit_bytes = 0;
  std::int64_t leased_elems_max = 0;
  std::int32_t ahead_units = 0;
  std::int64_t ahead_bytes = 0;
  // Above zero: gradient sums go through so many buffers, each as long as the
  // largest unit's sum, and lie on NVMe.
  std::int32_t sum_buffers = 0;
};

// What a layout may ask for before its job's memory is planned: its own tables
// (24 bytes for 32 Ki trainable elements) stay within a sixteenth of the memory
// limit, or 64 MiB if that is more. A shape costs a client a few bytes only.
LayoutLimits LayoutLimitsOf(std::int64_t memory_limit_bytes);

// Whether the layout's elements could lie, at a byte each, where the job wants
// them: in the memory limit, or on the disks of its NVMe paths. Looks at shapes
// only, so that a job far beyond that costs no tables, whose page faults the
// steps of other jobs would wait for. The memory plan says it exactly later.
// Errors: kResourceExhausted with both numbers; kInvalidArgument beyond what
// any
//   job may have.
absl::Status CheckElementsFit(const JobSpec& job,
                              std::int64_t memory_limit_bytes);

// Requires: `job` passed CheckJobSpec(), `run` CheckRunSpec(). `found`: of the
// job's store, if there is one already; what is fixed there stays.
// Errors: kResourceExhausted with the budget and the least that would do;
//   kInvalidArgument or kUnimplemented for a run that the job's optimizer
//   cannot have.
absl::StatusOr<MemoryPlan> PlanMemory(
    const Layout& layout, const JobSpec& job, const RunSpec& run,
    std::int32_t kept_slots_max, const storage::NvmeStoreInfo* found = nullptr);

// True if the unit has parameters that no master can make again. They may lie
// among its trainable elements' padding.
bool HasFrozen(const Layout::Unit& unit);

}  // namespace stowage::core
