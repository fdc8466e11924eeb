#include "optim/trust_ratio.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include "common/check.h"
#include "common/dtype.h"
#include "common/status_macros.h"

namespace stowage::optim {
namespace {

// A step of more slots is summed in a ring.
using SlotPointers = std::array<const void*, kLocalRanksMax>;

// `gradient` from element `begin_elems` on; `slots` holds its pointers.
GradientSource From(const GradientSource& gradient, std::int64_t begin_elems,
                    SlotPointers& slots) {
  if (gradient.sum != nullptr) {
    return {{}, gradient.slot_dtype, gradient.sum + begin_elems};
  }
  const std::int64_t bytes = begin_elems * DtypeBytes(gradient.slot_dtype);
  for (std::size_t s = 0; s < gradient.slots.size(); ++s) {
    slots[s] = static_cast<const std::byte*>(gradient.slots[s]) + bytes;
  }
  return {std::span<const void* const>(slots).first(gradient.slots.size()),
          gradient.slot_dtype, nullptr};
}

AdamRange RangeOf(const ChunkState& state, std::int64_t begin_elems,
                  std::int64_t elems) {
  return {.elems = elems,
          .master = state.master + begin_elems,
          .moment1 = state.moment1 + begin_elems,
          .moment2 = state.moment2 + begin_elems};
}

}  // namespace

TrustRatioUpdate::TrustRatioUpdate(const Layout& layout,
                                   std::span<const Layout::Chunk> chunks)
    : layout_(layout), chunks_(chunks) {
  std::vector<std::int32_t> first_tensor;  // by unit
  for (const Layout::Unit& unit : layout.units()) {
    first_tensor.push_back(static_cast<std::int32_t>(tensor_groups_.size()));
    for (const Layout::Param& param : unit.params) {
      if (param.frozen) break;  // trainable ones come first
      tensor_groups_.push_back(param.group_index);
    }
  }
  std::int32_t unit_index = -1;
  std::size_t at = 0;  // of the unit's parameters
  for (const Layout::Chunk& chunk : chunks) {
    if (chunk.unit_index != unit_index) at = 0;
    unit_index = chunk.unit_index;
    const Layout::Unit& unit =
        layout.units()[static_cast<std::size_t>(unit_index)];
    const std::int64_t end = chunk.begin_elems + chunk.elems;
    pieces_begin_.push_back(static_cast<std::int64_t>(pieces_.size()));
    for (; at < unit.params.size() && !unit.params[at].frozen; ++at) {
      const Layout::Param& param = unit.params[at];
      const std::int64_t param_end = param.begin_elems + param.elems;
      const std::int64_t from = std::max(param.begin_elems, chunk.begin_elems);
      const std::int64_t to = std::min(param_end, end);
      if (from < to) {
        pieces_.push_back(
            {.tensor = first_tensor[static_cast<std::size_t>(unit_index)] +
                       static_cast<std::int32_t>(at),
             .begin_elems = from - chunk.begin_elems,
             .elems = to - from});
      }
      if (param_end > end) break;  // it goes on in the next chunk
    }
  }
  pieces_begin_.push_back(static_cast<std::int64_t>(pieces_.size()));
  partials_.resize(pieces_.size());
  norms_.resize(tensor_groups_.size());
  steps_.resize(tensor_groups_.size());
}

std::span<const TrustRatioUpdate::Piece> TrustRatioUpdate::Pieces(
    std::int64_t chunk) const {
  const auto c = static_cast<std::size_t>(chunk);
  return std::span(pieces_).subspan(
      static_cast<std::size_t>(pieces_begin_[c]),
      static_cast<std::size_t>(pieces_begin_[c + 1] - pieces_begin_[c]));
}

void TrustRatioUpdate::BeginStep(std::span<const LambConstants> constants) {
  STOWAGE_CHECK(static_cast<std::int32_t>(constants.size()) ==
                layout_.group_count());
  constants_.assign(constants.begin(), constants.end());
}

void TrustRatioUpdate::Measure(const KernelSet& kernels, std::int64_t chunk,
                               const GradientSource& gradient,
                               const ChunkState& state) {
  const LambConstants& constants = constants_[static_cast<std::size_t>(
      chunks_[static_cast<std::size_t>(chunk)].group_index)];
  auto at =
      static_cast<std::size_t>(pieces_begin_[static_cast<std::size_t>(chunk)]);
  SlotPointers slots;
  for (const Piece& piece : Pieces(chunk)) {
    partials_[at++] =
        kernels.lamb_norms(constants, From(gradient, piece.begin_elems, slots),
                           RangeOf(state, piece.begin_elems, piece.elems));
  }
}

absl::Status TrustRatioUpdate::Combine(const NormReduction& reduce) {
  std::fill(norms_.begin(), norms_.end(), LambNorms{});
  for (std::size_t p = 0; p < pieces_.size(); ++p) {
    LambNorms& norms = norms_[static_cast<std::size_t>(pieces_[p].tensor)];
    norms.weight += partials_[p].weight;
    norms.update += partials_[p].update;
  }
  if (reduce) STOWAGE_RETURN_IF_ERROR(reduce(norms_));
  summary_ = {.tensors = static_cast<std::int64_t>(norms_.size())};
  double sum = 0;
  for (std::size_t t = 0; t < norms_.size(); ++t) {
    const LambConstants& constants =
        constants_[static_cast<std::size_t>(tensor_groups_[t])];
    const double ratio = LambTrustRatio(constants, norms_[t]);
    steps_[t] = static_cast<float>(constants.step_size * ratio);
    summary_.min = t == 0 ? ratio : std::min(summary_.min, ratio);
    summary_.max = t == 0 ? ratio : std::max(summary_.max, ratio);
    sum += ratio;
  }
  if (!norms_.empty()) summary_.mean = sum / static_cast<double>(norms_.size());
  return absl::OkStatus();
}

void TrustRatioUpdate::Update(const KernelSet& kernels, std::int64_t chunk,
                              const GradientSource& gradient,
                              const ChunkState& state, void* copy) {
  const LambConstants& constants = constants_[static_cast<std::size_t>(
      chunks_[static_cast<std::size_t>(chunk)].group_index)];
  SlotPointers slots;
  for (const Piece& piece : Pieces(chunk)) {
    AdamRange range = RangeOf(state, piece.begin_elems, piece.elems);
    range.copy = static_cast<std::byte*>(copy) +
                 piece.begin_elems * DtypeBytes(layout_.param_dtype());
    range.copy_dtype = layout_.param_dtype();
    kernels.lamb(constants, steps_[static_cast<std::size_t>(piece.tensor)],
                 From(gradient, piece.begin_elems, slots), range);
  }
}

}  // namespace stowage::optim
