#include "server/core/step_update.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/cache_size.h"
#include "common/check.h"
#include "common/crash_point.h"
#include "common/status_macros.h"
#include "optim/step_constants.h"
#include "server/core/memory_plan.h"

namespace stowage::core {

absl::StatusOr<std::shared_ptr<const UpdateOrder>> UpdateOrder::Create(
    const Layout& layout, std::span<const std::int32_t> first) {
  auto order = std::make_shared<UpdateOrder>();
  std::vector<bool> placed(static_cast<std::size_t>(layout.unit_count()));
  for (const std::int32_t unit : first) {
    if (unit < 0 || unit >= layout.unit_count()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "forward order: unit ", unit, " of ", layout.unit_count()));
    }
    if (placed[static_cast<std::size_t>(unit)]) {
      return absl::InvalidArgumentError(
          absl::StrCat("forward order: unit \"",
                       layout.units()[static_cast<std::size_t>(unit)].name,
                       "\" appears twice"));
    }
    placed[static_cast<std::size_t>(unit)] = true;
    order->units_.push_back(unit);
  }
  for (std::int32_t unit = 0; unit < layout.unit_count(); ++unit) {
    if (!placed[static_cast<std::size_t>(unit)]) order->units_.push_back(unit);
  }
  order->chunks_.reserve(layout.chunks().size());
  for (const std::int32_t unit : order->units_) {
    for (std::int64_t c = layout.chunk_begin(unit);
         c < layout.chunk_begin(unit + 1); ++c) {
      order->chunks_.push_back(static_cast<std::int32_t>(c));
    }
  }
  return std::shared_ptr<const UpdateOrder>(std::move(order));
}

namespace {

// Ends a pass that failed with `status`. Returns: it, or kDataLoss if the store
// is not back at its last commit.
absl::Status Abandon(storage::StateStore& store, const absl::Status& status) {
  const absl::Status abandoned = store.Abandon();
  if (abandoned.ok()) return status;
  return absl::DataLossError(
      absl::StrCat(status.message(), "; ", abandoned.message()));
}

optim::ChunkState StateAt(const StepUpdateContext& context,
                          std::int64_t position) {
  const storage::StateView view = context.store.View(position);
  return {view.master, view.moment1, view.moment2};
}

struct UnitPart {
  std::int32_t unit = 0;
  std::int32_t next = -1;  // the unit after it in the window, or -1
};

// Extends `part` to the end of the unit that it begins with, within `window`.
UnitPart NextUnitPart(const StepUpdateContext& context,
                      const storage::UpdateWindow& window,
                      storage::UpdateWindow* part) {
  const auto unit_at = [&](std::int64_t position) {
    return context.layout
        .chunks()[static_cast<std::size_t>(
            context.order.chunks()[static_cast<std::size_t>(position)])]
        .unit_index;
  };
  UnitPart result{.unit = unit_at(part->begin)};
  while (part->end < window.end && unit_at(part->end) == result.unit) {
    ++part->end;
  }
  if (part->end < window.end) result.next = unit_at(part->end);
  return result;
}

}  // namespace

absl::Status CheckSegments(const ParamSegment& params,
                           const RunGradients& run) {
  if (const std::int32_t rank = run.BrokenRank(); rank >= 0) {
    return absl::DataLossError(absl::StrCat(
        "the gradient segment of rank ", rank, " (", run.file_name(rank),
        ") was truncated by another process"));
  }
  if (params.broken()) {
    return absl::DataLossError(
        absl::StrCat("the parameter segment (", params.file_name(),
                     ") was truncated by another process"));
  }
  return absl::OkStatus();
}

namespace {

// Gradient of one rank, master, moments, copy: what an update touches.
std::int64_t PassBytes(const Layout& layout) {
  return layout.state_elems() * (12 + 2 * DtypeBytes(layout.param_dtype()));
}

}  // namespace

StepUpdate::StepUpdate(const Layout& layout,
                       std::unique_ptr<OneBitUpdate> one_bit)
    : copy_stays_cached_(FitsLastLevelCache(PassBytes(layout))),
      constants_(static_cast<std::size_t>(layout.group_count())),
      chunks_left_(std::make_unique<std::atomic<std::int32_t>[]>(
          static_cast<std::size_t>(layout.unit_count()))),
      one_bit_(std::move(one_bit)) {}

