// Exchange through shared segments: parameters are read in place under a
// lease, gradients are written into this rank's slots, and the server's
// landing sums the ranks.

#pragma once

#include "client/offload_client.h"
#include "engine/exchange/exchange.h"

namespace stowage::engine {

// Ownership: `session` must outlive the exchange.
class SegmentExchange final : public Exchange {
 public:
  SegmentExchange(client::Session* session, std::int32_t micro_steps);

  std::string_view name() const override { return "segments"; }
  absl::StatusOr<std::span<const std::byte>> Fetch(std::int32_t unit,
                                                   std::int64_t step) override;
  bool StartFetch(std::int32_t unit, std::int64_t step) override;
  void Release(std::int32_t unit) override;
  absl::StatusOr<std::span<std::byte>> GradientTarget(
      std::int64_t step, std::int32_t micro, std::int32_t unit) override;
  absl::Status GradientReady(std::int64_t step, std::int32_t micro,
                             std::int32_t unit, bool empty) override;
  absl::StatusOr<Verdict> Prepare(std::int64_t step,
                                  std::span<const double> scalars) override;
  absl::Status Apply(const ApplyArgs& args) override;
  absl::Status SetForwardOrder(std::span<const std::int32_t> units,
                               std::span<const std::int32_t> uses) override;
  ExchangeWaits TakeWaits() override;

 private:
  client::Session* session_;
  std::int32_t micro_steps_;
  double gradients_seconds_ = 0;
  ExchangeWaits taken_;  // what TakeWaits() has reported so far
};

}  // namespace stowage::engine
