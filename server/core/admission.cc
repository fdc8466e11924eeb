#include "server/core/admission.h"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/segment_format.h"
#include "common/status_macros.h"
#include "storage/host/host_store.h"
#include "storage/host/pinned_arena.h"

namespace stowage::core {
namespace {

absl::Status CheckGroupStep(const GroupStep& step, const std::string& what) {
  const auto bad = [&](const char* field, double value, const char* bound) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": ", field, " is ", value, ", must be ", bound));
  };
  // Kernels work in fp32, so a value must be usable as one.
  const auto finite = [](double value) {
    return std::isfinite(static_cast<float>(value));
  };
  if (!finite(step.lr) || step.lr < 0) {
    return bad("lr", step.lr, "finite and at least 0");
  }
  if (!(step.beta1 >= 0 && step.beta1 < 1)) {
    return bad("beta1", step.beta1, "in [0, 1)");
  }
  if (!(step.beta2 >= 0 && step.beta2 < 1)) {
    return bad("beta2", step.beta2, "in [0, 1)");
  }
  // With eps 0 an element that never had a gradient becomes 0 / 0.
  if (!finite(step.eps) || !(static_cast<float>(step.eps) > 0)) {
    return bad("eps", step.eps, "finite and above 0 in fp32");
  }
  if (!finite(step.weight_decay) || step.weight_decay < 0) {
    return bad("weight_decay", step.weight_decay, "finite and at least 0");
  }
  return absl::OkStatus();
}

}  // namespace

SlotPlan PlanSlots(const RunSpec& run, std::int32_t kept_slots_max) {
  const std::int64_t slots =
      static_cast<std::int64_t>(run.gradient_segments()) * run.micro_steps;
  if (slots <= std::min(kept_slots_max, kKeptSlotsLimit)) {
    return {.ring = false, .slots_per_rank = run.micro_steps};
  }
  return {.ring = true, .slots_per_rank = 1};
}

MemoryNeed NeedOf(const Layout& layout, const RunSpec& run,
                  const SlotPlan& plan) {
  MemoryNeed need;
  need.state_bytes = storage::HostStore::PinnedBytes(layout);
  need.param_bytes = ParamSegmentBytes(layout);
  need.gradient_bytes = run.gradient_segments() *
                        GradientSegmentBytes(layout, plan.slots_per_rank);
  if (plan.ring) {
    need.sum_bytes = storage::PinnedArena::MappedBytes(
        layout.state_elems() * static_cast<std::int64_t>(sizeof(float)));
  }
  return need;
}

std::string DescribeNeed(const MemoryNeed& need, bool job_part, bool run_part) {
  std::string text;
  if (job_part) {
    absl::StrAppend(&text, "optimizer state ", HumanBytes(need.state_bytes),
                    ", parameters ", HumanBytes(need.param_bytes));
    if (need.one_bit_bytes > 0) {
      absl::StrAppend(&text, ", errors of the ranks' signs ",
                      HumanBytes(need.one_bit_bytes));
    }
  }
  if (run_part) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", "gradient slots ",
                    HumanBytes(need.gradient_bytes));
    if (need.sum_bytes > 0) {
      absl::StrAppend(&text, ", gradient sums ", HumanBytes(need.sum_bytes));
    }
  }
  return text;
}

absl::Status CheckJobSpec(const JobSpec& job) {
  if (job.name.empty() ||
      static_cast<std::int64_t>(job.name.size()) > kJobNameBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("job name: ", job.name.size(), " bytes, expected 1 to ",
                     kJobNameBytesMax));
  }
  for (const char c : job.name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' &&
        c != '_' && c != '-') {
      return absl::InvalidArgumentError(
          "job name: only letters, digits, '.', '_' and '-' are allowed");
    }
  }
  if (job.optimizer.kind < OptimizerKind::kAdam ||
      job.optimizer.kind > OptimizerKind::kOneBitLamb) {
    return absl::InvalidArgumentError(
        absl::StrCat("job \"", job.name, "\": unknown optimizer kind ",
                     static_cast<int>(job.optimizer.kind)));
  }
  if (job.optimizer.one_bit() && job.storage.on_nvme()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "job \"", job.name,
        "\": 1-bit optimizers keep their state in memory; place optimizer and "
        "parameters there"));
  }
  if (job.durability != Durability::kMemory &&
      job.durability != Durability::kPower) {
    return absl::InvalidArgumentError(
        absl::StrCat("job \"", job.name, "\": unknown durability ",
                     static_cast<int>(job.durability)));
  }
  if (job.durability == Durability::kPower && !job.storage.on_nvme()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "job \"", job.name,
        "\": durability `power` needs state on NVMe; all of it is placed in "
        "memory, which offers `memory`"));
  }
  if (job.storage.on_nvme() == job.storage.nvme_paths.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("job \"", job.name, "\": ", job.storage.nvme_paths.size(),
                     " nvme paths for state ",
                     job.storage.on_nvme() ? "on NVMe" : "in memory"));
  }
  return absl::OkStatus();
}

