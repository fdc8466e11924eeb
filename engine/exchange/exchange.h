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
#include "engine/device/device.h"

namespace stowage::engine {

// Where a step's time went while waiting; seconds since the last Take.
struct ExchangeWaits {
  double params_seconds = 0;  // for versions or gathers
  double prepare_seconds = 0;
  // Handing gradients over: for a place to put them, reducing them.
  double gradients_seconds = 0;
};

// How a StartFetch() went.
enum class FetchStart : std::uint8_t {
  kNo,       // cannot be started now: the later Fetch() does all the work
  kReady,    // Fetch() would not wait
  kStarted,  // under way; Release() also gives up what was only started
};

// Messages and bytes between ranks, since the exchange began.
struct ExchangeTraffic {
  std::int64_t gathers = 0;       // collectives that brought parameters
  std::int64_t gather_bytes = 0;  // that this rank sent for them
  std::int64_t reduces = 0;
  std::int64_t reduce_bytes = 0;
  std::int64_t largest_gather_bytes = 0;  // of one collective, the whole
  std::int64_t largest_reduce_bytes = 0;
  std::int64_t reduces_under_way_max = 0;
  std::int64_t gathered_bytes_peak = 0;  // buffers of gathered units
  std::int64_t reduce_bytes_peak = 0;    // buffers of gradients
  // Between the host's memory and the device's; 0 without a device.
  std::int64_t copied_in_bytes = 0;
  std::int64_t copied_out_bytes = 0;
};

class Exchange {
 public:
  Exchange() = default;
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  virtual ~Exchange() = default;

  virtual std::string_view name() const = 0;  // "segments", "c10d"

  // Where the job stood when this rank came to it.
  virtual const AttachInfo& info() const = 0;
  // True: a fetched unit is memory that is brought up to date in place. Unless
  // info().params_leased it also stays where it is: parameters may go on
  // pointing there after a Release().
  virtual bool in_place() const = 0;
  // True: Fetch() needs every rank to fetch the same.
  virtual bool collective() const = 0;
  // Where fetched units and gradients are; null: in the host's memory. On a
  // device a fetched unit is what its current stream will find there, and a
  // gradient is complete when that stream has come so far.
  virtual Device* device() const { return nullptr; }

  // Initial values of elements [begin, begin + size) of the unit. Each unit is
  // brought by the rank whose InitialShare::index is unit modulo count.
  struct InitialShare {
    std::int32_t index = 0;
    std::int32_t count = 1;
  };
  virtual InitialShare initial_share() const = 0;
  virtual absl::Status PutState(std::int32_t unit, std::int64_t begin_elems,
                                std::span<const float> values) = 0;
  virtual absl::Status FinishInitialization() = 0;
  // Errors: kInvalidArgument for elements that this rank cannot reach.
  virtual absl::Status ReadState(std::int32_t unit, StateKind kind,
                                 std::int64_t begin_elems,
                                 std::span<float> out) = 0;
  virtual absl::Status Close(bool close_job) = 0;

  // What gradients were divided by before they were summed; the verdict's
  // numbers are of what was summed.
  virtual double gradient_divisor() const { return 1; }
  virtual ExchangeTraffic traffic() const { return {}; }
  // State and copies of it in this process, in bytes.
  virtual std::int64_t held_bytes() const { return 0; }

  // The unit's gathered flat buffer, content as of `step` committed steps.
  // Valid until Release(unit); in place it is memory of the server's.
  // Blocks: until the parameters are there.
  virtual absl::StatusOr<std::span<const std::byte>> Fetch(
      std::int32_t unit, std::int64_t step) = 0;

  // Starts a fetch without waiting.
  virtual FetchStart StartFetch(std::int32_t unit, std::int64_t step) = 0;

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
