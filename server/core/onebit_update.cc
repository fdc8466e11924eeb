#include "server/core/onebit_update.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/dtype.h"

namespace stowage::core {
namespace {

// A tensor as the kernels' sources see it: a chunk of its own.
Layout::Chunk ChunkOf(const Layout::Param& param) {
  return {.unit_index = param.unit_index,
          .group_index = param.group_index,
          .begin_elems = param.begin_elems,
          .elems = param.elems};
}

// Whose errors this node keeps.
optim::OneBitOptimizer::CarriedRanks RanksOf(const RunSpec& run) {
  return {.first = run.first_rank,
          .held = run.local_ranks,
          .ranks = run.world_size};
}

std::vector<optim::OneBitTensor> Unbound(const Layout& layout) {
  std::vector<optim::OneBitTensor> tensors;
  for (const Layout::Param* param : layout.TrainableParams()) {
    tensors.push_back({.elems = param->elems, .group = param->group_index});
  }
  return tensors;
}

}  // namespace

std::int64_t OneBitUpdate::Bytes(const Layout& layout,
                                 const OptimizerSpec& optimizer,
                                 const RunSpec& run) {
  std::vector<std::int64_t> elems;
  for (const Layout::Param* param : layout.TrainableParams()) {
    elems.push_back(param->elems);
  }
  const optim::OneBitSettings settings = optim::MakeOneBitSettings(optimizer);
  // What a step says of each rank's gradient of each tensor.
  const std::int64_t sources =
      static_cast<std::int64_t>(sizeof(RunGradients::SlotPointers) +
                                sizeof(optim::GradientSource)) *
      static_cast<std::int64_t>(elems.size()) * run.local_ranks;
  if (!run.spread()) {
    return sources +
           optim::OneBitOptimizer::StateBytes(settings, elems, run.world_size,
                                              /*sides=*/run.world_size);
  }
  return sources +
         optim::OneBitOptimizer::StateBytes(settings, elems, RanksOf(run));
}

OneBitUpdate::OneBitUpdate(const Layout& layout, const OptimizerSpec& optimizer,
                           const RunSpec& run,
                           storage::MemoryReservation reservation)
    : layout_(layout),
      spread_(run.spread()),
      ranks_(RanksOf(run)),
      reservation_bytes_(Bytes(layout, optimizer, run)),
      reservation_(std::move(reservation)),
      tensors_(layout.TrainableParams()),
      optimizer_(optim::MakeOneBitSettings(optimizer), Unbound(layout),
                 layout.param_dtype(), ranks_) {
  if (spread_) gathered_.resize(Side(0).outgoing().size());
}

std::string OneBitUpdate::Who() const {
  if (!spread_) return absl::StrCat(ranks_.ranks, " ranks");
  return absl::StrCat("ranks ", ranks_.first, " to ",
                      ranks_.first + ranks_.held - 1, " of ", ranks_.ranks);
}

absl::Status OneBitUpdate::CheckRanks(const RunSpec& run) const {
  const auto theirs = RanksOf(run);
  if (spread_ == run.spread() && theirs.first == ranks_.first &&
      theirs.held == ranks_.held && theirs.ranks == ranks_.ranks) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "ranks ", theirs.first, " to ", theirs.first + theirs.held - 1, " of ",
      theirs.ranks, "; its 1-bit optimizer keeps the errors of ", Who(),
      ", start the same"));
}

void OneBitUpdate::Bind(const OneBitContext& context,
                        storage::StateStore& store,
                        const std::vector<std::int32_t>& chunk_order) {
  // Where each unit's arrays begin: its first chunk's, less what lies before.
  std::vector<storage::StateView> begins(
      static_cast<std::size_t>(layout_.unit_count()));
  for (std::size_t i = 0; i < chunk_order.size(); ++i) {
    const Layout::Chunk& chunk =
        layout_.chunks()[static_cast<std::size_t>(chunk_order[i])];
    if (chunk.begin_elems == 0) {
      begins[static_cast<std::size_t>(chunk.unit_index)] =
          store.View(static_cast<std::int64_t>(i));
    }
  }
  std::vector<optim::OneBitTensor> tensors;
  for (const Layout::Param* param : tensors_) {
    const storage::StateView& begin =
        begins[static_cast<std::size_t>(param->unit_index)];
    STOWAGE_CHECK(begin.master != nullptr);
    tensors.push_back(
        {.elems = param->elems,
         .group = param->group_index,
         .master = begin.master + param->begin_elems,
         .moment1 = begin.moment1 + param->begin_elems,
         .moment2 = begin.moment2 + param->begin_elems,
         .copy = context.params.param(param->unit_index, param->begin_elems)});
  }
  optimizer_.Bind(std::move(tensors));
  bound_ = true;
}

