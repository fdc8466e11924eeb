// Takes gradients out of autograd as they become final and hands them to the
// exchange, unit by unit.
//
// A parameter's post-accumulate hook runs once per backward, after the last use
// of the parameter in it (tied and reused ones included). It copies the
// gradient into the unit's place once and frees it. When all trainable
// parameters of a unit are in, the unit is noticed; at the end of backward what
// is missing is zeroed, and units without any gradient are noticed as empty, so
// that nothing waits for an unused parameter.
//
// Stage 1 keeps gradients: their fp32 sum over the micro steps stays with the
// rank until the boundary, as ZeRO-1 does; stages 2 and 3 free them at once.
//
// Thread safety: one thread at a time. Errors: thrown as StatusError.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "common/layout.h"
#include "engine/exchange/exchange.h"

namespace stowage::engine {

class GradientCollector {
 public:
  struct Options {
    bool keep_gradients = false;  // stage 1: their fp32 sum, to the boundary
    // Gradients are copied to the unit's place as they come; false: they stay
    // where autograd made them until the unit is complete.
    bool contiguous = true;
  };

  // `params[u][i]` are the tensors of unit u in declaration order; hooks are
  // set on the trainable ones. The collector must outlive every backward.
  GradientCollector(const Layout* layout, Exchange* exchange,
                    std::vector<std::vector<at::Tensor>> params,
                    const Options& options);
  GradientCollector(const GradientCollector&) = delete;
  GradientCollector& operator=(const GradientCollector&) = delete;
  ~GradientCollector();

  // Opens a micro step; gradients until EndBackward() belong to it.
  void BeginMicroStep(std::int64_t step, std::int32_t micro);
  void EndBackward();
  // The step is over: kept gradients are freed.
  void EndStep();

  std::int64_t kept_bytes() const;
  // The most that was held of autograd's own gradients; not contiguous only.
  std::int64_t held_bytes_peak() const { return held_bytes_peak_; }
  // Bytes of gradients taken from autograd since the last call.
  std::int64_t TakeCopiedBytes();

 private:
  friend class CollectorHook;
  struct Param {
    at::Tensor tensor;
    at::Tensor kept;  // stage 1, fp32
    at::Tensor held;  // not contiguous: autograd's own, until the unit is done
    std::int64_t begin_elems = 0;
    std::int64_t elems = 0;
    bool trainable = false;
    bool arrived = false;
  };
  struct Unit {
    std::vector<Param> params;
    std::int32_t trainable = 0;
    std::int32_t arrived = 0;
    std::byte* target = nullptr;  // of this micro step, once asked for
  };

  void Arrive(std::int32_t unit, std::size_t index, const at::Tensor& gradient);
  void Copy(std::int32_t unit, const Param& param, const at::Tensor& gradient);
  void CopyHeld(std::int32_t unit);
  void Clear(std::byte* place, std::int64_t bytes);
  void CountArrival(std::int32_t unit, Param& param);
  std::byte* Target(std::int32_t unit);

  const Layout* layout_;
  Exchange* exchange_;
  std::vector<Unit> units_;
  const Options options_;
  bool open_ = false;
  std::int64_t step_ = 0;
  std::int32_t micro_ = 0;
  std::int64_t copied_bytes_ = 0;
  std::int64_t held_bytes_ = 0;
  std::int64_t held_bytes_peak_ = 0;
};

}  // namespace stowage::engine
