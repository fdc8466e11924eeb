// Lamb's trust ratios: the norms of every tensor and of its update, over all
// chunks that hold a part of it.
//
// A chunk may hold several tensors and a tensor lie in several chunks, so the
// unit of work is a *piece*: one tensor's elements in one chunk, without
// padding. Each piece's sums of squares go to a place of their own; Combine()
// adds a tensor's pieces in chunk order, so neither threads nor their timing
// decide a bit.
//
// Where a tensor is spread over several owners (nodes, or ranks that keep their
// own shards), their sums are added (in rank order) between the two passes:
// that is `NormReduction`. An owner of everything has none.
//
// The server's step and the engine (state that is not offloaded) call it; it
// starts no threads and allocates only when it is made.

#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/job_spec.h"
#include "common/layout.h"
#include "optim/kernels.h"

namespace stowage::optim {

// Turns this owner's sums, one pair a trainable tensor in layout order, into
// the sums over all owners. All of them must get the same bits.
using NormReduction = std::function<absl::Status(std::span<LambNorms>)>;

// First elements of a chunk's fp32 arrays.
struct ChunkState {
  float* master = nullptr;
  float* moment1 = nullptr;
  float* moment2 = nullptr;
};

// Thread safety: externally synchronized; Measure() and Update() from many
//   threads for different chunks.
class TrustRatioUpdate {
 public:
  // `chunks`: all that this owner holds, any cut of the layout's runs, unit by
  // unit and ascending in each; indices below are into them. The layout's own
  // chunks for an owner of everything. Both must outlive it.
  TrustRatioUpdate(const Layout& layout, std::span<const Layout::Chunk> chunks);

  // What a step's two passes need. `constants` by group, copied.
  void BeginStep(std::span<const LambConstants> constants);

  // First pass: keeps the sums of the chunk's pieces; changes no state.
  // `gradient` is the chunk's.
  void Measure(const KernelSet& kernels, std::int64_t chunk,
               const GradientSource& gradient, const ChunkState& state);

  // After the first pass: the ratios of all tensors. `reduce` may be empty.
  // Errors: those of `reduce`.
  absl::Status Combine(const NormReduction& reduce);

  // Second pass: updates the chunk's pieces; `copy` is where the ranks' copy of
  // the chunk begins.
  void Update(const KernelSet& kernels, std::int64_t chunk,
              const GradientSource& gradient, const ChunkState& state,
              void* copy);

  // Of the last Combine().
  const TrustRatios& summary() const { return summary_; }

 private:
  struct Piece {
    std::int32_t tensor = 0;
    std::int64_t begin_elems = 0;  // in the chunk
    std::int64_t elems = 0;
  };
  std::span<const Piece> Pieces(std::int64_t chunk) const;

  // Constant after construction.
  const Layout& layout_;
  const std::span<const Layout::Chunk> chunks_;
  std::vector<Piece> pieces_;                // in chunk order
  std::vector<std::int64_t> pieces_begin_;   // by chunk, and the end
  std::vector<std::int32_t> tensor_groups_;  // by tensor

  std::vector<LambConstants> constants_;  // by group
  std::vector<LambNorms> partials_;       // by piece
  std::vector<LambNorms> norms_;          // by tensor
  std::vector<float> steps_;              // by tensor
  TrustRatios summary_;
};

}  // namespace stowage::optim
