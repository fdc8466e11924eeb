#include "engine/precision/loss_scaler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace stowage::engine::precision {
namespace {

constexpr double kFactor = 2.0;  // not a setting in DeepSpeed either

// Bytes of Serialize(): version, kind, integer flag, 5 zeroes, then scale,
// hysteresis, iteration, last overflow and 8 zeroes.
constexpr std::size_t kStateBytes = 48;
constexpr std::uint8_t kStateVersion = 1;

void AppendU64(std::uint64_t value, std::string& out) {
  for (int shift = 0; shift < 64; shift += 8) {
    out += static_cast<char>(static_cast<unsigned char>(value >> shift));
  }
}

std::uint64_t ReadU64(std::string_view bytes, std::size_t offset) {
  std::uint64_t value = 0;
  for (std::size_t i = 8; i-- > 0;) {
    value = (value << 8) | static_cast<unsigned char>(bytes[offset + i]);
  }
  return value;
}

bool ValidScale(double scale) { return std::isfinite(scale) && scale > 0; }

}  // namespace

std::string LossScaleUpdate::Describe() const {
  if (!skipped) {
    if (scale_after == scale_during) return "";
    return absl::StrCat("loss scale grows from ", scale_during, " to ",
                        scale_after);
  }
  if (scale_after != scale_during) {
    return absl::StrCat("OVERFLOW: step skipped, loss scale falls from ",
                        scale_during, " to ", scale_after);
  }
  if (hysteresis_after != hysteresis_before) {
    return absl::StrCat("OVERFLOW: step skipped, loss scale stays at ",
                        scale_during, ", hysteresis falls from ",
                        hysteresis_before, " to ", hysteresis_after);
  }
  return absl::StrCat("OVERFLOW: step skipped, loss scale stays at ",
                      scale_during);
}

absl::StatusOr<LossScaler> LossScaler::Create(
    const LossScalerOptions& options) {
  const auto refuse = [](std::string_view name, double value,
                         std::string_view expected) {
    return absl::InvalidArgumentError(
        absl::StrCat("loss scaler: ", std::string(name), " = ", value,
                     ": expected ", std::string(expected)));
  };
  if (!ValidScale(options.init_scale)) {
    return refuse("initial scale", options.init_scale,
                  "a finite number above 0");
  }
  if (options.kind != LossScaleKind::kStatic) {
    if (!ValidScale(options.min_scale)) {
      return refuse("min_loss_scale", options.min_scale,
                    "a finite number above 0");
    }
    if (options.scale_window < 1) {
      return refuse("loss_scale_window",
                    static_cast<double>(options.scale_window),
                    "an integer >= 1");
    }
    if (options.hysteresis < 1) {
      return refuse("hysteresis", static_cast<double>(options.hysteresis),
                    "an integer >= 1");
    }
  }
  LossScaler scaler;
  scaler.options_ = options;
  scaler.scale_ = options.init_scale;
  scaler.hysteresis_ = options.hysteresis;
  scaler.scale_is_integer_ =
      std::trunc(options.init_scale) == options.init_scale;
  return scaler;
}

