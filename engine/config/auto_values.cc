#include "engine/config/auto_values.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "common/status_macros.h"
#include "engine/config/batch.h"
#include "engine/config/json_text.h"
#include "engine/config/text.h"
#include "engine/config/value_check.h"

namespace stowage::engine::config {
namespace {

// Wider than any model; keeps width^2 far from overflow.
constexpr std::int64_t kHiddenSizeMax = 1 << 24;

constexpr char kMicro[] = "train_micro_batch_size_per_gpu";
constexpr char kAccumulation[] = "gradient_accumulation_steps";
constexpr char kTrain[] = "train_batch_size";

class Filler {
 public:
  Filler(const TrainerValues& trainer, Settings& settings)
      : trainer_(trainer), settings_(settings) {}

  absl::Status Run() {
    Plain();
    Scheduler();
    Precision();
    Buckets();
    STOWAGE_RETURN_IF_ERROR(errors_.ToStatus());
    return FillBatch();
  }

 private:
  // "auto" from the trainer or an error; absent: the trainer's if its user set
  // it; in the file: must not contradict what the user set.
  template <typename T, typename Make>
  void Fill(std::string_view path, const TrainerValue<T>& value,
            std::string_view flag, Make make, bool checked = true,
            bool add = true) {
    const Setting& setting = settings_.At(path);
    if (setting.is_auto) {
      if (!value.value) {
        NoValue(path, flag);
      } else {
        Take(path, make(*value.value), Origin::kAuto, flag);
      }
      return;
    }
    if (!value.value || !value.set_by_user) return;
    const Value wanted = make(*value.value);
    if (setting.in_file && setting.has_value) {
      if (checked && JsonOf(wanted) != JsonOf(setting.value)) {
        Contradicts(path, flag, JsonOf(Single(*setting.key, wanted)));
      }
    } else if (add) {
      Take(path, wanted, Origin::kTrainer, flag);
    }
  }

  // The trainer's values have the file's bounds.
  void Take(std::string_view path, Value value, Origin origin,
            std::string_view flag) {
    const Key& key = *settings_.At(path).key;
    if (CheckValue(key, value).ok) {
      settings_.Put(path, std::move(value), origin, std::string(flag));
    } else {
      errors_.Add(Cat(flag, " ", JsonOf(value), ": expected ", Expected(key)));
    }
  }

  void NoValue(std::string_view path, std::string_view flag) {
    errors_.Add(Cat(settings_.document().At(settings_.At(path).position), ": ",
                    path, " = \"auto\", but the trainer has no value for it: ",
                    "set ", flag, " or write a value in the file"));
  }

  void Contradicts(std::string_view path, std::string_view flag,
                   const std::string& wanted) {
    errors_.Add(Cat(settings_.Show(path), ", but ", flag, " is ", wanted,
                    ": change one of them, or write \"auto\" in the file"));
  }

  void Plain() {
    Fill("gradient_clipping", trainer_.max_grad_norm, "--max-grad-norm",
         MakeNumber);
    Fill("optimizer.params.lr", trainer_.lr, "--lr", MakeNumber);
    Fill("optimizer.params.betas", trainer_.betas, "--betas",
         [](const schedule::Betas& betas) {
           return MakePair(betas.beta1, betas.beta2);
         });
    Fill("optimizer.params.eps", trainer_.eps, "--eps", MakeNumber);
    Fill("optimizer.params.weight_decay", trainer_.weight_decay,
         "--weight-decay", MakeNumber);
    // Without an optimizer in the file the trainer makes its own.
    if (settings_.HasBlock("optimizer")) return;
    const auto take = [&](std::string_view path, auto value, auto make,
                          std::string_view flag) {
      if (!value.value || value.set_by_user) return;
      Take(path, make(*value.value), Origin::kTrainer, flag);
    };
    take("optimizer.params.lr", trainer_.lr, MakeNumber, "--lr");
    take("optimizer.params.eps", trainer_.eps, MakeNumber, "--eps");
    take("optimizer.params.weight_decay", trainer_.weight_decay, MakeNumber,
         "--weight-decay");
    take(
        "optimizer.params.betas", trainer_.betas,
        [](const schedule::Betas& betas) {
          return MakePair(betas.beta1, betas.beta2);
        },
        "--betas");
  }

