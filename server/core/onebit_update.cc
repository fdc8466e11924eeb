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
                                 std::int32_t ranks) {
  std::vector<std::int64_t> elems;
  for (const Layout::Param* param : layout.TrainableParams()) {
    elems.push_back(param->elems);
  }
  return optim::OneBitOptimizer::StateBytes(
      optim::MakeOneBitSettings(optimizer), elems, ranks,
      /*sides=*/ranks);
}

OneBitUpdate::OneBitUpdate(const Layout& layout, const OptimizerSpec& optimizer,
                           std::int32_t ranks,
                           storage::MemoryReservation reservation)
    : layout_(layout),
      ranks_(ranks),
      reservation_(std::move(reservation)),
      tensors_(layout.TrainableParams()),
      optimizer_(optim::MakeOneBitSettings(optimizer), Unbound(layout),
                 layout.param_dtype(), optim::OneBitOptimizer::kAllRanks,
                 ranks) {}

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

void OneBitUpdate::Step(const OneBitContext& context,
                        storage::StateStore& store,
                        const std::vector<std::int32_t>& chunk_order,
                        const ApplyArgs& args, std::int64_t t,
                        ComputeTeam& team) {
  if (tensors_.empty()) return;
  if (!bound_) Bind(context, store, chunk_order);
  const bool compressed = optimizer_.compressed(t);
  const std::size_t sides = compressed ? static_cast<std::size_t>(ranks_) : 1;
  std::vector<RunGradients::SlotPointers> pointers(sides * tensors_.size());
  std::vector<optim::GradientSource> sources;
  for (std::size_t side = 0; side < sides; ++side) {
    for (const Layout::Param* param : tensors_) {
      const Layout::Chunk chunk = ChunkOf(*param);
      RunGradients::SlotPointers& slots = pointers[sources.size()];
      sources.push_back(
          compressed
              ? context.run.RankSource(context.gradients, chunk,
                                       static_cast<std::int32_t>(side), slots)
              : context.run.StepSource(context.gradients, chunk, slots));
    }
  }
  // The factor divides by all micro-batches; a rank's own are a share of them.
  const double factor = args.gradient_factor * (compressed ? ranks_ : 1);
  const absl::Status status = optimizer_.Step(
      context.kernels,
      {.t = t,
       .gradient_factor = factor,
       .groups = args.groups,
       .gradients = sources,
       .parallel =
           [&team](std::int64_t count,
                   const std::function<void(std::int64_t)>& work) {
             team.ParallelFor(count, work);
           }},
      /*exchange=*/nullptr);
  STOWAGE_CHECK(status.ok());  // only an exchange fails
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
  for (std::size_t r = 0; r < optimizer_.sides(); ++r) {
    optim::OneBitReduce& side = optimizer_.side(r);
    for (std::size_t b = 0; b < optimizer_.buffers(); ++b) {
      places.push_back({absl::StrCat("worker_error.", r, ".", b),
                        std::as_writable_bytes(side.worker_error(b))});
      places.push_back({absl::StrCat("server_error.", r, ".", b),
                        std::as_writable_bytes(side.server_error(b))});
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
