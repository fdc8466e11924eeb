// How the readers name a series, whatever the file's format.

#pragma once

#include <string>
#include <string_view>

namespace stowage::engine::monitor {

// "lr" of "Train/Samples/lr" and of "Train_Samples_lr"; others as they are.
std::string ShortEventName(std::string_view name);

}  // namespace stowage::engine::monitor