  void Scheduler() {
    const std::string_view min = "scheduler.params.warmup_min_lr";
    if (settings_.At(min).is_auto) {
      settings_.Put(min, MakeNumbers(0.0), Origin::kAuto, "0");
    }
    const bool warmup =
        settings_.Text("scheduler.type").find("Warmup") != std::string::npos;
    const bool ends = warmup && settings_.Text("scheduler.type") != "WarmupLR";
    Fill("scheduler.params.warmup_max_lr", trainer_.lr, "--lr", MakeNumbers,
         true, false);
    Fill(
        "scheduler.params.warmup_num_steps", trainer_.warmup_num_steps,
        "--warmup-steps",
        [](std::int64_t n) { return MakeInt(std::max<std::int64_t>(1, n)); },
        true, warmup);
    Fill("scheduler.params.total_num_steps", trainer_.total_num_steps,
         "--steps", MakeInt, true, ends);
  }

  void Precision() {
    const std::string_view fp16 = "fp16.enabled";
    const std::string_view bf16 = "bf16.enabled";
    const std::optional<Dtype> wanted = trainer_.precision.value;
    const bool by_user = trainer_.precision.set_by_user;
    const bool open = settings_.At(fp16).is_auto || settings_.At(bf16).is_auto;
    bool used = false;
    for (const auto& [path, dtype] :
         {std::pair{fp16, Dtype::kFp16}, std::pair{bf16, Dtype::kBf16}}) {
      const Setting& setting = settings_.At(path);
      if (setting.is_auto) {
        if (!wanted) {
          NoValue(path, "--precision");
        } else {
          settings_.Put(path, MakeBool(*wanted == dtype), Origin::kAuto,
                        "--precision");
        }
      } else if (setting.in_file) {
        if (by_user && setting.value.boolean != (*wanted == dtype)) {
          Contradicts(path, "--precision", std::string(DtypeName(*wanted)));
        }
      } else if (wanted == dtype && (by_user || open)) {
        // A block that is not there is added, as accelerate does.
        settings_.Put(path, MakeBool(true), Origin::kTrainer, "--precision");
      }
      used = used || (wanted == dtype && settings_.Bool(path));
    }
    if (wanted && *wanted != Dtype::kFp32 && !used && !by_user &&
        !settings_.InFile(fp16) && !settings_.InFile(bf16)) {
      settings_.Warn(wanted == Dtype::kFp16 ? fp16 : bf16,
                     Cat("the file has neither fp16 nor bf16: training runs "
                         "in fp32; set --precision to have ",
                         DtypeName(*wanted)));
    }
  }

  void Buckets() {
    const std::int64_t stage = settings_.Int("zero_optimization.stage");
    const auto bucket = [&](std::string_view path, bool stage3, auto value,
                            std::string_view formula) {
      const Setting& setting = settings_.At(path);
      if (!setting.is_auto) return;
      if (stage3 && stage < 3) {
        settings_.Put(path, MakeFromJson(setting.key->def), Origin::kAuto,
                      "default below stage 3");
        return;
      }
      if (!trainer_.hidden_size.value) {
        NoValue(path, "--width (--hidden-size in stowctl)");
        return;
      }
      const std::int64_t hidden = *trainer_.hidden_size.value;
      if (hidden < 1 || hidden > kHiddenSizeMax) {
        errors_.Add(Cat("the hidden size is ", hidden,
                        ": expected an integer from 1 to ", kHiddenSizeMax));
        return;
      }
      settings_.Put(path, MakeInt(value(hidden)), Origin::kAuto,
                    Cat(formula, " with width ", hidden));
    };
    bucket(
        "zero_optimization.reduce_bucket_size", false,
        [](std::int64_t h) { return h * h; }, "h^2");
    bucket(
        "zero_optimization.stage3_prefetch_bucket_size", true,
        [](std::int64_t h) {
          const auto width = static_cast<double>(h);
          return static_cast<std::int64_t>(0.9 * width * width);
        },
        "int(0.9 h^2)");
    bucket(
        "zero_optimization.stage3_param_persistence_threshold", true,
        [](std::int64_t h) { return 10 * h; }, "10 h");
    const std::string_view gather =
        "zero_optimization.stage3_gather_16bit_weights_on_model_save";
    if (settings_.At(gather).is_auto) {
      settings_.Put(gather, MakeBool(false), Origin::kAuto, "false");
    }
  }