TrustRatios StepUpdate::trust_ratios() const {
  if (one_bit_ != nullptr) return one_bit_->trust_ratios();
  return lamb_ == nullptr ? TrustRatios{} : lamb_->summary();
}

absl::Status StepUpdate::CheckRoundIn(std::int32_t round, std::int32_t rank) {
  bool good = true;
  if (one_bit_ != nullptr) {
    good = one_bit_->ScalesAreFinite(RoundIn(round, rank));
  } else {
    for (const optim::LambNorms& norms : all_norms_) {
      // The update's may be infinite, the ratio is then min_coeff; not a NaN.
      good = good && norms.weight >= 0 && norms.update >= 0;
    }
  }
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "round ", round, ": what the other nodes gave has numbers that are not"));
}

void StepUpdate::Publish(const StepUpdateContext& context, std::int32_t unit,
                         std::int64_t step) {
  context.params.PublishVersion(unit, step);
  if (context.run.AnyWaiter()) context.params.WakeVersion(unit);
}

absl::StatusOr<storage::CommitRecord> StepUpdate::Run(
    const StepUpdateContext& context, const storage::CommitRecord& from,
    const ApplyArgs& args, ComputeTeam& team, bool* touched) {
  *touched = false;
  STOWAGE_RETURN_IF_ERROR(CheckSegments(context.params, context.run));
  storage::CommitRecord record;
  record.step = from.step + 1;
  record.applied_steps = from.applied_steps + (args.skip ? 0 : 1);
  record.client_state = args.client_state;
  *touched = true;
  CrashPoint("apply-begun");
  // Units that this step does not change are ready at once.
  for (const std::int32_t unit : context.order.units()) {
    const bool trainable =
        context.layout.units()[static_cast<std::size_t>(unit)].trainable_elems >
        0;
    if (!trainable) {
      context.params.PublishLanded(unit, record.step * context.micro_steps);
    }
    if (args.skip || !trainable) Unchanged(context, unit, record.step);
  }
  if (!args.skip) {
    STOWAGE_RETURN_IF_ERROR(Update(context, args, record.applied_steps, team));
  }
  CrashPoint("update-done");
  absl::Status status;
  if (context.residency != nullptr) status = context.residency->Settle();
  if (status.ok()) status = context.store.Commit(record);
  if (!status.ok()) return Abandon(context.store, status);
  return record;
}

void StepUpdate::MakeConstants(const StepUpdateContext& context,
                               const ApplyArgs& args, std::int64_t t) {
  const OptimizerSpec& optimizer = context.optimizer;
  const bool is_lamb = optimizer.kind == OptimizerKind::kLamb;
  std::vector<optim::LambConstants> lamb(is_lamb ? constants_.size() : 0);
  for (std::size_t g = 0; g < constants_.size(); ++g) {
    if (context.layout.spec().groups[g].frozen) continue;
    const GroupStep& group = args.groups[g];
    if (is_lamb) {
      lamb[g] =
          optim::LambStepConstants(optimizer, group, t, args.gradient_factor);
      continue;
    }
    constants_[g] =
        optim::AdamStepConstants(optimizer, group, t, args.gradient_factor);
  }
  if (!is_lamb) return;
  if (lamb_ == nullptr) {
    lamb_ = std::make_unique<optim::TrustRatioUpdate>(context.layout,
                                                      context.layout.chunks());
  }
  lamb_->BeginStep(lamb);
}

absl::Status StepUpdate::MeasureNorms(const StepUpdateContext& context,
                                      ComputeTeam& team) {
  STOWAGE_RETURN_IF_ERROR(context.store.BeginScan(context.order.chunks()));
  absl::Status status;
  while (status.ok()) {
    const absl::StatusOr<storage::UpdateWindow> window =
        context.store.AcquireNext();
    status = window.status();
    if (!status.ok() || window->empty()) break;
    status = MeasureWindow(context, *window, team);
    if (status.ok()) status = context.store.Release(*window);
  }
  status.Update(context.store.EndScan());
  status.Update(CheckSegments(context.params, context.run));
  return status;
}

