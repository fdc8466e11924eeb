#include "server/core/memory_plan.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/bytes.h"
#include "common/segment_format.h"
#include "common/status_macros.h"
#include "server/core/onebit_update.h"
#include "storage/host/pinned_arena.h"

namespace stowage::core {
bool HasFrozen(const Layout::Unit& unit) {
  return std::any_of(unit.params.begin(), unit.params.end(),
                     [](const Layout::Param& param) { return param.frozen; });
}

namespace {

// Without a budget a window carries no more than this many elements, 48 MiB of
// state: larger ones only delay the first update (2 to 6 windows of 16 to 64
// MiB were all within 10 %, 2026-11-23).
constexpr std::int64_t kWindowElemsMax = std::int64_t{4} << 20;
// Deeper queues and more threads change nothing but the memory they take.
constexpr std::int32_t kQueueDepthMost = 4096;
constexpr std::int32_t kAioThreadsMost = 64;
// Fewer windows than these cannot read, update and write at once.
constexpr std::int32_t kWindowsMin = 3;
constexpr std::int32_t kWindowsMax = 64;
// More buffers for gradient sums than this are no buffers but the sums.
constexpr std::int32_t kSumBuffersMax = 4096;

bool AnyFrozen(const Layout& layout) {
  return std::any_of(layout.units().begin(), layout.units().end(), HasFrozen);
}

storage::NvmeStoreOptions AskedStore(const Layout& layout, const JobSpec& job) {
  const StorageSpec& spec = job.storage;
  storage::NvmeStoreOptions options;
  options.job_name = job.name;
  options.paths = spec.nvme_paths;
  options.durability = job.durability;
  options.kept_versions = spec.kept_steps;
  // Frozen values are nowhere else; the rest can be made from the masters.
  options.params = spec.params == Placement::kNvme || AnyFrozen(layout);
  options.gradient_spill = spec.memory_budget_bytes > 0;
  // Pieces that a small job can overlap and a small budget can hold.
  options.extent_bytes = std::int64_t{1} << 20;
  options.window_elems = std::min(spec.sub_group_elems, kWindowElemsMax);
  options.slots = std::clamp(spec.optimizer_buffers, kWindowsMin, kWindowsMax);
  options.pipeline_read = spec.pipeline_read;
  options.pipeline_write = spec.pipeline_write;
  options.block_size = spec.aio.block_size_bytes;
  options.queue_depth = std::min(spec.aio.queue_depth, kQueueDepthMost);
  options.single_submit = spec.aio.single_submit;
  options.overlap_events = spec.aio.overlap_events;
  options.threads = std::min(spec.aio.intra_op_parallelism, kAioThreadsMost);
  options.lock_memory = spec.pin_memory;
  return options;
}

absl::Status TooSmall(const JobSpec& job, std::int64_t least_bytes,
                      const std::string& parts) {
  const std::int64_t budget = job.storage.memory_budget_bytes;
  return absl::ResourceExhaustedError(absl::StrCat(
      "job \"", job.name, "\": its memory budget is ", HumanBytes(budget), " (",
      budget, " bytes), it needs at least ", HumanBytes(least_bytes), " (",
      least_bytes, " bytes): ", parts, ", the server itself ",
      HumanBytes(kServerOwnBytes), "; raise stowage.memory_budget"));
}

}  // namespace

namespace {

// Sizes that every division of the budget starts from, in bytes.
struct Sizes {
  std::int64_t ranks = 0;
  std::int64_t segments = 0;    // of gradients
  std::int64_t unit = 0;        // the largest unit's parameters
  std::int64_t all_params = 0;  // without words
  std::int64_t words = 0;       // header and words of the segment
  std::int64_t region = 0;      // the largest unit's gradient
  std::int64_t sum = 0;         // the same in fp32
};

Sizes SizesOf(const Layout& layout, const RunSpec& run) {
  const std::int64_t width = DtypeBytes(layout.param_dtype());
  Sizes sizes;
  sizes.ranks = run.local_ranks;
  sizes.segments = run.gradient_segments();
  sizes.unit = layout.unit_elems_max() * width;
  sizes.all_params = layout.total_elems() * width;
  sizes.words = ParamDataOffsetBytes(layout);
  sizes.region = GradientRegionElems(layout) * width;
  sizes.sum = storage::PinnedArena::MappedBytes(
      GradientRegionElems(layout) * static_cast<std::int64_t>(sizeof(float)));
  return sizes;
}

// Every rank may hold one unit and one is updated.
std::int64_t ParamsLeast(const Sizes& sizes) {
  return std::min((sizes.ranks + 1) * sizes.unit, sizes.all_params);
}

void LeaseParams(const Layout& layout, const Sizes& sizes,
                 const StorageSpec& storage, std::int64_t limit_bytes,
                 MemoryPlan* plan) {
  const std::int64_t width = DtypeBytes(layout.param_dtype());
  plan->params_leased = true;
  plan->param_limit_bytes = limit_bytes;
  plan->leased_elems_max =
      std::max(sizes.unit, (limit_bytes - 2 * sizes.unit) / sizes.ranks) /
      width;
  plan->ahead_units = storage.param_buffers;
  // The product may be larger than any memory.
  plan->ahead_bytes = limit_bytes;
  if (storage.param_buffer_elems <
      limit_bytes / width / storage.param_buffers) {
    plan->ahead_bytes =
        storage.param_buffers * storage.param_buffer_elems * width;
  }
  plan->need.param_bytes = sizes.words + limit_bytes;
}

std::int64_t GradientBytes(const Sizes& sizes, std::int32_t regions) {
  return sizes.segments *
         RoundUp(kSegmentPageBytes + regions * sizes.region, kSegmentPageBytes);
}

// Regions instead of slots, the sums in buffers.
void SpillGradients(const Sizes& sizes, std::int32_t regions,
                    std::int32_t buffers, MemoryPlan* plan) {
  plan->slots = {.ring = true, .slots_per_rank = 1, .regions = regions};
  plan->sum_buffers = buffers;
  plan->need.gradient_bytes = GradientBytes(sizes, regions);
  plan->need.sum_bytes = buffers * sizes.sum;
}

// Divides `budget` (the server's own part is off already): gradients, then
// parameters; what is left is the state's. Returns: false if it does not fit.
bool Divide(const Layout& layout, const JobSpec& job, const Sizes& sizes,
            bool may_spill, std::int64_t budget, MemoryPlan* plan) {
  const bool may_lease = job.storage.params == Placement::kNvme;
  const std::int64_t params_least =
      may_lease ? ParamsLeast(sizes) : sizes.all_params;
  std::int64_t left =
      budget - plan->need.state_bytes - sizes.words - params_least;
  if (may_spill && plan->need.run_bytes() > left) {
    // What is there after the least of everything goes, in this order, to a
    // second region, a second buffer, and buffers for all units.
    if (GradientBytes(sizes, 1) + sizes.sum > plan->need.run_bytes()) {
      return false;  // slots are the least
    }
    SpillGradients(sizes, 1, 1, plan);
    const auto grow = [&](std::int32_t regions, std::int32_t buffers) {
      if (GradientBytes(sizes, regions) + buffers * sizes.sum > left) return;
      SpillGradients(sizes, regions, buffers, plan);
    };
    grow(2, 1);
    grow(2, 2);
    grow(2, std::min(layout.unit_count(), kSumBuffersMax));
  }
  left -= plan->need.run_bytes();
  if (left < 0) return false;
  if (!may_lease) return true;
  const std::int64_t width = DtypeBytes(layout.param_dtype());
  const std::int64_t wanted =
      job.storage.max_in_cpu_elems < sizes.all_params / width
          ? std::max(job.storage.max_in_cpu_elems * width, params_least)
          : sizes.all_params;
  const std::int64_t limit = std::min(wanted, params_least + left);
  if (limit >= sizes.all_params) return true;  // all of them stay in memory
  LeaseParams(layout, sizes, job.storage, limit, plan);
  return true;
}

// What optimizers that look at whole tensors, or at each rank's own gradients,
// ask of a run.
absl::Status CheckOptimizerRun(const JobSpec& job, const RunSpec& run,
                               const SlotPlan& slots) {
  if (job.optimizer.kind == OptimizerKind::kAdam) return absl::OkStatus();
  if (job.optimizer.one_bit() && run.world_size > optim::kOneBitRanksMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "job \"", job.name, "\": ", run.world_size,
        " ranks; signs are added on at most ", optim::kOneBitRanksMax));
  }
  if (job.optimizer.one_bit() && run.shards) {
    return absl::InvalidArgumentError(absl::StrCat(
        "job \"", job.name,
        "\": the ranks reduce their gradients among themselves; a 1-bit "
        "optimizer compresses each rank's own"));
  }
  if (job.optimizer.one_bit() && slots.ring) {
    return absl::InvalidArgumentError(absl::StrCat(
        "job \"", job.name, "\": ", run.local_ranks, " ranks x ",
        run.micro_steps,
        " micro steps; a 1-bit optimizer keeps all of a step's gradients, at "
        "most ",
        kKeptSlotsLimit));
  }
  return absl::OkStatus();
}

}  // namespace

