// An exchange that brings nothing and does nothing: what the doubles of these
// tests have in common.

#pragma once

#include "engine/exchange/exchange.h"

namespace stowage::engine {

class NullExchange : public Exchange {
 public:
  const AttachInfo& info() const override { return info_; }
  bool in_place() const override { return true; }
  bool collective() const override { return false; }
  InitialShare initial_share() const override { return {}; }
  absl::Status PutState(std::int32_t, std::int64_t,
                        std::span<const float>) override {
    return absl::OkStatus();
  }
  absl::Status FinishInitialization() override { return absl::OkStatus(); }
  absl::Status ReadState(std::int32_t, StateKind, std::int64_t,
                         std::span<float>) override {
    return absl::UnimplementedError("no state here");
  }
  absl::Status Close(bool) override { return absl::OkStatus(); }
  FetchStart StartFetch(std::int32_t, std::int64_t) override {
    return FetchStart::kReady;
  }
  void Release(std::int32_t) override {}
  absl::StatusOr<Verdict> Prepare(std::int64_t,
                                  std::span<const double>) override {
    return Verdict{};
  }
  absl::Status Apply(const ApplyArgs&) override { return absl::OkStatus(); }
  absl::Status SetForwardOrder(std::span<const std::int32_t>,
                               std::span<const std::int32_t>) override {
    return absl::OkStatus();
  }
  ExchangeWaits TakeWaits() override { return {}; }

 private:
  AttachInfo info_;
};

}  // namespace stowage::engine
