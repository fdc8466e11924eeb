// A resolution as text and JSON.

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "engine/config/config.h"
#include "engine/config/json_text.h"
#include "engine/config/text.h"

namespace stowage::engine::config {
namespace {

std::string Pad(std::string text, std::size_t width) {
  if (text.size() < width) text.append(width - text.size(), ' ');
  return text;
}

// "file config.json:3:5", "auto from --lr", "default".
std::string From(const ResolvedKey& key) {
  switch (key.origin) {
    case Origin::kFile:
      return key.source;
    case Origin::kAuto:
      return Cat("auto: ", key.source);
    case Origin::kTrainer:
      return Cat("trainer: ", key.source);
    case Origin::kDefault:
      return key.source.empty() ? "default" : Cat("default: ", key.source);
    case Origin::kDerived:
      return Cat("derived: ", key.source);
  }
  return "";
}

}  // namespace

const char* OriginName(Origin origin) {
  switch (origin) {
    case Origin::kFile:
      return "file";
    case Origin::kAuto:
      return "auto";
    case Origin::kTrainer:
      return "trainer";
    case Origin::kDefault:
      return "default";
    case Origin::kDerived:
      return "derived";
  }
  return "";
}

std::string Warning::ToString() const {
  return Cat(position.empty() ? "" : Cat(position, ": "), "warning: ", path,
             ": ", message);
}

std::string ExplainText(const Resolution& resolution) {
  std::size_t path_width = 3;
  std::size_t value_width = 5;
  for (const ResolvedKey& key : resolution.keys) {
    path_width = std::max(path_width, key.path.size());
    if (key.value.size() <= 40) {
      value_width = std::max(value_width, key.value.size());
    }
  }
  std::string out =
      Cat(Pad("key", path_width), "  ", Pad("value", value_width), "  from\n");
  for (const ResolvedKey& key : resolution.keys) {
    Append(&out, Pad(key.path, path_width), "  ", Pad(key.value, value_width),
           "  ", From(key), "\n");
  }
  if (!resolution.warnings.empty()) out += "\n";
  for (const Warning& warning : resolution.warnings) {
    Append(&out, warning.ToString(), "\n");
  }
  return out;
}

std::string ExplainJson(const Resolution& resolution) {
  std::string out = "{\n  \"keys\": [";
  const char* separator = "\n";
  for (const ResolvedKey& key : resolution.keys) {
    Append(&out, separator, "    {\"key\": ", JsonString(key.path),
           ", \"value\": ", key.value,
           ", \"origin\": ", JsonString(OriginName(key.origin)),
           ", \"source\": ", JsonString(key.source), "}");
    separator = ",\n";
  }
  out += "\n  ],\n  \"warnings\": [";
  separator = "\n";
  for (const Warning& warning : resolution.warnings) {
    Append(&out, separator, "    {\"key\": ", JsonString(warning.path),
           ", \"message\": ", JsonString(warning.message),
           ", \"position\": ", JsonString(warning.position), "}");
    separator = ",\n";
  }
  out += resolution.warnings.empty() ? "]\n}\n" : "\n  ]\n}\n";
  return out;
}

std::string ResolvedJson(const Resolution& resolution) {
  std::vector<JsonLeaf> leaves;
  for (const ResolvedKey& key : resolution.keys) {
    leaves.push_back({key.path, key.value});
  }
  return NestedJson(leaves);
}

}  // namespace stowage::engine::config
