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
  SegmentExchange(client::Session* session, std::int32_t micro_steps,
                  std::int32_t local_ranks);

  std::string_view name() const override { return "segments"; }
  absl::StatusOr<std::span<const std::byte>> Fetch(std::int32_t unit,
                                                   std::int64_t step) override;
  const AttachInfo& info() const override { return session_->info(); }
  bool in_place() const override { return true; }
  bool collective() const override { return false; }
  InitialShare initial_share() const override {
    return {session_->local_rank(), local_ranks_};
  }
  absl::Status PutState(std::int32_t unit, std::int64_t begin_elems,
                        std::span<const float> values) override {
    return session_->PutState(unit, begin_elems, values);
  }
  absl::Status FinishInitialization() override {
    return session_->FinishInitialization();
  }
  absl::Status ReadState(std::int32_t unit, StateKind kind,
                         std::int64_t begin_elems,
                         std::span<float> out) override {
    return session_->ReadState(unit, kind, begin_elems, out);
  }
  absl::Status Close(bool close_job) override {
    return session_->Close(close_job);
  }
  FetchStart StartFetch(std::int32_t unit, std::int64_t step) override;
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
  std::int32_t local_ranks_;
  double gradients_seconds_ = 0;
  ExchangeWaits taken_;  // what TakeWaits() has reported so far
};

}  // namespace stowage::engine
