// The configuration reader against any bytes: it gives one error or a
// resolution, which can then be explained, planned from and scheduled by.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "engine/config/config.h"
#include "engine/config/json_reader.h"
#include "engine/schedule/schedule.h"

namespace stowage {
namespace {

namespace config = engine::config;

// A trainer with a value for every "auto".
config::TrainerValues Trainer() {
  config::TrainerValues values;
  values.world_size = 2;
  values.micro_batch = 4;
  values.gradient_accumulation_steps = 1;
  values.lr = 1e-3;
  values.betas = engine::schedule::Betas{0.9, 0.999};
  values.eps = 1e-8;
  values.weight_decay = 0.01;
  values.warmup_num_steps = 10;
  values.total_num_steps = 100;
  values.max_grad_norm = 1.0;
  values.hidden_size = 64;
  values.precision = Dtype::kFp16;
  return values;
}

// An error is one that can be shown: not empty, no zero byte in it.
void CheckError(const absl::Status& status) {
  const std::string message(status.message());
  if (message.empty() || message.find('\0') != std::string::npos) abort();
}

void Use(const config::Resolution& resolution) {
  const std::string json = config::ExplainJson(resolution);
  // What we print as JSON, we read.
  if (!config::ParseJson(json, "explained").ok()) abort();
  if (!config::ParseJson(config::ResolvedJson(resolution), "resolved").ok()) {
    abort();
  }
  if (config::ExplainText(resolution).empty()) abort();
  config::CheckSupported(resolution.config).IgnoreError();
  config::ToStorageSpec(resolution.config, 2);
  const auto schedule = engine::schedule::Schedule::Create(
      resolution.config.scheduler,
      {{resolution.config.optimizer.lr, resolution.config.optimizer.betas}});
  if (!schedule.ok()) {
    CheckError(schedule.status());
    return;
  }
  for (const std::int64_t step : {0, 1, 2, 10, 1000000}) {
    schedule->Lr(step, 0);
    schedule->BetasAt(step, 0);
  }
}

}  // namespace
}  // namespace stowage

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  namespace config = stowage::engine::config;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto document = config::ParseConfig(text, "fuzz.json");
  if (!document.ok()) {
    stowage::CheckError(document.status());
    return 0;
  }
  // Once with a trainer that fills "auto", once without one.
  for (const auto& trainer : {stowage::Trainer(), config::TrainerValues{}}) {
    const auto resolution = config::Resolve(*document, trainer);
    if (resolution.ok()) {
      stowage::Use(*resolution);
    } else {
      stowage::CheckError(resolution.status());
    }
  }
  return 0;
}
