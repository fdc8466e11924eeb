#include "engine/exchange/segment_exchange.h"

#include <chrono>
#include <utility>

#include "common/status_macros.h"

namespace stowage::engine {

SegmentExchange::SegmentExchange(client::Session* session,
                                 std::int32_t micro_steps,
                                 std::int32_t local_ranks)
    : session_(session), micro_steps_(micro_steps), local_ranks_(local_ranks) {
  const client::SessionCounters counters = session_->counters();
  taken_ = {counters.version_wait_seconds, counters.prepare_seconds, 0};
}

absl::StatusOr<std::span<const std::byte>> SegmentExchange::Fetch(
    std::int32_t unit, std::int64_t step) {
  if (session_->info().params_leased) {
    STOWAGE_RETURN_IF_ERROR(session_->Lease(unit, step));
  } else {
    STOWAGE_RETURN_IF_ERROR(session_->WaitVersion(unit, step));
  }
  return session_->unit_params(unit);
}

FetchStart SegmentExchange::StartFetch(std::int32_t unit, std::int64_t step) {
  // In place there is nothing to move: the lease can be had at once if the
  // version is there, and not at all before. Under leases the server reads
  // ahead by the trace; asking early would only hold its memory.
  if (session_->info().params_leased) return FetchStart::kNo;
  return session_->VersionReady(unit, step) ? FetchStart::kReady
                                            : FetchStart::kNo;
}

void SegmentExchange::Release(std::int32_t unit) {
  // A broken session says so at its next call.
  if (session_->info().params_leased) session_->Unlease(unit).IgnoreError();
}

absl::StatusOr<std::span<std::byte>> SegmentExchange::GradientTarget(
    std::int64_t step, std::int32_t micro, std::int32_t unit) {
  const AttachInfo& info = session_->info();
  const auto begin = std::chrono::steady_clock::now();
  if (info.slots_are_ring) {
    const std::int64_t landed =
        step * micro_steps_ + micro - info.slots_per_rank + 1;
    if (landed > 0) {
      STOWAGE_RETURN_IF_ERROR(session_->WaitLanded(unit, landed));
    }
  }
  if (info.gradient_regions > 0) {
    STOWAGE_RETURN_IF_ERROR(session_->ClaimRegion(unit));
  }
  if (info.slots_are_ring || info.gradient_regions > 0) {
    gradients_seconds_ +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
            .count();
  }
  return session_->gradient_slot(micro, unit);
}

absl::Status SegmentExchange::GradientReady(std::int64_t step,
                                            std::int32_t micro,
                                            std::int32_t unit, bool empty) {
  return session_->Notice(step, micro, unit, empty);
}

absl::StatusOr<Verdict> SegmentExchange::Prepare(
    std::int64_t step, std::span<const double> scalars) {
  return session_->Prepare(step, scalars);
}

absl::Status SegmentExchange::Apply(const ApplyArgs& args) {
  return session_->Apply(args);
}

absl::Status SegmentExchange::SetForwardOrder(
    std::span<const std::int32_t> units, std::span<const std::int32_t> uses) {
  return session_->SetForwardOrder(units, uses);
}

ExchangeWaits SegmentExchange::TakeWaits() {
  const client::SessionCounters counters = session_->counters();
  const ExchangeWaits waits{
      counters.version_wait_seconds - taken_.params_seconds,
      counters.prepare_seconds - taken_.prepare_seconds,
      std::exchange(gradients_seconds_, 0.0)};
  taken_ = {counters.version_wait_seconds, counters.prepare_seconds, 0};
  return waits;
}

}  // namespace stowage::engine
