#include "examples/gpt/auto_values.h"

#include <algorithm>
#include <cstdio>
#include <vector>

namespace stowage::gpt {

void PrintAutoValues(const std::string& config_path,
                     const engine::config::Resolution& resolution) {
  using engine::config::Origin;
  std::vector<const engine::config::ResolvedKey*> keys;
  std::size_t path_width = 0;
  std::size_t value_width = 0;
  for (const engine::config::ResolvedKey& key : resolution.keys) {
    if (key.origin != Origin::kAuto && key.origin != Origin::kTrainer) continue;
    keys.push_back(&key);
    path_width = std::max(path_width, key.path.size());
    value_width = std::max(value_width, key.value.size());
  }
  if (keys.empty()) return;
  std::printf("%s: what was left to the trainer (\"auto\")\n",
              config_path.c_str());
  for (const engine::config::ResolvedKey* key : keys) {
    std::printf("  %-*s  %*s  %s\n", static_cast<int>(path_width),
                key->path.c_str(), static_cast<int>(value_width),
                key->value.c_str(), key->source.c_str());
  }
  std::fflush(stdout);
}

}  // namespace stowage::gpt
