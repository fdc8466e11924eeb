// What this process and its host use of memory, from /proc.

#pragma once

#include "engine/monitor/step_log.h"

namespace stowage::engine::monitor {

// allocated_*: resident bytes of the process, now and at most since the last
// ResetPeak(); reserved_*: its mapped bytes. What cannot be read is zero.
MemoryUse ReadMemoryUse();

// Lets the peak of resident bytes start anew.
void ResetPeakMemory();

}  // namespace stowage::engine::monitor
