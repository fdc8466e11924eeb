#include "forecast/forecast.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/job_spec.h"
#include "common/status_macros.h"
#include "engine/plan/bucket_plan.h"
#include "optim/onebit_optimizer.h"
#include "server/core/admission.h"
#include "server/core/memory_plan.h"
#include "storage/nvme/nvme_options.h"

namespace stowage::forecast {
namespace {

namespace config = engine::config;

// stowd's default of --kept-slots-max.
constexpr std::int32_t kKeptSlotsMax = 6;
// Of a rank: client, configuration, coordinator, monitors, and what its heap is
// torn into beyond stow-calibrate's (2026-11-26, eight runs of 10 M to 85 M
// parameters: the median of measured rank less stow-calibrate's process).
constexpr std::int64_t kRankOwnBytes = std::int64_t{14} << 20;
// Round trips of a step (prepare and apply) and per unit and micro step (a
// notice, a version word); DESIGN's transport figures on two busy cores.
constexpr double kStepSeconds = 0.5e-3;
constexpr double kUnitSeconds = 40e-6;
// Of one core, for a byte read from or written to disk: its checksum, and the
// calls (tools/bench --nvme --only aio, 2026-11-25: 0.092 s/GB read, 0.099
// written).
constexpr double kDiskCpuSecondsPerByte = 0.1e-9;
constexpr double kSecondsPerDay = 86400;
constexpr std::int64_t kStateBytes = 12;  // master and two moments

JobSpec JobOf(const Workload& workload) {
  JobSpec job;
  job.name = "plan";
  job.layout = workload.layout.spec();
  job.optimizer = config::ToOptimizerSpec(workload.config.optimizer);
  job.durability =
      workload.config.stowage.durability == config::Durability::kPower
          ? Durability::kPower
          : Durability::kMemory;
  job.storage = config::ToStorageSpec(workload.config, workload.local_ranks);
  return job;
}

class Prediction {
 public:
  Prediction(const Workload& workload, const Machine& machine)
      : workload_(workload),
        machine_(machine),
        layout_(workload.layout),
        zero_(workload.config.zero_optimization),
        micros_(workload.config.gradient_accumulation_steps),
        ranks_(workload.local_ranks),
        width_(DtypeBytes(layout_.param_dtype())) {}

  absl::StatusOr<Forecast> Run() {
    offloaded_ = config::OffloadsOptimizer(workload_.config);
    if (offloaded_) {
      STOWAGE_RETURN_IF_ERROR(PlanServer());
    } else {
      PlanRankState();
    }
    PlanRank();
    MoveBytes();
    PlanTime();
    Judge();
    return std::move(forecast_);
  }

 private:
  std::int64_t params() const { return layout_.parameter_count(); }
  // Copies of all gradients that reach the server in a step.
  std::int64_t slots() const {
    return RanksReduce() ? micros_ : ranks_ * micros_;
  }
  bool RanksReduce() const {
    return UsesC10d() && !config::IsOneBit(workload_.config.optimizer.type);
  }

  absl::Status PlanServer() {
    const JobSpec job = JobOf(workload_);
    RunSpec run;
    run.nonce = std::string(16, 'p');
    run.world_size = static_cast<std::int32_t>(workload_.config.world_size);
    run.local_ranks = ranks_;
    run.micro_steps = static_cast<std::int32_t>(micros_);
    run.shards = RanksReduce();
    STOWAGE_ASSIGN_OR_RETURN(
        plan_, core::PlanMemory(layout_, job, run, kKeptSlotsMax));
    forecast_.server_state = plan_.need.state_bytes + plan_.need.one_bit_bytes;
    forecast_.server_params = plan_.need.param_bytes;
    forecast_.server_gradients = plan_.need.run_bytes();
    forecast_.server_own = core::kServerOwnBytes;
    on_disk_ = job.storage.on_nvme();
    if (on_disk_) {
      forecast_.disk_space = storage::NvmeSpaceBytes(layout_, plan_.store);
      PlanDisk(job);
    }
    return absl::OkStatus();
  }