absl::StatusOr<LossScaleUpdate> LossScaler::Update(
    bool overflow, std::string_view first_nonfinite) {
  LossScaleUpdate update;
  update.skipped = overflow;
  update.scale_during = scale_;
  update.hysteresis_before = hysteresis_;
  const bool with_hysteresis = options_.kind == LossScaleKind::kDynamic;
  if (options_.kind == LossScaleKind::kStatic) {
    if (overflow) last_overflow_ = iteration_;
  } else if (overflow) {
    if (!with_hysteresis || options_.hysteresis == 1 || hysteresis_ == 1) {
      if (with_hysteresis && options_.raise_error_at_min_scale &&
          scale_ == options_.min_scale) {
        return absl::FailedPreconditionError(absl::StrCat(
            "the gradients are not finite at the smallest loss scale, ",
            options_.min_scale, " (fp16.min_loss_scale), after ", iteration_,
            " steps",
            first_nonfinite.empty()
                ? ""
                : absl::StrCat("; the first tensor that is not finite is \"",
                               std::string(first_nonfinite), "\""),
            ": the loss scale cannot fall further. Lower the learning rate, "
            "look at the data of these steps, or train in bf16 or fp32"));
      }
      const double lower = scale_ / kFactor;
      // Python's max() keeps its first argument where both are equal.
      if (options_.min_scale > lower) {
        scale_ = options_.min_scale;
        scale_is_integer_ = std::trunc(scale_) == scale_;
      } else {
        scale_ = lower;
        scale_is_integer_ = false;
      }
    } else {
      --hysteresis_;
    }
    last_overflow_ = iteration_;
  } else {
    if (with_hysteresis && options_.consecutive_hysteresis) {
      hysteresis_ = options_.hysteresis;
    }
    const std::int64_t good = iteration_ - last_overflow_ - 1;
    if (good > 0 && good % options_.scale_window == 0) {
      if (with_hysteresis) hysteresis_ = options_.hysteresis;
      // DeepSpeed has no upper bound; past the largest double it would be inf
      // and never come back.
      if (std::isfinite(scale_ * kFactor)) scale_ *= kFactor;
      scale_is_integer_ = false;
    }
  }
  ++iteration_;
  update.scale_after = scale_;
  update.hysteresis_after = hysteresis_;
  return update;
}

std::string LossScaler::Serialize() const {
  std::string out;
  out.reserve(kStateBytes);
  out += static_cast<char>(kStateVersion);
  out += static_cast<char>(options_.kind);
  out += static_cast<char>(scale_is_integer_ ? 1 : 0);
  out.append(5, '\0');
  AppendU64(std::bit_cast<std::uint64_t>(scale_), out);
  AppendU64(static_cast<std::uint64_t>(hysteresis_), out);
  AppendU64(static_cast<std::uint64_t>(iteration_), out);
  AppendU64(static_cast<std::uint64_t>(last_overflow_), out);
  AppendU64(0, out);
  STOWAGE_CHECK(out.size() == kStateBytes);
  return out;
}

absl::Status LossScaler::Restore(std::string_view bytes) {
  if (bytes.size() != kStateBytes) {
    return absl::DataLossError(absl::StrCat("loss scaler state: ", bytes.size(),
                                            " bytes, expected ", kStateBytes));
  }
  const auto version = static_cast<std::uint8_t>(bytes[0]);
  if (version != kStateVersion) {
    return absl::DataLossError(absl::StrCat(
        "loss scaler state: version ", version, ", expected ", kStateVersion));
  }
  const auto scale = std::bit_cast<double>(ReadU64(bytes, 8));
  const auto hysteresis = static_cast<std::int64_t>(ReadU64(bytes, 16));
  const auto iteration = static_cast<std::int64_t>(ReadU64(bytes, 24));
  const auto last_overflow = static_cast<std::int64_t>(ReadU64(bytes, 32));
  const auto kind = static_cast<std::uint8_t>(bytes[1]);
  if (kind < 1 || kind > 3 || static_cast<std::uint8_t>(bytes[2]) > 1 ||
      !ValidScale(scale) || hysteresis < 1 || iteration < 0 ||
      last_overflow < -1 || last_overflow >= iteration) {
    return absl::DataLossError(
        absl::StrCat("loss scaler state: no scaler has kind ", kind, ", scale ",
                     scale, ", hysteresis ", hysteresis, ", iteration ",
                     iteration, ", last overflow ", last_overflow));
  }
  if (kind != static_cast<std::uint8_t>(options_.kind)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "loss scaler state: of kind ", kind, ", this run's scaler is of kind ",
        static_cast<int>(options_.kind),
        " (1 static, 2 dynamic, 3 dynamic of stage 0)"));
  }
  // A constant is the configuration's to say, also after a restart.
  if (dynamic()) {
    scale_ = scale;
    scale_is_integer_ = bytes[2] == 1;
    hysteresis_ = std::min(hysteresis, options_.hysteresis);
  }
  iteration_ = iteration;
  last_overflow_ = last_overflow;
  return absl::OkStatus();
}

}  // namespace stowage::engine::precision
