// What the configuration's tests share.

#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/config/config.h"
#include "engine/config/document.h"

namespace stowage::engine::config {

// Resolves `text` as file "c.json".
inline absl::StatusOr<Resolution> ResolveText(
    std::string_view text, const TrainerValues& trainer = {}) {
  const absl::StatusOr<Document> document = ParseConfig(text, "c.json");
  if (!document.ok()) return document.status();
  return Resolve(*document, trainer);
}

// The error's message, or "" if there is none.
inline std::string ErrorOf(std::string_view text,
                           const TrainerValues& trainer = {}) {
  const absl::StatusOr<Resolution> resolution = ResolveText(text, trainer);
  return resolution.ok() ? "" : std::string(resolution.status().message());
}

// All warnings, a line each.
inline std::string WarningsOf(const Resolution& resolution) {
  std::string out;
  for (const Warning& warning : resolution.warnings) {
    out += warning.ToString() + "\n";
  }
  return out;
}

inline const ResolvedKey* FindResolved(const Resolution& resolution,
                                       std::string_view path) {
  for (const ResolvedKey& key : resolution.keys) {
    if (key.path == path) return &key;
  }
  return nullptr;
}

// A trainer with a value for everything, none set by its user.
inline TrainerValues FullTrainer() {
  TrainerValues trainer;
  trainer.world_size = 2;
  trainer.micro_batch = 4;
  trainer.gradient_accumulation_steps = 3;
  trainer.lr = 3e-4;
  trainer.betas = schedule::Betas{0.85, 0.995};
  trainer.eps = 1e-7;
  trainer.weight_decay = 0.05;
  trainer.warmup_num_steps = 10;
  trainer.total_num_steps = 200;
  trainer.max_grad_norm = 0.5;
  trainer.hidden_size = 512;
  trainer.precision = Dtype::kFp16;
  return trainer;
}

}  // namespace stowage::engine::config
