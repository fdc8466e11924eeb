// The text of wandb_helper.py, so that there is no file to find at run time.

#pragma once

namespace stowage::engine::monitor {

extern const char* const kWandbScript;

}  // namespace stowage::engine::monitor