  // What a step reads and writes.
  void PlanDisk(const JobSpec& job) {
    const std::int64_t state = layout_.state_elems() * kStateBytes;
    const std::int64_t cached = std::min(plan_.store.cache_bytes, state);
    const bool power = job.durability == Durability::kPower;
    forecast_.disk_read = state - cached;
    forecast_.disk_written = power ? state : state - cached;
    const std::int64_t all = layout_.total_elems() * width_;
    if (plan_.params_leased) {
      // Written once after the update, read for every use that does not find
      // them in memory: Belady keeps the share that fits.
      const std::int64_t missing = all - std::min(plan_.param_limit_bytes, all);
      leased_read_ = 2 * micros_ * missing;
      forecast_.disk_written += all;
      forecast_.disk_read += leased_read_;
    } else if (plan_.store.params && power) {
      forecast_.disk_written += all;
    }
    if (plan_.sum_buffers > 0 && plan_.sum_buffers < layout_.unit_count()) {
      const std::int64_t sums = layout_.state_elems() * 4;
      forecast_.disk_written += sums;
      forecast_.disk_read += sums;
    }
  }

  // State on the ranks: the c10d exchange shards it over them from stage 1 on.
  void PlanRankState() {
    const std::int64_t shards =
        zero_.stage >= 1
            ? std::max<std::int64_t>(1, workload_.config.world_size)
            : 1;
    forecast_.rank_state = layout_.state_elems() * kStateBytes / shards;
    if (config::IsOneBit(workload_.config.optimizer.type)) {
      std::vector<std::int64_t> elems;
      for (const Layout::Param* param : layout_.TrainableParams()) {
        elems.push_back(param->elems);
      }
      forecast_.rank_state += optim::OneBitOptimizer::StateBytes(
          optim::MakeOneBitSettings(
              config::ToOptimizerSpec(workload_.config.optimizer)),
          elems, static_cast<int>(workload_.config.world_size), /*sides=*/1);
    }
    if (zero_.stage >= 3 &&
        zero_.offload_param.device == config::OffloadDevice::kNone) {
      forecast_.rank_state += layout_.total_elems() * width_ / shards;
    }
  }

  void PlanRank() {
    const std::int64_t all = layout_.total_elems() * width_;
    if (zero_.stage >= 3) {
      std::int64_t limit = zero_.stage3_max_live_parameters;
      if (plan_.params_leased) limit = std::min(limit, plan_.leased_elems_max);
      limit = std::max(limit, layout_.unit_elems_max());
      forecast_.rank_gathered = limit < all / width_ ? limit * width_ : all;
    } else {
      forecast_.rank_params = all;
    }
    if (UsesC10d()) {
      forecast_.rank_exchange = forecast_.rank_gathered + ReduceBuffers();
    }
    if (machine_.compute && machine_.compute->process_bytes >= 0) {
      forecast_.rank_private = machine_.compute->process_bytes + kRankOwnBytes +
                               forecast_.rank_params + forecast_.rank_state +
                               forecast_.rank_exchange;
    }
    forecast_.node_memory =
        forecast_.server_bytes() +
        ranks_ * (forecast_.rank_private >= 0
                      ? forecast_.rank_private
                      : forecast_.rank_params + forecast_.rank_state +
                            forecast_.rank_exchange);
  }

  void MoveBytes() {
    const auto add = [&](const char* what, std::int64_t bytes) {
      if (bytes > 0) forecast_.moved.push_back({what, bytes});
    };
    // Parameters are read in place, once for forward and once for backward.
    add("parameters read by the ranks", slots() * 2 * params() * width_);
    if (zero_.stage < 3 && offloaded_) {
      add("parameters copied to the ranks",
          std::int64_t{2} * ranks_ * params() * width_);
    }
    add("gradients copied into the segments", slots() * 2 * params() * width_);
    add("gradients read for the norm", slots() * params() * width_);
    if (plan_.slots.ring) {
      add("gradient sums", slots() * 8 * params());
    }
    add("the optimizer's pass", AdamBytes());
    add("read from disk", forecast_.disk_read);
    add("written to disk", forecast_.disk_written);
    SendBytes();
  }

  bool UsesC10d() const {
    const config::Config& config = workload_.config;
    return config.stowage.exchange == config::ExchangeKind::kC10d ||
           config.world_size != ranks_ ||
           !config::WhyNotSegments(config).empty();
  }