std::vector<optim::GradientSource> OneBitUpdate::Sources(
    const OneBitContext& context, bool each_rank, Pointers& pointers) const {
  const std::int32_t sides = each_rank ? ranks_.held : 1;
  pointers.resize(static_cast<std::size_t>(sides) * tensors_.size());
  std::vector<optim::GradientSource> sources;
  for (std::int32_t side = 0; side < sides; ++side) {
    for (const Layout::Param* param : tensors_) {
      const Layout::Chunk chunk = ChunkOf(*param);
      RunGradients::SlotPointers& slots = pointers[sources.size()];
      sources.push_back(
          each_rank
              ? context.run.RankSource(context.gradients, chunk, side, slots)
              : context.run.StepSource(context.gradients, chunk, slots));
    }
  }
  return sources;
}

optim::OneBitStepArgs OneBitUpdate::StepArgs(
    const ApplyArgs& args, std::int64_t t,
    std::span<const optim::GradientSource> sources, ComputeTeam& team) const {
  // The factor divides by all micro-batches; a rank's own are a share of them.
  const int share = optimizer_.compressed(t) ? ranks_.ranks : 1;
  return {.t = t,
          .gradient_factor = args.gradient_factor * share,
          .groups = args.groups,
          .gradients = sources,
          .parallel = [&team](std::int64_t count,
                              const std::function<void(std::int64_t)>& work) {
            team.ParallelFor(count, work);
          }};
}

void OneBitUpdate::Compress(const OneBitContext& context,
                            storage::StateStore& store,
                            const std::vector<std::int32_t>& chunk_order,
                            const ApplyArgs& args, std::int64_t t,
                            ComputeTeam& team) {
  if (tensors_.empty()) return;
  if (!bound_) Bind(context, store, chunk_order);
  Pointers pointers;
  const std::vector<optim::GradientSource> sources =
      Sources(context, /*each_rank=*/true, pointers);
  optimizer_.Compress(context.kernels, StepArgs(args, t, sources, team));
}

void OneBitUpdate::Serve(const OneBitContext& context, std::int32_t rank) {
  if (tensors_.empty()) return;
  optimizer_.Serve(context.kernels, static_cast<std::size_t>(rank));
}

void OneBitUpdate::Step(const OneBitContext& context,
                        storage::StateStore& store,
                        const std::vector<std::int32_t>& chunk_order,
                        const ApplyArgs& args, std::int64_t t,
                        ComputeTeam& team) {
  if (tensors_.empty()) return;
  if (!bound_) Bind(context, store, chunk_order);
  const bool compressed = optimizer_.compressed(t);
  Pointers pointers;
  std::vector<optim::GradientSource> sources;
  if (spread_ && compressed) {
    optimizer_.Finish(context.kernels, StepArgs(args, t, sources, team),
                      gathered_);
  } else {
    sources = Sources(context, compressed, pointers);
    const absl::Status status =
        optimizer_.Step(context.kernels, StepArgs(args, t, sources, team),
                        /*exchange=*/nullptr);
    STOWAGE_CHECK(status.ok());  // only an exchange fails
  }
  for (std::size_t i = 0; i < chunk_order.size(); ++i) {
    store.ChunkUpdated(static_cast<std::int64_t>(i));
  }
}

TrustRatios OneBitUpdate::trust_ratios() const {
  return optimizer_.trust_ratios();
}

Compression OneBitUpdate::compression() const {
  if (optimizer_.sides() == 0) return {};
  const optim::OneBitCounters& counters = optimizer_.counters();
  return {.rounds = counters.rounds, .error = counters.compression_error};
}

std::vector<OneBitUpdate::Place> OneBitUpdate::Places() {
  std::vector<Place> places;
  for (std::size_t s = 0; s < optimizer_.sides(); ++s) {
    optim::OneBitReduce& side = optimizer_.side(s);
    const std::size_t r = static_cast<std::size_t>(ranks_.first) + s;
    for (std::size_t b = 0; b < optimizer_.buffers(); ++b) {
      places.push_back(
          {absl::StrCat("worker_error.", r, ".", b),
           std::as_writable_bytes(side.committed_worker_error(b))});
      places.push_back(
          {absl::StrCat("server_error.", r, ".", b),
           std::as_writable_bytes(side.committed_server_error(b))});
    }
  }
  std::vector<optim::OneBitLambState>& lamb = optimizer_.lamb_state();
  if (lamb.empty()) return places;
  for (std::size_t i = 0; i < lamb.size(); ++i) {
    places.push_back({absl::StrCat("fresh_variance.", i),
                      std::as_writable_bytes(optimizer_.fresh_variance(i))});
  }
  static_assert(sizeof(optim::OneBitLambState) == 3 * sizeof(double));
  places.push_back({"lamb", std::as_writable_bytes(std::span(lamb))});
  return places;
}

std::vector<NamedValues> OneBitUpdate::Copy() {
  std::vector<NamedValues> copy;
  for (const Place& place : Places()) {
    NamedValues& to = copy.emplace_back();
    to.name = place.name;
    to.values.resize(place.bytes.size() / sizeof(float));
    std::memcpy(to.values.data(), place.bytes.data(), place.bytes.size());
  }
  return copy;
}

}  // namespace stowage::core