  absl::Status FillBatch() {
    const bool train_is_auto = settings_.At(kTrain).is_auto;
    const bool train_absent = !train_is_auto && !settings_.At(kTrain).has_value;
    Fill(kMicro, trainer_.micro_batch, "--micro-batch", MakeInt);
    Fill(kAccumulation, trainer_.gradient_accumulation_steps, "--accumulation",
         MakeInt);
    if (!train_is_auto) {
      Fill(kTrain, trainer_.train_batch_size, "--train-batch", MakeInt);
    }
    STOWAGE_RETURN_IF_ERROR(errors_.ToStatus());
    // A file that says no batch: the trainer's defaults serve.
    if ((train_absent || train_is_auto) && !settings_.At(kTrain).has_value &&
        !settings_.At(kMicro).has_value && trainer_.micro_batch.value) {
      Take(kMicro, MakeInt(*trainer_.micro_batch.value), Origin::kTrainer,
           "--micro-batch");
      if (!settings_.At(kAccumulation).has_value &&
          trainer_.gradient_accumulation_steps.value) {
        Take(kAccumulation,
             MakeInt(*trainer_.gradient_accumulation_steps.value),
             Origin::kTrainer, "--accumulation");
      }
      STOWAGE_RETURN_IF_ERROR(errors_.ToStatus());
    }
    BatchGiven given{settings_.MaybeInt(kTrain), settings_.MaybeInt(kMicro),
                     settings_.MaybeInt(kAccumulation)};
    if (train_is_auto && !given.micro) {
      if (!trainer_.train_batch_size.value) {
        NoValue(kTrain, "--train-batch");
        return errors_.ToStatus();
      }
      given.train = *trainer_.train_batch_size.value;
    } else if (train_is_auto && trainer_.train_batch_size.set_by_user) {
      given.train = trainer_.train_batch_size.value;
    }
    const absl::StatusOr<Batch> batch =
        ResolveBatch(given, trainer_.world_size);
    if (!batch.ok()) {
      Position position;
      for (const char* path : {kTrain, kMicro, kAccumulation}) {
        if (position.line == 0) position = settings_.At(path).position;
      }
      return absl::InvalidArgumentError(
          Cat(settings_.document().At(position), ": ",
              std::string(batch.status().message())));
    }
    const auto derive = [&](std::string_view path, std::int64_t value,
                            std::string_view how) {
      if (settings_.At(path).has_value) return;
      settings_.Put(
          path, MakeInt(value),
          train_is_auto && path == kTrain ? Origin::kAuto : Origin::kDerived,
          std::string(how));
    };
    derive(kMicro, batch->micro, "train_batch_size / accumulation / ranks");
    if (!given.accumulation && !(given.train && given.micro)) {
      derive(kAccumulation, batch->accumulation, "1 where none is given");
    } else {
      derive(kAccumulation, batch->accumulation,
             "train_batch_size / micro batch / ranks");
    }
    derive(kTrain, batch->train, "micro batch * accumulation * ranks");
    return absl::OkStatus();
  }

  const TrainerValues& trainer_;
  Settings& settings_;
  ErrorList errors_;
};

}  // namespace

absl::Status FillFromTrainer(const TrainerValues& trainer, Settings& settings) {
  return Filler(trainer, settings).Run();
}

}  // namespace stowage::engine::config