  // Of engine/exchange/gradient_reducer.h: a unit's gradients, the sums of
  // stages that reduce at the last micro step only, and what is under way, sent
  // and received.
  std::int64_t ReduceBuffers() const {
    std::int64_t own = layout_.unit_elems_max() * width_;
    if (zero_.stage < 2 && micros_ > 1) {
      own += layout_.state_elems() * static_cast<std::int64_t>(sizeof(float));
    }
    if (workload_.config.world_size < 2) return own;
    const std::int64_t all = layout_.total_elems() * width_;
    const std::int64_t bucket = zero_.reduce_bucket_size < all / width_
                                    ? zero_.reduce_bucket_size * width_
                                    : all;
    const std::int64_t under_way =
        std::max(2 * bucket, plan::kReduceUnderWayBytes);
    return own + 2 * std::min(all, under_way);
  }

  // What rank 0 sends to the others (docs/distributed.md, "Volume"); a 1-bit
  // optimizer trains at stage 0 only.
  void SendBytes() {
    const config::Config& config = workload_.config;
    const std::int64_t world = config.world_size;
    if (!UsesC10d() || world < 2) return;
    const auto add = [&](const std::string& what, std::int64_t bytes) {
      if (bytes == 0) return;
      forecast_.moved.push_back(
          {absl::StrCat("sent by a rank: ", what), bytes});
    };
    if (!config::IsOneBit(config.optimizer.type)) {
      const RankTraffic traffic =
          TrafficOf(config, layout_, /*rank=*/0,
                    plan_.params_leased ? plan_.leased_elems_max : 0);
      add("parameters", traffic.params);
      add("gradients", traffic.gradients);
      forecast_.traffic = traffic;
      return;
    }
    const auto of_all = [world](std::int64_t bytes) {
      return bytes / world * (world - 1);
    };
    const auto freeze = config.optimizer.freeze_step;
    add(absl::StrCat("gradients, to step ", freeze),
        of_all(2 * layout_.state_elems() *
               DtypeBytes(config.communication_data_type)));
    // Two messages: a bit an element, a scale a buffer and rank.
    // OneBitLamb sends one buffer.
    const auto tensors =
        config.optimizer.type == config::OptimizerType::kOneBitLamb
            ? std::int64_t{1}
            : static_cast<std::int64_t>(layout_.TrainableParams().size());
    add(absl::StrCat("signs, from step ", freeze + 1),
        of_all(2 * (layout_.trainable_count() / 8 + tensors * 4 * world)));
  }

  std::int64_t AdamBytes() const {
    const std::int64_t gradient = plan_.slots.ring ? 4 : slots() * width_;
    return params() * (2 * kStateBytes + gradient + width_);
  }

  void PlanTime() {
    if (!machine_.compute || !machine_.kernels) {
      forecast_.notes.emplace_back(
          "no step time: this machine was not calibrated");
      return;
    }
    const RankCompute& compute = *machine_.compute;
    const KernelCeilings& kernels = *machine_.kernels;
    const auto micros = static_cast<double>(micros_);
    forecast_.forward = micros * compute.forward_seconds;
    forecast_.backward = micros * compute.backward_seconds;
    // While the ranks compute they use this share of the cores; what the server
    // does meanwhile is paid for by them.
    const double share =
        std::min(1.0, static_cast<double>(ranks_) *
                          static_cast<double>(workload_.threads_per_rank) /
                          static_cast<double>(std::max(1, machine_.cores)));
    const auto bytes = [](std::int64_t value) {
      return static_cast<double>(value);
    };
    // The ranks' copies into the segments are in their backward.
    const double landing =
        bytes(slots() * params() * width_) / kernels.norm_bytes_per_second +
        (plan_.slots.ring
             ? bytes(slots() * 8 * params()) / kernels.copy_bytes_per_second
             : 0.0);
    const double refresh =
        zero_.stage < 3 ? bytes(std::int64_t{2} * ranks_ * params() * width_) /
                              kernels.copy_bytes_per_second
                        : 0.0;
    const double update = bytes(AdamBytes()) / kernels.adam_bytes_per_second;
    const double calls =
        kStepSeconds +
        kUnitSeconds * micros * static_cast<double>(layout_.unit_count());
    double exposed = share * (landing + update) + refresh + calls;
    if (on_disk_ && machine_.disk) {
      const double moved = bytes(forecast_.disk_read + forecast_.disk_written);
      const double disk = moved / machine_.disk->mixed_bytes_per_second;
      // The update and its disk run while the next forward waits for it unit by
      // unit: the longer of the two counts, and the last unit's forward.
      const double forward = compute.forward_seconds + share * update;
      exposed += std::max(
          0.0, disk - forward +
                   compute.forward_seconds /
                       static_cast<double>(std::max(1, layout_.unit_count())));
      // Disk work takes cores from the ranks, and parameters that are given
      // back and fetched again come to fresh pages.
      exposed += share *
                 (moved * kDiskCpuSecondsPerByte +
                  bytes(leased_read_) / kernels.fresh_bytes_per_second) /
                 std::max(1, machine_.cores);
    } else if (on_disk_) {
      forecast_.notes.emplace_back(
          "the disk is not in the step time: it was not measured");
    }
    if (forecast_.traffic) {
      forecast_.notes.emplace_back(
          "what ranks send each other is not in the step time: how fast it "
          "travels was not measured");
    }
    forecast_.optimizer_exposed = exposed;
    forecast_.step = forecast_.forward + forecast_.backward + exposed;
    if (forecast_.disk_written > 0) {
      forecast_.wear_bytes_per_day =
          bytes(forecast_.disk_written) * kSecondsPerDay / forecast_.step;
    }
  }

