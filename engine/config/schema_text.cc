// The schema as text: docs/configuration.md's tables, and JSON for stowctl.

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "engine/config/config.h"
#include "engine/config/json_text.h"
#include "engine/config/schema.h"
#include "engine/config/text.h"

namespace stowage::engine::config {
namespace {

const char* RuleName(Rule rule) {
  switch (rule) {
    case Rule::kHonoured:
      return "honoured";
    case Rule::kFixed:
      return "fixed";
    case Rule::kOnly:
      return "only";
    case Rule::kNoEffect:
      return "no effect";
    case Rule::kRefused:
      return "refused";
  }
  return "";
}

const char* TypeName(KeyType type) {
  switch (type) {
    case KeyType::kBlock:
      return "block";
    case KeyType::kBool:
      return "bool";
    case KeyType::kInt:
      return "int";
    case KeyType::kNumber:
      return "number";
    case KeyType::kString:
      return "string";
    case KeyType::kEnum:
      return "enum";
    case KeyType::kPair:
      return "pair";
    case KeyType::kNumbers:
      return "numbers";
    case KeyType::kStrings:
      return "strings";
    case KeyType::kBytes:
      return "bytes";
    case KeyType::kAny:
      return "any";
  }
  return "";
}

// What the second sentence of "effect" says of keys that are not honoured.
std::string EffectText(const Key& key) {
  if (*key.same_as != '\0') {
    return Cat("another name of `", key.same_as, "`",
               *key.effect == '\0' ? "" : ": ", key.effect);
  }
  switch (key.rule) {
    case Rule::kHonoured:
      return key.effect;
    case Rule::kFixed:
      return Cat("always as `", key.only, "`, else a warning: ", key.effect);
    case Rule::kOnly:
      return Cat("only `", key.only, "`, else refused: ", key.effect);
    case Rule::kNoEffect:
      return Cat("none, with a warning: ", key.effect);
    case Rule::kRefused:
      return Cat("refused: ", key.effect);
  }
  return "";
}

std::string Cell(const std::string& text) {
  return absl::StrReplaceAll(text, {{"|", "\\|"}});
}

std::string TestCell(const Key& key) {
  std::string out = Cat("`ConfigKey:", key.path, "`");
  for (const std::string_view test : Split(key.tests, ' ')) {
    Append(&out, " `", test, "`");
  }
  return out;
}

std::string DefaultCell(const Key& key) {
  if (key.type == KeyType::kBlock) return "";
  if (*key.same_as != '\0' || *key.def == '\0') return "";
  return Cat("`", key.def, "`");
}

struct Section {
  const char* title;
  std::span<const Key> keys;
};

std::vector<Section> Sections() {
  return {{"Top level", TopKeys()},
          {"Precision", PrecisionKeys()},
          {"Optimizer", OptimizerKeys()},
          {"Scheduler", SchedulerKeys()},
          {"ZeRO and offload", ZeroKeys()},
          {"Monitors and timers", MonitorKeys()},
          {"aio, and blocks that are refused or have no effect", OtherKeys()},
          {"stowage", StowageKeys()}};
}

}  // namespace

std::string SchemaMarkdown() {
  std::string out;
  for (const Section& section : Sections()) {
    Append(&out, "### ", section.title,
           "\n\n| key | takes | default | effect here | difference "
           "from DeepSpeed | test |\n|---|---|---|---|---|---|\n");
    for (const Key& key : section.keys) {
      Append(&out, "| `", key.path, "` | ", Cell(Expected(key)), " | ",
             DefaultCell(key), " | ", Cell(EffectText(key)));
      if (*key.owners != '\0') {
        Append(&out, " (", absl::StrReplaceAll(key.owners, {{"|", ", "}}), ")");
      }
      Append(&out, " | ", Cell(key.difference), " | ", TestCell(key), " |\n");
    }
    out += '\n';
  }
  return out;
}

std::string DumpSchema() {
  std::string out = "[\n";
  const std::vector<Key>& keys = Schema();
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const Key& key = keys[i];
    Append(
        &out, " {\"key\": ", JsonString(key.path),
        ", \"type\": ", JsonString(TypeName(key.type)),
        ", \"expected\": ", JsonString(Expected(key)),
        ", \"default\": ", *key.def == '\0' ? "null" : key.def,
        ", \"rule\": ", JsonString(RuleName(key.rule)), ", \"same_as\": ",
        *key.same_as == '\0' ? "null" : JsonString(key.same_as),
        ", \"types\": ", *key.owners == '\0' ? "null" : JsonString(key.owners),
        ", \"effect\": ", JsonString(EffectText(key)),
        ", \"difference\": ", JsonString(key.difference), "}",
        i + 1 < keys.size() ? ",\n" : "\n");
  }
  out += "]\n";
  return out;
}

}  // namespace stowage::engine::config