LayoutLimits LayoutLimitsOf(std::int64_t memory_limit_bytes) {
  constexpr std::int64_t kTableBytesMin = std::int64_t{64} << 20;
  const std::int64_t table_bytes =
      std::max(memory_limit_bytes / 16, kTableBytesMin);
  LayoutLimits limits;
  limits.elems_max =
      std::min(limits.elems_max,
               table_bytes / static_cast<std::int64_t>(sizeof(Layout::Chunk)) *
                   kChunkElems);
  return limits;
}

absl::Status CheckElementsFit(const JobSpec& job,
                              std::int64_t memory_limit_bytes) {
  double elems = 0;
  for (const UnitSpec& unit : job.layout.units) {
    for (const ParamSpec& param : unit.params) {
      double product = 1;
      for (const std::int64_t extent : param.shape) {
        // Layout::Create() names extents that mean nothing.
        product *= static_cast<double>(std::max<std::int64_t>(extent, 1));
      }
      elems += product;
    }
  }
  double room = static_cast<double>(memory_limit_bytes);
  if (job.storage.on_nvme()) {
    room = 0;
    for (const std::string& path : job.storage.nvme_paths) {
      std::error_code error;
      const auto space = std::filesystem::space(path, error);
      // Opening the store will say what is wrong with the path.
      if (error) return absl::OkStatus();
      room += static_cast<double>(space.capacity);
    }
  }
  if (elems <= room) return absl::OkStatus();
  if (elems > static_cast<double>(LayoutLimits{}.elems_max)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "job \"%s\": its layout has %.3g elements, more than %d that any job "
        "may have",
        job.name, elems, LayoutLimits{}.elems_max));
  }
  return absl::ResourceExhaustedError(absl::StrFormat(
      "job \"%s\": its layout has %.3g elements, which need more bytes than "
      "that; %s",
      job.name, elems,
      job.storage.on_nvme()
          ? absl::StrFormat("the disks of its NVMe paths have %.0f; add paths",
                            room)
          : absl::StrFormat("the server's memory limit is %.0f bytes; raise "
                            "--memory-limit or put the job on NVMe",
                            room)));
}

