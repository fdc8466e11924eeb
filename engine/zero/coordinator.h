// Carries out fetch, prefetch, keep and release of units on one rank, and the
// stages' differences in what a rank holds.
//
//   stage 3: what plan::LivePlan decides; persistent parameters stay gathered.
//   stage 1, 2: a full copy of the 16-bit parameters in this rank's own memory,
//     refreshed unit by unit as versions arrive.
//
// A unit is used by zero/unit_module.h: BeginUse before its forward and before
// its backward, EndUse after each.
//
// Thread safety: one thread at a time (see exchange/exchange.h).
// Errors: thrown as StatusError, since callers sit inside LibTorch.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/layout.h"
#include "engine/exchange/exchange.h"
#include "engine/plan/live_plan.h"
#include "engine/scalar_type.h"
#include "engine/zero/gathered_storage.h"

namespace stowage::engine {

struct CoordinatorOptions {
  int stage = 3;
  plan::LiveLimits limits;
  // A parameter of at most this many elements stays gathered, as long as all
  // such parameters together stay within the model threshold.
  std::int64_t persistence_threshold_elems = 100'000;
  std::int64_t model_persistence_threshold_elems = INT64_MAX;
  bool log_trace = false;
  // fp16.auto_cast: floating inputs of a unit take the parameters' type.
  bool auto_cast = false;
  // Stages 0 to 2 where ranks gather: elements under way ahead of their use.
  std::int64_t refresh_bucket_elems = 500'000'000;
};

// What a rank holds, in bytes (tests and the memory table in docs).
struct HeldBytes {
  std::int64_t gathered = 0;       // storages filled from leases, now
  std::int64_t gathered_peak = 0;  // the most since ResetPeak()
  std::int64_t persistent = 0;     // of it, persistent parameters
  std::int64_t own_params = 0;     // stages 1 and 2: this rank's own copy
};

class Coordinator {
 public:
  // A unit as the model made it: parameters in declaration order, and the
  // units whose parameters it reads besides its own (tied parameters).
  struct Unit {
    std::string name;
    std::vector<at::Tensor> params;
    std::vector<std::int32_t> borrows;
  };

  // Takes over the parameters' storages: afterwards they are empty (stage 3)
  // or hold this rank's copy (stages 1, 2), in `layout`'s type.
  // Ownership: layout and exchange must outlive it.
  Coordinator(const CoordinatorOptions& options, const Layout* layout,
              Exchange* exchange, std::vector<Unit> units);
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;
  ~Coordinator();

  // The step whose parameters uses read: committed steps so far.
  void SetStep(std::int64_t step) { step_ = step; }

  // What a unit's forward is given for `input`: the same, or a cast copy
  // (CoordinatorOptions::auto_cast).
  at::Tensor CastInput(const at::Tensor& input) const;

  // `traced` is false for evaluation (gradient mode off).
  void BeginUse(std::int32_t unit, bool traced);
  void EndUse(std::int32_t unit, bool traced);
  // Backward is over (or a forward was abandoned): releases what is left.
  void EndPass();

  // The recorded order of first uses in a forward; empty before it is known.
  std::vector<std::int32_t> ForwardOrder() const;
  const plan::LivePlan& live_plan() const { return live_plan_; }
  void RestoreTrace(std::vector<std::int32_t> uses) {
    live_plan_.RestoreTrace(std::move(uses));
  }

  HeldBytes held() const;
  void ResetPeak() { ledger_.ResetPeak(); }
  // max(stage3_max_live_parameters, largest need) and persistent parameters,
  // in bytes: what `gathered` may never exceed.
  std::int64_t gathered_limit_bytes() const;

 private:
  struct Param {
    GatheredStorage storage;
    std::int64_t begin_elems = 0;
    bool persistent = false;
    at::Tensor kept;  // persistent ones' memory if the exchange has none
  };
  struct UnitState {
    std::vector<Param> params;
    std::int64_t version =
        -1;                // of the content persistent or own storages have
    at::Tensor own;        // stages 1, 2
    bool fetched = false;  // non-persistent storages are filled
    bool started = false;  // a fetch is under way
    bool all_persistent = true;
  };

  UnitState& At(std::int32_t unit) {
    return units_[static_cast<std::size_t>(unit)];
  }
  bool partitioned() const { return options_.stage >= 3; }
  static std::vector<plan::LivePlan::Unit> PlanUnits(
      const CoordinatorOptions& options, const Layout& layout,
      const std::vector<Unit>& units,
      std::vector<std::vector<bool>>* persistent);
  void Carry(const plan::LivePlan::Actions& actions);
  void Gather(std::int32_t unit);
  bool NeedsGather(std::int32_t unit) const;
  void Copy(void* to, const std::byte* from, std::int64_t bytes);
  void KeepPersistent(UnitState& state, const std::byte* data);
  void Release(std::int32_t unit);
  void Refresh(std::int32_t unit);
  void RefreshAhead();

  CoordinatorOptions options_;
  const Layout* layout_;
  Exchange* exchange_;
  GatheredLedger ledger_;
  std::vector<std::vector<bool>> persistent_;  // unit, declared index
  plan::LivePlan live_plan_;
  std::vector<UnitState> units_;
  std::vector<std::vector<std::int32_t>> borrows_;
  std::int64_t persistent_elems_ = 0;
  std::int64_t step_ = 0;
  // RefreshAhead(): of step ahead_step_.
  std::int64_t ahead_step_ = -1;
  std::vector<std::int32_t> ahead_order_;
  std::size_t ahead_next_ = 0;
  std::int64_t ahead_elems_ = 0;  // started and not copied yet
};

}  // namespace stowage::engine
