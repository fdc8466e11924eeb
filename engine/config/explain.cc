// A resolution as text and JSON.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/config/config.h"
#include "engine/config/json_text.h"
#include "engine/config/schema.h"
#include "engine/config/text.h"

namespace stowage::engine::config {
namespace {

std::string Pad(std::string text, std::size_t width) {
  if (text.size() < width) text.append(width - text.size(), ' ');
  return text;
}

// What the table says of a value that stands for something else: of "empty: a
// private server" the latter; empty if it says nothing.
std::string_view MeaningOf(const ResolvedKey& key) {
  const Key* row = FindKey(key.path);
  if (row == nullptr) return "";
  const std::string_view effect = row->effect;
  const std::string_view word = key.value == "\"\"" ? "; empty: " : "; 0: ";
  if (key.value != "\"\"" && key.value != "0") return "";
  const std::size_t at = effect.find(word);
  if (at == std::string_view::npos) return "";
  const std::string_view rest = effect.substr(at + word.size());
  return rest.substr(0, rest.find(';'));
}

// A number that is there to be never reached reads better in words.
std::string Shown(const ResolvedKey& key) {
  return key.value == std::to_string(INT64_MAX) ? "no limit" : key.value;
}

// "line 3", "auto: --lr", "default". `file` is the position's part before
// ":line:column".
std::string From(const ResolvedKey& key) {
  switch (key.origin) {
    case Origin::kFile: {
      const std::size_t column = key.source.rfind(':');
      const std::size_t line = column == std::string::npos || column == 0
                                   ? std::string::npos
                                   : key.source.rfind(':', column - 1);
      if (line == std::string::npos) return Cat("file: ", key.source);
      return Cat("line ", key.source.substr(line + 1, column - line - 1));
    }
    case Origin::kAuto:
      return Cat("auto: ", key.source);
    case Origin::kTrainer:
      return Cat("trainer: ", key.source);
    case Origin::kDefault: {
      const std::string_view meaning =
          key.source.empty() ? MeaningOf(key) : key.source;
      return meaning.empty() ? "default" : Cat("default: ", meaning);
    }
    case Origin::kDerived:
      return Cat("derived: ", key.source);
  }
  return "";
}

// "zero_optimization.offload_param" of
// "zero_optimization.offload_param.device"; empty for a key of the top level.
std::string_view BlockOf(std::string_view path) {
  const std::size_t dot = path.rfind('.');
  return dot == std::string_view::npos ? std::string_view()
                                       : path.substr(0, dot);
}

std::string_view NameOf(std::string_view path) {
  const std::size_t dot = path.rfind('.');
  return dot == std::string_view::npos ? path : path.substr(dot + 1);
}

// One table a block, in the order in which blocks first come.
std::string Tables(const Resolution& resolution) {
  std::size_t name_width = 0;
  std::size_t value_width = 5;
  std::vector<std::string_view> blocks;
  for (const ResolvedKey& key : resolution.keys) {
    name_width = std::max(name_width, NameOf(key.path).size());
    if (Shown(key).size() <= 24) {
      value_width = std::max(value_width, Shown(key).size());
    }
    const std::string_view block = BlockOf(key.path);
    if (std::find(blocks.begin(), blocks.end(), block) == blocks.end()) {
      blocks.push_back(block);
    }
  }
  std::string out = Cat(Pad("key", name_width + 2), "  ",
                        Pad("value", value_width), "  from\n");
  for (const std::string_view block : blocks) {
    Append(&out, "\n", block.empty() ? "(top level)" : block, "\n");
    for (const ResolvedKey& key : resolution.keys) {
      if (BlockOf(key.path) != block) continue;
      Append(&out, "  ", Pad(std::string(NameOf(key.path)), name_width), "  ",
             Pad(Shown(key), value_width), "  ", From(key), "\n");
    }
  }
  return out;
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
  std::string out = Tables(resolution);
  if (!resolution.warnings.empty()) {
    Append(&out, "\nwarnings\n");
    for (const Warning& warning : resolution.warnings) {
      Append(&out, "  ", warning.path, ": ", warning.message,
             warning.position.empty() ? "" : Cat(" (", warning.position, ")"),
             "\n");
    }
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