absl::Status StepUpdate::MakeRound(const StepUpdateContext& context,
                                   const storage::CommitRecord& from,
                                   const ApplyArgs& args, std::int32_t round,
                                   std::int32_t rank, ComputeTeam& team) {
  STOWAGE_RETURN_IF_ERROR(CheckSegments(context.params, context.run));
  const std::int64_t t = from.applied_steps + 1;
  if (one_bit_ == nullptr) {
    MakeConstants(context, args, t);
    STOWAGE_RETURN_IF_ERROR(MeasureNorms(context, team));
    const auto keep = [this](std::span<optim::LambNorms> norms) {
      norms_.assign(norms.begin(), norms.end());
      all_norms_.resize(norms.size());
      return absl::OkStatus();
    };
    return lamb_->Combine(keep);
  }
  const OneBitContext one_bit{.kernels = context.kernels,
                              .params = context.params,
                              .run = context.run,
                              .gradients = context.gradients};
  if (round > 0) {
    one_bit_->Serve(one_bit, rank);
    return absl::OkStatus();
  }
  // A scan, so that the store says where its arrays are.
  STOWAGE_RETURN_IF_ERROR(context.store.BeginScan(context.order.chunks()));
  const absl::StatusOr<storage::UpdateWindow> window =
      context.store.AcquireNext();
  absl::Status status = window.status();
  if (status.ok()) {
    STOWAGE_CHECK(window->end ==
                  static_cast<std::int64_t>(context.order.chunks().size()));
    one_bit_->Compress(one_bit, context.store, context.order.chunks(), args, t,
                       team);
    status = context.store.Release(*window);
  }
  status.Update(context.store.EndScan());
  status.Update(CheckSegments(context.params, context.run));
  return status;
}

std::span<const std::byte> StepUpdate::RoundOut(std::int32_t round,
                                                std::int32_t rank) {
  if (one_bit_ == nullptr) return std::as_bytes(std::span(norms_));
  return round == 0 ? one_bit_->outgoing(rank) : one_bit_->served(rank);
}

std::span<std::byte> StepUpdate::RoundIn(std::int32_t round,
                                         std::int32_t rank) {
  if (one_bit_ == nullptr) return std::as_writable_bytes(std::span(all_norms_));
  return round == 0 ? one_bit_->incoming(rank) : one_bit_->gathered();
}

// Sums on NVMe are brought in unit by unit.
absl::Status StepUpdate::MeasureWindow(const StepUpdateContext& context,
                                       const storage::UpdateWindow& window,
                                       ComputeTeam& team) {
  const ChunkWork measure = [&](std::int64_t position) {
    const std::int32_t chunk =
        context.order.chunks()[static_cast<std::size_t>(position)];
    RunGradients::SlotPointers pointers;
    lamb_->Measure(
        context.kernels, chunk,
        context.run.StepSource(
            context.gradients,
            context.layout.chunks()[static_cast<std::size_t>(chunk)], pointers),
        StateAt(context, position));
  };
  if (context.run.spill() == nullptr) {
    return ForChunks(context, window, team, measure);
  }
  for (storage::UpdateWindow part{window.begin, window.begin};
       part.begin < window.end; part.begin = part.end) {
    const UnitPart next = NextUnitPart(context, window, &part);
    STOWAGE_RETURN_IF_ERROR(BringSumIn(context, next.unit, next.next));
    STOWAGE_RETURN_IF_ERROR(ForChunks(context, part, team, measure));
  }
  return absl::OkStatus();
}

