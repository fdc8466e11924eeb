// A step of a job with OneBitAdam or OneBitLamb whose ranks are all on this
// host: the server holds moments and every rank's errors, so signs are made,
// added and decoded here and nothing has to travel. The bits are those of ranks
// that swap messages (optim/onebit_reduce.h).
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
  // Memory of a job with so many ranks, beside masters and first two moments.
  static std::int64_t Bytes(const Layout& layout,
                            const OptimizerSpec& optimizer, std::int32_t ranks);

  // `layout` must outlive it; `reservation` holds Bytes().
  OneBitUpdate(const Layout& layout, const OptimizerSpec& optimizer,
               std::int32_t ranks, storage::MemoryReservation reservation);

  std::int32_t ranks() const { return ranks_; }

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
  // worker_error.RANK.BUFFER and server_error.RANK.BUFFER; for OneBitLamb also
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
  void Bind(const OneBitContext& context, storage::StateStore& store,
            const std::vector<std::int32_t>& chunk_order);

  const Layout& layout_;
  const std::int32_t ranks_;
  const storage::MemoryReservation reservation_;
  const std::vector<const Layout::Param*> tensors_;  // trainable
  optim::OneBitOptimizer optimizer_;
  bool bound_ = false;  // by the first step
};

}  // namespace stowage::core
