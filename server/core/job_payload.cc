// The part of Job that serves ranks without shared memory: what such a rank
// would do to its mappings, its session's thread does for it.

#include <chrono>
#include <cstring>
#include <thread>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/segment_format.h"
#include "common/status_macros.h"
#include "server/core/job.h"

namespace stowage::core {
namespace {

// Between looks at a word: a version comes after milliseconds of optimizer.
constexpr std::chrono::microseconds kLook{200};
constexpr int kLooksBetweenChecks = 100;

}  // namespace

absl::StatusOr<std::shared_ptr<RunGradients>> Job::BeginPayload(
    const SessionState& session, std::int32_t unit) {
  STOWAGE_RETURN_IF_ERROR(CheckUnit(unit));
  MutexLock lock(mutex_);
  STOWAGE_RETURN_IF_ERROR(CheckLive(session));
  if (!initialized_) {
    return absl::FailedPreconditionError(
        "payload: before the job's initialization was finished");
  }
  if (residency_ != nullptr) {
    return absl::UnimplementedError(absl::StrCat(
        "job \"", spec_.name,
        "\": ranks without shared memory cannot lease parameters that lie on "
        "NVMe; place them in memory (offload_param.device cpu) or give the "
        "rank the server's segment folder"));
  }
  ++payloads_;
  return run_->gradients;
}

void Job::EndPayload() {
  MutexLock lock(mutex_);
  --payloads_;
  idle_.NotifyAll();
}

absl::Status Job::WriteGradient(const SessionState& session,
                                const GradientPlace& place,
                                std::int64_t begin_bytes,
                                std::span<const std::byte> data) {
  STOWAGE_ASSIGN_OR_RETURN(const std::shared_ptr<RunGradients> gradients,
                           BeginPayload(session, place.unit));
  const absl::Cleanup end = [this] { EndPayload(); };
  if (place.micro >= kMicroStepsMax ||
      (gradients->regions() > 0 && place.region >= gradients->regions())) {
    return absl::InvalidArgumentError(
        absl::StrCat("gradient chunk: micro step ", place.micro, ", region ",
                     place.region, " of ", gradients->regions()));
  }
  const std::span<std::byte> slot = gradients->slot_bytes(
      session.rank(), place.micro, place.region, place.unit);
  const auto bytes = static_cast<std::int64_t>(data.size());
  const auto slot_bytes = static_cast<std::int64_t>(slot.size());
  if (begin_bytes > slot_bytes || bytes > slot_bytes - begin_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gradient chunk: bytes [", begin_bytes, ", +", bytes, ") of unit \"",
        layout_.units()[static_cast<std::size_t>(place.unit)].name,
        "\", whose slot has ", slot_bytes));
  }
  std::memcpy(slot.data() + begin_bytes, data.data(), data.size());
  return absl::OkStatus();
}

// Looks at a word of the parameter segment until it is reached.
absl::Status Job::AwaitWord(const SessionState& session,
                            const std::function<bool()>& reached,
                            const std::function<bool()>& go_on) {
  for (int looks = 1; !reached(); ++looks) {
    if (looks % kLooksBetweenChecks == 0) {
      if (!go_on()) return absl::CancelledError("its connection ended");
      MutexLock lock(mutex_);
      STOWAGE_RETURN_IF_ERROR(CheckLive(session));
    }
    std::this_thread::sleep_for(kLook);
  }
  return absl::OkStatus();
}

absl::Status Job::ViewParams(
    const SessionState& session, const ParamRange& range,
    const std::function<bool()>& go_on,
    const std::function<void(std::span<const std::byte>)>& view) {
  STOWAGE_RETURN_IF_ERROR(BeginPayload(session, range.unit).status());
  const absl::Cleanup end = [this] { EndPayload(); };
  const std::int64_t unit_bytes =
      layout_.units()[static_cast<std::size_t>(range.unit)].elems *
      DtypeBytes(layout_.param_dtype());
  if (range.begin_bytes > unit_bytes ||
      range.bytes > unit_bytes - range.begin_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("fetch params: bytes [", range.begin_bytes, ", +",
                     range.bytes, ") of unit \"",
                     layout_.units()[static_cast<std::size_t>(range.unit)].name,
                     "\", which has ", unit_bytes));
  }
  {
    MutexLock lock(mutex_);
    STOWAGE_RETURN_IF_ERROR(CheckLive(session));
    if (range.step > run_->step) {
      return absl::FailedPreconditionError(
          absl::StrCat("fetch params: step ", range.step, " before step ",
                       run_->step, " was applied"));
    }
  }
  STOWAGE_RETURN_IF_ERROR(AwaitWord(
      session,
      [&] {
        return WordReached(params_->unit_words(range.unit)
                               .version.load(std::memory_order_acquire),
                           static_cast<std::uint32_t>(range.step));
      },
      go_on));
  view({static_cast<const std::byte*>(params_->param(range.unit, 0)) +
            range.begin_bytes,
        static_cast<std::size_t>(range.bytes)});
  return absl::OkStatus();
}

absl::Status Job::AwaitLanded(const SessionState& session, std::int32_t unit,
                              std::int64_t total,
                              const std::function<bool()>& go_on) {
  STOWAGE_RETURN_IF_ERROR(BeginPayload(session, unit).status());
  const absl::Cleanup end = [this] { EndPayload(); };
  return AwaitWord(
      session,
      [&] {
        return WordReached(
            params_->unit_words(unit).landed.load(std::memory_order_acquire),
            static_cast<std::uint32_t>(total));
      },
      go_on);
}

}  // namespace stowage::core