absl::Status StepUpdate::Update(const StepUpdateContext& context,
                                const ApplyArgs& args, std::int64_t t,
                                ComputeTeam& team) {
  if (one_bit_ != nullptr) return UpdateOneBit(context, args, t, team);
  MakeConstants(context, args, t);
  if (context.optimizer.kind == OptimizerKind::kLamb) {
    if (context.rounds.Count(t) == 0) {
      STOWAGE_RETURN_IF_ERROR(MeasureNorms(context, team));
      STOWAGE_RETURN_IF_ERROR(lamb_->Combine(/*reduce=*/nullptr));
    } else {
      STOWAGE_RETURN_IF_ERROR(
          lamb_->Combine([this](std::span<optim::LambNorms> norms) {
            std::copy(all_norms_.begin(), all_norms_.end(), norms.begin());
            return absl::OkStatus();
          }));
    }
  }
  for (std::int32_t u = 0; u < context.layout.unit_count(); ++u) {
    chunks_left_[static_cast<std::size_t>(u)].store(
        static_cast<std::int32_t>(context.layout.chunk_begin(u + 1) -
                                  context.layout.chunk_begin(u)),
        std::memory_order_relaxed);
  }
  STOWAGE_RETURN_IF_ERROR(context.store.BeginUpdate(context.order.chunks()));
  for (;;) {
    absl::StatusOr<storage::UpdateWindow> window = context.store.AcquireNext();
    absl::Status status = window.status();
    if (status.ok() && window->empty()) return absl::OkStatus();
    if (status.ok()) {
      status = context.residency == nullptr && context.run.spill() == nullptr
                   ? UpdatePart(context, *window, args.step + 1, team)
                   : UpdateUnits(context, *window, args.step + 1, team);
      if (status.ok()) status = context.store.Release(*window);
    }
    if (status.ok()) status = CheckSegments(context.params, context.run);
    if (!status.ok()) {
      return Abandon(context.store, status);
    }
  }
}

// Whole tensors at once; state and sums lie in memory (CheckJobSpec()).
absl::Status StepUpdate::UpdateOneBit(const StepUpdateContext& context,
                                      const ApplyArgs& args, std::int64_t t,
                                      ComputeTeam& team) {
  const std::vector<std::int32_t>& order = context.order.chunks();
  STOWAGE_RETURN_IF_ERROR(context.store.BeginUpdate(order));
  const absl::StatusOr<storage::UpdateWindow> window =
      context.store.AcquireNext();
  absl::Status status = window.status();
  if (status.ok()) {
    STOWAGE_CHECK(window->end == static_cast<std::int64_t>(order.size()));
    for (std::int64_t i = 0; i < window->end; ++i) {
      context.store.BeforeUpdate(i);  // a snapshot may want them as they are
    }
    one_bit_->Step({.kernels = context.kernels,
                    .params = context.params,
                    .run = context.run,
                    .gradients = context.gradients},
                   context.store, order, args, t, team);
    status = context.store.Release(*window);
  }
  if (status.ok()) status = CheckSegments(context.params, context.run);
  if (!status.ok()) return Abandon(context.store, status);
  for (const std::int32_t unit : context.order.units()) {
    if (context.layout.units()[static_cast<std::size_t>(unit)].trainable_elems >
        0) {
      Publish(context, unit, args.step + 1);
    }
  }
  return absl::OkStatus();
}

// All chunks of a part of a window at once, each checked before its work.
absl::Status StepUpdate::ForChunks(const StepUpdateContext& context,
                                   const storage::UpdateWindow& part,
                                   ComputeTeam& team, const ChunkWork& work) {
  team.ParallelFor(part.end - part.begin, [&](std::int64_t index) {
    const std::int64_t position = part.begin + index;
    if (absl::Status verified = context.store.VerifyChunk(position);
        verified.ok()) {
      work(position);
    } else {
      MutexLock lock(mutex_);
      unverified_.Update(std::move(verified));
    }
  });
  MutexLock lock(mutex_);
  return std::exchange(unverified_, absl::OkStatus());
}

absl::Status StepUpdate::UpdatePart(const StepUpdateContext& context,
                                    const storage::UpdateWindow& part,
                                    std::int64_t step, ComputeTeam& team) {
  return ForChunks(context, part, team, [&](std::int64_t position) {
    context.store.BeforeUpdate(position);
    UpdateChunk(context, position, step);
  });
}

