// One value against one row of the schema.

#pragma once

#include <string>

#include "engine/config/document.h"
#include "engine/config/schema.h"

namespace stowage::engine::config {

// Whether `value` is the word "auto" where it can stand for something else.
bool IsAuto(const Key& key, const Value& value);

// Checks type and bounds and brings `value` to the form that Setting::value
// promises. Returns: a hint for the message ("" if there is none but the value
// is wrong), or nullptr-like `ok` true.
struct ValueCheck {
  bool ok = true;
  std::string hint;  // why, where Expected(key) does not say it all
};
ValueCheck CheckValue(const Key& key, Value& value);

}  // namespace stowage::engine::config
