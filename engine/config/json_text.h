// Turning values into JSON text: strings, numbers, and trees being written.
//
// The explain printer, the schema dump and the JSON lines monitor share these.
// Pure.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace stowage::engine::config {

// `text` in double quotes with JSON's escapes; bytes that are not UTF-8 become
// U+FFFD.
std::string JsonString(std::string_view text);

// The shortest digits that read back as `value`; "Infinity", "-Infinity", "NaN"
// (which this reader, Python and hjson take) where JSON has no number. Integral
// values below 1e15 are written without exponent or fraction.
std::string JsonNumber(double value);

// A float as Python's repr() and csv module print it: shortest digits that read
// back, "0.001", "1e-05", "65536.0", "inf", "nan".
std::string PythonRepr(double value);

// "a.b.c" with a text of JSON: one leaf of a nested object.
struct JsonLeaf {
  std::string path;
  std::string json;
};

// Leaves as one nested object, in the order of first appearance, indented by
// two spaces. Requires: no path is a prefix of another.
std::string NestedJson(const std::vector<JsonLeaf>& leaves);

}  // namespace stowage::engine::config