// The window unit by unit; one that goes on in the next window stays open.
absl::Status StepUpdate::UpdateUnits(const StepUpdateContext& context,
                                     const storage::UpdateWindow& window,
                                     std::int64_t step, ComputeTeam& team) {
  for (storage::UpdateWindow part{window.begin, window.begin};
       part.begin < window.end; part.begin = part.end) {
    const auto [unit, next] = NextUnitPart(context, window, &part);
    STOWAGE_RETURN_IF_ERROR(BringIn(context, unit, next));
    STOWAGE_RETURN_IF_ERROR(UpdatePart(context, part, step, team));
    if (chunks_left_[static_cast<std::size_t>(unit)].load() > 0) continue;
    if (SumSpill* spill = context.run.spill(); spill != nullptr) {
      STOWAGE_RETURN_IF_ERROR(spill->Drop(unit));
    }
    if (context.residency == nullptr) continue;
    std::vector<LeaseGrant> grants;
    context.residency->EndWrite(unit, step, &grants);
    context.deliver(grants);
  }
  return absl::OkStatus();
}

// The unit's sum, if sums lie on NVMe; that of `next` (or -1) is begun.
absl::Status StepUpdate::BringSumIn(const StepUpdateContext& context,
                                    std::int32_t unit, std::int32_t next) {
  const auto started = [&](std::int32_t u) {
    return context.gradients.sum_started[static_cast<std::size_t>(u)] != 0;
  };
  if (SumSpill* spill = context.run.spill(); spill != nullptr) {
    STOWAGE_RETURN_IF_ERROR(spill->Acquire(unit, started(unit)));
    if (next >= 0 && started(next)) {
      STOWAGE_RETURN_IF_ERROR(spill->ReadAhead(next));
    }
  }
  return absl::OkStatus();
}

// What an update of `unit` needs in memory; `next` (or -1) is begun.
absl::Status StepUpdate::BringIn(const StepUpdateContext& context,
                                 std::int32_t unit, std::int32_t next) {
  STOWAGE_RETURN_IF_ERROR(BringSumIn(context, unit, next));
  if (context.residency == nullptr) return absl::OkStatus();
  // Frozen values are no part of the update: they have to be there.
  return context.residency->BeginWrite(
      unit,
      /*load=*/
      HasFrozen(context.layout.units()[static_cast<std::size_t>(unit)]),
      /*give_up=*/false);
}

void StepUpdate::Unchanged(const StepUpdateContext& context, std::int32_t unit,
                           std::int64_t step) {
  Publish(context, unit, step);
  if (context.residency == nullptr) return;
  std::vector<LeaseGrant> grants;
  context.residency->Advance(unit, step, &grants);
  context.deliver(grants);
}

void StepUpdate::UpdateChunk(const StepUpdateContext& context,
                             std::int64_t position, std::int64_t step) {
  const std::int32_t index =
      context.order.chunks()[static_cast<std::size_t>(position)];
  const Layout::Chunk& chunk =
      context.layout.chunks()[static_cast<std::size_t>(index)];
  const storage::StateView view = context.store.View(position);
  RunGradients::SlotPointers pointers;
  const optim::GradientSource gradient =
      context.run.StepSource(context.gradients, chunk, pointers);
  void* const copy = context.params.param(chunk.unit_index, chunk.begin_elems);
  if (context.optimizer.kind == OptimizerKind::kLamb) {
    lamb_->Update(context.kernels, index, gradient,
                  {view.master, view.moment1, view.moment2}, copy);
  } else {
    context.kernels.adam(
        constants_[static_cast<std::size_t>(chunk.group_index)], gradient,
        {.elems = chunk.elems,
         .master = view.master,
         .moment1 = view.moment1,
         .moment2 = view.moment2,
         .copy = copy,
         .copy_dtype = context.layout.param_dtype(),
         .copy_stays_cached = copy_stays_cached_});
  }
  context.store.ChunkUpdated(position);
  if (chunks_left_[static_cast<std::size_t>(chunk.unit_index)].fetch_sub(
          1, std::memory_order_acq_rel) == 1) {
    CrashPoint("unit-updated");
    Publish(context, chunk.unit_index, step);
  }
}

}  // namespace stowage::core
