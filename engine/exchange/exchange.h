// How a rank gets gathered parameters and gets rid of gradients.
//
// Two implementations of one contract: `segments` reads parameters in place
// and lets the server's landing be the reduction (CPU ranks of one host);
// `c10d` gathers and reduce-scatters with process groups and moves only this
// rank's shard to and from the server. Trace, limits, ledger, precision and
// tests are above this line and the same for both.
//
// Units and offsets are those of common/layout.h. No LibTorch here.
//
// Thread safety: one thread at a time (autograd on CPU runs backward in the
//   thread that asked for it).
// Errors: a broken session's first status, see client/offload_client.h.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"
#include "common/layout.h"

namespace stowage::engine {

// Where a step's time went while waiting; seconds since the last Take.
struct ExchangeWaits {
  double params_seconds = 0;  // for versions or gathers
  double prepare_seconds = 0;
  // Handing gradients over: for a place to put them, reducing them.
  double gradients_seconds = 0;
};

class Exchange {
 public:
  Exchange() = default;
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  virtual ~Exchange() = default;

  virtual std::string_view name() const = 0;  // "segments", "c10d"

  // The unit's gathered flat buffer, content as of `step` committed steps.
  // Valid until Release(unit); in place it is memory of the server's.
  // Blocks: until the parameters are there.
  virtual absl::StatusOr<std::span<const std::byte>> Fetch(
      std::int32_t unit, std::int64_t step) = 0;

  // Starts a fetch without waiting. Returns: false if it cannot be started now
  // (then the later Fetch does all the work).
  virtual bool StartFetch(std::int32_t unit, std::int64_t step) = 0;

  virtual void Release(std::int32_t unit) = 0;

  // Where this micro step's gradient of the unit is to be written, in the
  // flat buffer's order and type. Blocks: until the place is free.
  virtual absl::StatusOr<std::span<std::byte>> GradientTarget(
      std::int64_t step, std::int32_t micro, std::int32_t unit) = 0;

  // The gradient is complete (or there is none). Once per (step, micro, unit).
  virtual absl::Status GradientReady(std::int64_t step, std::int32_t micro,
                                     std::int32_t unit, bool empty) = 0;

  // Blocks until the verdict over all ranks (of all nodes).
  virtual absl::StatusOr<Verdict> Prepare(std::int64_t step,
                                          std::span<const double> scalars) = 0;
  virtual absl::Status Apply(const ApplyArgs& args) = 0;

  // The trace's first uses and all its uses, once known.
  virtual absl::Status SetForwardOrder(std::span<const std::int32_t> units,
                                       std::span<const std::int32_t> uses) = 0;

  virtual ExchangeWaits TakeWaits() = 0;
};

}  // namespace stowage::engine
