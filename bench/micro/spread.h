// What a bench says of its rounds.

#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

namespace stowage {

// Requires: at least one value.
inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// As a JSON object.
inline std::string Spread(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  char text[128];
  std::snprintf(text, sizeof(text),
                "{\"min\": %.4f, \"median\": %.4f, \"max\": %.4f}",
                values.front(), values[values.size() / 2], values.back());
  return text;
}

}  // namespace stowage