  void Judge() {
    const auto lacks = [](std::int64_t need, std::int64_t there) {
      return there > 0 && need > there;
    };
    const std::int64_t budget = workload_.config.stowage.memory_budget_bytes;
    const std::int64_t segments =
        forecast_.server_params + forecast_.server_gradients;
    if (lacks(forecast_.node_memory, machine_.memory_bytes)) {
      forecast_.does_not_fit.push_back(absl::StrCat(
          "memory: ", HumanBytes(forecast_.node_memory), " needed, ",
          HumanBytes(machine_.memory_bytes), " available. ", MemoryAdvice()));
    }
    if (lacks(segments, machine_.segment_bytes)) {
      forecast_.does_not_fit.push_back(absl::StrCat(
          "segments: ", HumanBytes(segments), " needed in tmpfs, ",
          HumanBytes(machine_.segment_bytes),
          " free. Enlarge it (mount -o remount,size=...) or take another with "
          "stowage.shm_dir"));
    }
    if (lacks(forecast_.disk_space, machine_.disk_free_bytes)) {
      forecast_.does_not_fit.push_back(absl::StrCat(
          "disk: ", HumanBytes(forecast_.disk_space), " needed, ",
          HumanBytes(machine_.disk_free_bytes),
          " free. Lower stowage.kept_steps (",
          workload_.config.stowage.kept_steps,
          " now), or add a folder on another disk to stowage.nvme_paths"));
    }
    if (budget > 0 && on_disk_ && forecast_.wear_bytes_per_day > 1e13) {
      forecast_.notes.emplace_back(
          "a larger stowage.memory_budget keeps more state in memory and "
          "writes less to the disk");
    }
  }

  std::string MemoryAdvice() const {
    const bool optimizer_on_disk =
        zero_.offload_optimizer.device == config::OffloadDevice::kNvme;
    std::vector<std::string> advice;
    if (!optimizer_on_disk) {
      advice.push_back(absl::StrCat("offload_optimizer.device \"nvme\" takes ",
                                    HumanBytes(forecast_.server_state),
                                    " off it"));
    }
    if (zero_.stage < 3) {
      advice.push_back(absl::StrCat("stage 3 takes ",
                                    HumanBytes(forecast_.rank_params),
                                    " off each rank"));
    } else if (zero_.offload_param.device != config::OffloadDevice::kNvme) {
      advice.push_back(absl::StrCat(
          "offload_param.device \"nvme\" with max_in_cpu 0 takes most of ",
          HumanBytes(forecast_.server_params), " off it"));
    }
    if (optimizer_on_disk) {
      advice.emplace_back("set or lower stowage.memory_budget");
    }
    advice.emplace_back("a smaller micro batch lowers each rank");
    std::string out = "What helps: ";
    for (std::size_t i = 0; i < advice.size(); ++i) {
      absl::StrAppend(&out, i == 0 ? "" : "; ", advice[i]);
    }
    return out;
  }

  const Workload& workload_;
  const Machine& machine_;
  const Layout& layout_;
  const config::ZeroOptimization& zero_;
  const std::int64_t micros_;
  const std::int32_t ranks_;
  const std::int64_t width_;
  bool offloaded_ = false;
  bool on_disk_ = false;
  std::int64_t leased_read_ = 0;  // parameters fetched from disk in a step
  core::MemoryPlan plan_;
  Forecast forecast_;
};

}  // namespace

absl::StatusOr<Forecast> Predict(const Workload& workload,
                                 const Machine& machine) {
  return Prediction(workload, machine).Run();
}

}  // namespace stowage::forecast
