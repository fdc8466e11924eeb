// A step of a job with OneBitAdam or OneBitLamb. Where its ranks are all on
// this host, the server holds every rank's errors, so signs are made, added and
// decoded here and nothing has to travel. On several hosts each server holds
// moments, and the errors of its own ranks; those carry the signs
// (Compress() to Step(); server/core/step_rounds.h). The bits are those of
// ranks that swap messages (optim/onebit_reduce.h).
//
// Errors, and OneBitLamb's fresh variance, are state of the job like its
// moments: they live as long as it does and a rank that attaches again finds
// them. They are as many as the job's ranks, whose number therefore is fixed.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/job_spec.h"
#include "common/layout.h"
#include "optim/onebit_optimizer.h"
#include "server/core/compute_team.h"
#include "server/core/param_segment.h"
#include "server/core/run_gradients.h"
#include "server/core/step_ledger.h"
#include "storage/host/memory_budget.h"
#include "storage/state_store.h"

namespace stowage::core {

// A named array of fp32 values.
struct NamedValues {
  std::string name;
  std::vector<float> values;
};

struct OneBitContext {
  const optim::KernelSet& kernels;
  ParamSegment& params;
  const RunGradients& run;
  const StepGradients& gradients;
};

// Thread safety: externally synchronized.
class OneBitUpdate {
 public:
  // Memory of a job with the run's ranks, beside masters and two moments.
  static std::int64_t Bytes(const Layout& layout,
                            const OptimizerSpec& optimizer, const RunSpec& run);

  // `layout` must outlive it; `reservation` holds Bytes().
  OneBitUpdate(const Layout& layout, const OptimizerSpec& optimizer,
               const RunSpec& run, storage::MemoryReservation reservation);

  // Errors: kInvalidArgument if the errors are those of other ranks than the
  //   run's of this node.
  absl::Status CheckRanks(const RunSpec& run) const;
  // Bytes() of this object.
  std::int64_t bytes() const { return reservation_bytes_; }
  // In words: "2 ranks", "ranks 2 to 3 of 4".
  std::string Who() const;
  bool compressed(std::int64_t t) const { return optimizer_.compressed(t); }

  // Ranks of several nodes only, for the compressed step `t`: signs of all
  // ranks of this node, to be fetched with outgoing(); incoming() is then
  // filled, and Serve() makes served(); by local rank. gathered() is what all
  // ranks served, for Step(). Until that the step can be begun anew.
  // Requires: as Step().
  void Compress(const OneBitContext& context, storage::StateStore& store,
                const std::vector<std::int32_t>& chunk_order,
                const ApplyArgs& args, std::int64_t t, ComputeTeam& team);
  void Serve(const OneBitContext& context, std::int32_t rank);
  std::span<const std::byte> outgoing(std::int32_t rank) {
    return Side(rank).outgoing();
  }
  std::span<std::byte> incoming(std::int32_t rank) {
    return Side(rank).incoming();
  }
  std::span<const std::byte> served(std::int32_t rank) {
    return Side(rank).served();
  }
  std::span<std::byte> gathered() { return gathered_; }
  // Of incoming() or gathered().
  bool ScalesAreFinite(std::span<const std::byte> messages) {
    return Side(0).ScalesAreFinite(messages);
  }

  // Applies step `t` (counted from 1, applied ones only) to a window of `store`
  // that holds the whole job. All its chunks are then updated.
  // Requires: the store's arrays stay where they are from step to step, and so
  //   does the parameter segment; slots are kept.
  // Blocks: for the work.
  void Step(const OneBitContext& context, storage::StateStore& store,
            const std::vector<std::int32_t>& chunk_order, const ApplyArgs& args,
            std::int64_t t, ComputeTeam& team);

  TrustRatios trust_ratios() const;
  Compression compression() const;

  // An array that a checkpoint holds beside masters and moments:
  // worker_error.RANK.BUFFER and server_error.RANK.BUFFER of the ranks of this
  // node, by their number in the run; for OneBitLamb also
  // fresh_variance.TENSOR and lamb (its three doubles a tensor). Buffers and
  // tensors are counted in the layout's order. All but lamb are fp32.
  struct Place {
    std::string name;
    std::span<std::byte> bytes;
  };
  // To be read and, before the first step, written; valid as long as this is.
  std::vector<Place> Places();
  // What they hold after the last step.
  std::vector<NamedValues> Copy();

 private:
  using Pointers = std::vector<RunGradients::SlotPointers>;
  void Bind(const OneBitContext& context, storage::StateStore& store,
            const std::vector<std::int32_t>& chunk_order);
  // Of each side that the step takes a gradient of, tensor by tensor.
  std::vector<optim::GradientSource> Sources(const OneBitContext& context,
                                             bool each_rank,
                                             Pointers& pointers) const;
  optim::OneBitStepArgs StepArgs(const ApplyArgs& args, std::int64_t t,
                                 std::span<const optim::GradientSource> sources,
                                 ComputeTeam& team) const;
  optim::OneBitReduce& Side(std::int32_t rank) {
    return optimizer_.side(static_cast<std::size_t>(rank));
  }

  const Layout& layout_;
  const bool spread_;  // over several nodes
  const optim::OneBitOptimizer::CarriedRanks ranks_;
  const std::int64_t reservation_bytes_;
  const storage::MemoryReservation reservation_;
  const std::vector<const Layout::Param*> tensors_;  // trainable
  optim::OneBitOptimizer optimizer_;
  bool bound_ = false;  // by the first step
  std::vector<std::byte> gathered_;
};

}  // namespace stowage::core
