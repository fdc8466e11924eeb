// The loss scale of fp16 training: pure state machines, one update per step.
//
// The engine multiplies the loss by scale(), and after the verdict on the
// gradients calls Update() once per optimizer step, applied or skipped. The
// state is a few numbers with a fixed encoding, so it travels in the job's
// client state and a restarted trainer goes on exactly.
//
// Unscale with LossScaleUpdate::scale_during, the scale the gradients were made
// under. DeepSpeed unscales with the already grown scale and so halves the
// gradient of every growth step; we do not (docs/configuration.md).
//
// Source: DeepSpeed 0.19.8, deepspeed/runtime/fp16/loss_scaler.py and
// fused_optimizer.py, behaviour only.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace stowage::engine::precision {

enum class LossScaleKind : std::uint8_t {
  kStatic = 1,        // constant; bf16 and fp32 use it with scale 1
  kDynamic = 2,       // stages 1-3: hysteresis, and an error at the minimum
  kDynamicPlain = 3,  // stage 0: neither of the two
};

struct LossScalerOptions {
  LossScaleKind kind = LossScaleKind::kStatic;
  double init_scale = 1.0;           // > 0, finite
  std::int64_t scale_window = 1000;  // good steps between growths; >= 1
  std::int64_t hysteresis = 2;  // overflows before the first decrease; >= 1
  bool consecutive_hysteresis = false;  // every good step refills it
  double min_scale = 1.0;               // > 0
  // kDynamic: an overflow at min_scale is an error (always so in DeepSpeed).
  bool raise_error_at_min_scale = true;
};

// What one Update() did.
struct LossScaleUpdate {
  bool skipped = false;     // the step must be skipped (overflow)
  double scale_during = 1;  // what this step's gradients were scaled by
  double scale_after = 1;   // for the next step
  std::int64_t hysteresis_before = 0;
  std::int64_t hysteresis_after = 0;

  // One line for the log when `skipped` or when the scale changed, with old and
  // new scale; empty otherwise.
  std::string Describe() const;
};

// Thread safety: externally synchronized.
class LossScaler {
 public:
  // Static scale 1.
  LossScaler() = default;

  // Errors: kInvalidArgument naming the option out of range.
  static absl::StatusOr<LossScaler> Create(const LossScalerOptions& options);

  double scale() const { return scale_; }
  std::int64_t hysteresis() const { return hysteresis_; }
  const LossScalerOptions& options() const { return options_; }
  bool dynamic() const { return options_.kind != LossScaleKind::kStatic; }
  // Whether DeepSpeed's Python would hold an int here (so that the CSV monitor
  // prints 65536 and 32768.0 as it does).
  bool scale_is_integer() const { return scale_is_integer_; }

  // Records one optimizer step. `first_nonfinite` names the tensor that made
  // it overflow, if known; it is used in the error only.
  // Errors: kFailedPrecondition if kDynamic overflows while the scale is at its
  //   minimum: training cannot go on. The state is unchanged then.
  absl::StatusOr<LossScaleUpdate> Update(bool overflow,
                                         std::string_view first_nonfinite = {});

  // Fixed 48 bytes, little-endian, versioned.
  std::string Serialize() const;
  // Takes over scale and counters; the options stay this object's own.
  // Errors: kDataLoss for bytes of another length or version, or numbers that
  //   no scaler can have; kFailedPrecondition if they are of another kind. The
  //   state is unchanged then.
  absl::Status Restore(std::string_view bytes);

 private:
  LossScalerOptions options_;
  double scale_ = 1.0;
  std::int64_t hysteresis_ = 1;      // current
  std::int64_t iteration_ = 0;       // updates so far
  std::int64_t last_overflow_ = -1;  // iteration of the last overflow
  bool scale_is_integer_ = true;
};

}  // namespace stowage::engine::precision