absl::StatusOr<MemoryPlan> PlanMemory(const Layout& layout, const JobSpec& job,
                                      const RunSpec& run,
                                      std::int32_t kept_slots_max,
                                      const storage::NvmeStoreInfo* found) {
  MemoryPlan plan;
  const bool one_bit = job.optimizer.one_bit();
  // A sum would mix what each rank has to compress for itself.
  plan.slots = PlanSlots(run, one_bit ? kKeptSlotsLimit : kept_slots_max);
  STOWAGE_RETURN_IF_ERROR(CheckOptimizerRun(job, run, plan.slots));
  plan.need = NeedOf(layout, run, plan.slots);
  if (one_bit) {
    plan.need.one_bit_bytes = OneBitUpdate::Bytes(layout, job.optimizer, run);
  }
  const std::int64_t budget = job.storage.memory_budget_bytes;
  if (!job.storage.on_nvme()) {
    const std::int64_t all =
        plan.need.job_bytes() + plan.need.run_bytes() + kServerOwnBytes;
    if (budget > 0 && budget < all) {
      return TooSmall(job, all, DescribeNeed(plan.need, true, true));
    }
    return plan;
  }
  storage::NvmeStoreOptions asked = AskedStore(layout, job);
  if (found != nullptr) {
    asked.job_id = found->job_id;
    asked.kept_versions = found->kept_versions;
    asked.params = found->params;
    asked.gradient_spill = found->gradient_spill;
    asked.extent_bytes = found->extent_bytes;
  }
  // Masters and moments placed in memory: all of it is cache.
  const bool state_in_memory = job.storage.optimizer == Placement::kMemory;
  if (state_in_memory) {
    asked.cache_bytes =
        3 * layout.state_elems() * static_cast<std::int64_t>(sizeof(float));
  }
  const Sizes sizes = SizesOf(layout, run);
  if (budget == 0) {
    plan.need.state_bytes = storage::NvmePinnedBytes(layout, asked);
    const std::int64_t width = DtypeBytes(layout.param_dtype());
    if (job.storage.params == Placement::kNvme &&
        job.storage.max_in_cpu_elems < sizes.all_params / width) {
      const std::int64_t limit = std::max(job.storage.max_in_cpu_elems * width,
                                          (sizes.ranks + 2) * sizes.unit);
      if (limit < sizes.all_params) {
        LeaseParams(layout, sizes, job.storage, limit, &plan);
      }
    }
    plan.store = std::move(asked);
    return plan;
  }
  plan.need.state_bytes = state_in_memory
                              ? storage::NvmePinnedBytes(layout, asked)
                              : storage::NvmePinnedBytesMin(layout, asked);
  MemoryPlan least = plan;
  if (!Divide(layout, job, sizes, asked.gradient_spill,
              budget - kServerOwnBytes, &plan)) {
    // The figure: the least of each part.
    if (asked.gradient_spill &&
        GradientBytes(sizes, 1) + sizes.sum < least.need.run_bytes()) {
      SpillGradients(sizes, 1, 1, &least);
    }
    if (job.storage.params == Placement::kNvme) {
      least.need.param_bytes = sizes.words + ParamsLeast(sizes);
    }
    return TooSmall(
        job, least.need.job_bytes() + least.need.run_bytes() + kServerOwnBytes,
        DescribeNeed(least.need, true, true));
  }
  if (state_in_memory) {
    plan.store = std::move(asked);
    return plan;
  }
  const std::int64_t others = plan.need.param_bytes + plan.need.run_bytes();
  STOWAGE_ASSIGN_OR_RETURN(
      plan.store, storage::FitNvmeOptions(layout, std::move(asked),
                                          budget - kServerOwnBytes - others));
  plan.need.state_bytes = storage::NvmePinnedBytes(layout, plan.store);
  return plan;
}

}  // namespace stowage::core
