// Says what each "auto" of the configuration file became, and from where.

#pragma once

#include <string>

#include "engine/config/config.h"

namespace stowage::gpt {

// One line a key that the trainer's flags or their defaults decided; nothing
// if there is none. To standard output.
void PrintAutoValues(const std::string& config_path,
                     const engine::config::Resolution& resolution);

}  // namespace stowage::gpt
