// Which settings have no effect in the combination at hand, and other traps
// that deserve a warning. Pure.

#pragma once

#include <string>

#include "engine/config/config.h"
#include "engine/config/settings.h"

namespace stowage::engine::config {

// Why a key that needs this has no effect under `config`; empty if it has.
std::string WhyNoEffect(Needs needs, const Config& config);

// Adds one warning for each key of the file that has no effect, and for each
// combination that does something else than one may expect.
void WarnOfCombinations(const Config& config, Settings& settings);

}  // namespace stowage::engine::config