absl::Status CheckRunSpec(const RunSpec& run, std::int32_t local_rank) {
  if (run.nonce.size() < 16 || run.nonce.size() > 64) {
    return absl::InvalidArgumentError(absl::StrCat(
        "run nonce: ", run.nonce.size(), " bytes, expected 16 to 64"));
  }
  if (run.world_size < 1 || run.world_size > kWorldSizeMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "world size ", run.world_size, ", expected 1 to ", kWorldSizeMax));
  }
  if (run.local_ranks < 1 || run.local_ranks > kLocalRanksMax ||
      run.local_ranks > run.world_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("local ranks ", run.local_ranks, ", expected 1 to ",
                     std::min(kLocalRanksMax, run.world_size)));
  }
  if (run.micro_steps < 1 || run.micro_steps > kMicroStepsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "micro steps ", run.micro_steps, ", expected 1 to ", kMicroStepsMax));
  }
  if (run.first_rank < 0 || run.first_rank > run.world_size - run.local_ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("first rank of this node ", run.first_rank,
                     ", expected 0 to ", run.world_size - run.local_ranks));
  }
  if (local_rank < 0 || local_rank >= run.local_ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("local rank ", local_rank, " of ", run.local_ranks));
  }
  return absl::OkStatus();
}

absl::Status CheckApplyArgs(const ApplyArgs& args, const Layout& layout) {
  if (static_cast<std::int64_t>(args.client_state.size()) >
      kClientStateBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("apply: client state of ", args.client_state.size(),
                     " bytes, at most ", kClientStateBytesMax));
  }
  if (static_cast<std::int64_t>(args.groups.size()) != layout.group_count()) {
    return absl::InvalidArgumentError(
        absl::StrCat("apply: constants for ", args.groups.size(),
                     " parameter groups, the job has ", layout.group_count()));
  }
  if (args.skip) return absl::OkStatus();
  if (!std::isfinite(static_cast<float>(args.gradient_factor))) {
    return absl::InvalidArgumentError(absl::StrCat("apply: gradient_factor is ",
                                                   args.gradient_factor,
                                                   ", must be finite in fp32"));
  }
  for (std::size_t g = 0; g < args.groups.size(); ++g) {
    const GroupSpec& group = layout.spec().groups[g];
    if (group.frozen) continue;
    STOWAGE_RETURN_IF_ERROR(CheckGroupStep(
        args.groups[g],
        absl::StrCat("apply: parameter group \"", group.name, "\"")));
  }
  return absl::OkStatus();
}

std::string FirstDifference(const ApplyArgs& repeat, const ApplyArgs& first) {
  if (repeat.step != first.step) return "step";
  if (repeat.skip != first.skip) return "skip";
  if (repeat.client_state != first.client_state) return "client_state";
  if (first.skip) return "";
  if (repeat.gradient_factor != first.gradient_factor) return "gradient_factor";
  if (repeat.groups.size() != first.groups.size()) return "groups";
  for (std::size_t g = 0; g < first.groups.size(); ++g) {
    const GroupStep& a = repeat.groups[g];
    const GroupStep& b = first.groups[g];
    if (a == b) continue;
    const char* field = a.lr != b.lr         ? "lr"
                        : a.beta1 != b.beta1 ? "beta1"
                        : a.beta2 != b.beta2 ? "beta2"
                        : a.eps != b.eps     ? "eps"
                                             : "weight_decay";
    return absl::StrCat("groups[", g, "].", field);
  }
  return "";
}

}  // namespace stowage::core
