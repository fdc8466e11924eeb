#include "engine/config/settings.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "absl/strings/str_replace.h"
#include "common/check.h"
#include "engine/config/json_reader.h"
#include "engine/config/json_text.h"
#include "engine/config/text.h"
#include "engine/config/value_check.h"

namespace stowage::engine::config {
namespace {

std::string Cut(std::string_view key) {
  return key.size() <= 64 ? std::string(key) : Cat(key.substr(0, 60), "...");
}

bool Same(const Value& a, const Value& b) {
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Value::Kind::kBool:
      return a.boolean == b.boolean;
    case Value::Kind::kNumber:
      return a.number == b.number;
    case Value::Kind::kString:
      return a.text == b.text;
    default:
      return false;
  }
}

bool HasOwner(const Key& key, std::string_view type) {
  for (const std::string_view owner : Split(key.owners, '|')) {
    if (owner == type) return true;
  }
  return false;
}

}  // namespace

void ErrorList::Add(const std::string& line, bool refused) {
  ++count_;
  all_refused_ = all_refused_ && refused;
  if (count_ > kLinesMax) return;
  if (!lines_.empty()) lines_ += '\n';
  lines_ += line;
}

absl::Status ErrorList::ToStatus() const {
  if (empty()) return absl::OkStatus();
  std::string text = lines_;
  if (count_ > kLinesMax) {
    Append(&text, "\nand ", count_ - kLinesMax, " more");
  }
  return all_refused_ ? absl::UnimplementedError(text)
                      : absl::InvalidArgumentError(text);
}

Settings::Settings(const Document& document) : document_(&document) {
  settings_.reserve(Schema().size());
  for (const Key& key : Schema()) {
    Setting setting;
    setting.key = &key;
    settings_.push_back(std::move(setting));
  }
}

absl::StatusOr<Settings> Settings::Read(const Document& document) {
  Settings settings(document);
  settings.Walk(document.root, "", 0);
  settings.CheckOwners();
  settings.FoldAliases();
  settings.ApplyRules();
  if (!settings.errors_.empty()) return settings.errors_.ToStatus();
  for (Setting& setting : settings.settings_) {
    const Key& key = *setting.key;
    if (setting.has_value || setting.is_auto || *key.def == '\0') continue;
    setting.value = MakeFromJson(key.def);
    if (key.type == KeyType::kNumbers) {
      setting.value = MakeNumbers(setting.value.number);
    }
    setting.has_value = true;
  }
  return settings;
}

Setting& Settings::At(std::string_view path) {
  const Key* key = FindKey(path);
  STOWAGE_CHECK(key != nullptr);
  return settings_[static_cast<std::size_t>(key - Schema().data())];
}

const Setting& Settings::At(std::string_view path) const {
  const Key* key = FindKey(path);
  STOWAGE_CHECK(key != nullptr);
  return settings_[static_cast<std::size_t>(key - Schema().data())];
}

bool Settings::HasBlock(std::string_view path) const {
  return std::find(blocks_.begin(), blocks_.end(), path) != blocks_.end();
}

bool Settings::Bool(std::string_view path) const {
  const Setting& setting = At(path);
  STOWAGE_CHECK(setting.value.kind == Value::Kind::kBool);
  return setting.value.boolean;
}

std::int64_t Settings::Int(std::string_view path) const {
  const Setting& setting = At(path);
  STOWAGE_CHECK(setting.value.is_integer);
  return setting.value.integer;
}

double Settings::Number(std::string_view path) const {
  const Setting& setting = At(path);
  STOWAGE_CHECK(setting.value.kind == Value::Kind::kNumber);
  return setting.value.number;
}

std::string Settings::Text(std::string_view path) const {
  const Setting& setting = At(path);
  if (!setting.has_value) return "";
  STOWAGE_CHECK(setting.value.kind == Value::Kind::kString);
  return setting.value.text;
}

std::vector<double> Settings::Numbers(std::string_view path) const {
  std::vector<double> out;
  for (const Value& item : At(path).value.items) out.push_back(item.number);
  return out;
}

std::optional<std::int64_t> Settings::MaybeInt(std::string_view path) const {
  const Setting& setting = At(path);
  if (!setting.has_value) return std::nullopt;
  return Int(path);
}

void Settings::Put(std::string_view path, Value value, Origin origin,
                   std::string source) {
  Setting& setting = At(path);
  setting.value = std::move(value);
  setting.has_value = true;
  setting.is_auto = false;
  setting.origin = origin;
  setting.source = std::move(source);
}

void Settings::Warn(std::string_view path, std::string message) {
  const Setting& setting = At(path);
  warnings_.push_back({std::string(path), std::move(message),
                       setting.in_file ? Where(setting.position) : ""});
}

std::string Settings::Where(Position position) const {
  return document_->At(position);
}

std::string Settings::Show(std::string_view path) const {
  const Setting& setting = At(path);
  const std::string place =
      Where(setting.in_file ? setting.position : Position{});
  if (!setting.has_value) return Cat(place, ": ", path);
  return Cat(place, ": ", path, " = ",
             Single(*setting.key, setting.value).Show());
}

void Settings::Walk(const Value& block, const std::string& prefix, int depth) {
  STOWAGE_CHECK(depth <= kDepthMax);
  for (const Member& member : block.members) {
    if (errors_.full()) return;
    const std::string path =
        prefix.empty() ? member.key : Cat(prefix, ".", member.key);
    // A key with a dot in its name is not a path.
    const Key* key =
        member.key.find('.') != std::string::npos ? nullptr : FindKey(path);
    if (key == nullptr) {
      const Key* near = NearestKey(path);
      errors_.Add(Cat(
          Where(member.position), ": unknown key ", JsonString(Cut(member.key)),
          prefix.empty() ? " at the top level" : Cat(" in ", prefix),
          near == nullptr ? ""
                          : Cat(": did you mean \"", near->path, "\"",
                                !prefix.empty() && near->block().empty()
                                    ? " at the top level"
                                    : "",
                                "?")));
      continue;
    }
    Take(*key, member);
    if (key->type == KeyType::kBlock &&
        member.value.kind == Value::Kind::kObject) {
      blocks_.push_back(path);
      Walk(member.value, path, depth + 1);
    }
  }
}

void Settings::Take(const Key& key, const Member& member) {
  Setting& setting = At(key.path);
  const Value& given = member.value;
  if (key.nullable && given.kind == Value::Kind::kNull) return;
  setting.in_file = true;
  setting.position = given.position;
  setting.origin = Origin::kFile;
  setting.source = Where(given.position);
  if (key.type == KeyType::kBlock && given.kind == Value::Kind::kBool &&
      std::string_view(key.path) == "zero_optimization") {
    setting.in_file = false;
    Setting& stage = At("zero_optimization.stage");
    stage.in_file = true;
    stage.position = given.position;
    stage.origin = Origin::kFile;
    stage.source = Where(given.position);
    stage.value = MakeInt(given.boolean ? 1 : 0);
    stage.has_value = true;
    Warn("zero_optimization.stage",
         Cat("deprecated: zero_optimization is ",
             given.boolean ? "true, taken as stage 1"
                           : "false, taken as stage 0"));
    return;
  }
  if (IsAuto(key, given)) {
    if (key.auto_rule != Auto::kNone) {
      setting.is_auto = true;
    } else if (key.rule == Rule::kHonoured && !key.typed()) {
      errors_.Add(Cat(Where(given.position), ": ", key.path,
                      " = \"auto\": nothing fills it: expected ",
                      Expected(key)));
    } else if (key.rule == Rule::kHonoured) {
      Warn(key.path, Cat("nothing fills \"auto\" here: the default",
                         *key.def == '\0' ? "" : ", ", key.def, ", holds"));
      setting.in_file = false;
      setting.origin = Origin::kDefault;
      setting.source.clear();
    } else {
      setting.has_value = false;  // ApplyRules() warns or refuses
    }
    return;
  }
  Value value = given;
  const ValueCheck check = CheckValue(key, value);
  if (!check.ok) {
    errors_.Add(Cat(Where(given.position), ": ", key.path, " = ", given.Show(),
                    ": expected ", Expected(key),
                    check.hint.empty() ? "" : Cat(" (", check.hint, ")"),
                    ", found ", given.KindName()));
    return;
  }
  if (key.type == KeyType::kBlock) return;
  value.position = given.position;
  setting.value = std::move(value);
  setting.has_value = true;
}

void Settings::CheckOwners() {
  for (const std::string_view block : {"optimizer", "scheduler"}) {
    const std::string type_path = Cat(block, ".type");
    const Setting& type = At(type_path);
    if (!type.has_value) {
      if (HasBlock(block) && !type.in_file && errors_.empty()) {
        errors_.Add(Cat(Where(At(block).position), ": ", type_path,
                        " is missing: expected ", Expected(*type.key)));
      }
      continue;
    }
    for (const Setting& setting : settings_) {
      const Key& key = *setting.key;
      if (!setting.in_file || *key.owners == '\0' ||
          std::string_view(key.path).substr(0, block.size()) != block ||
          HasOwner(key, type.value.text)) {
        continue;
      }
      if (!setting.has_value && !setting.is_auto) continue;  // said already
      errors_.Add(Cat(Where(setting.position), ": ", key.path, ": ",
                      type.value.text, " has no such parameter; it is one of ",
                      absl::StrReplaceAll(key.owners, {{"|", ", "}})));
    }
  }
}

void Settings::FoldAliases() {
  for (Setting& alias : settings_) {
    const Key& key = *alias.key;
    if (*key.same_as == '\0' || !alias.in_file) continue;
    if (!alias.has_value && !alias.is_auto) continue;  // wrong, said already
    Setting& target = At(key.same_as);
    if (target.in_file) {
      errors_.Add(Cat(Where(alias.position), ": ", key.path, " and ",
                      key.same_as, " (", Where(target.position),
                      ") are two names of one key: give one"));
      continue;
    }
    const bool turns = key.type == KeyType::kBool &&
                       target.key->type == KeyType::kEnum;  // cpu_offload
    const bool deprecated = turns ||
                            key.name().find("fp16") != std::string_view::npos ||
                            key.block() == "bfloat16";
    if (deprecated) {
      Warn(key.path,
           Cat("deprecated: write ", key.same_as, turns ? ": \"cpu\"" : ""));
    }
    if (turns && !alias.value.boolean) continue;
    target.in_file = true;
    target.is_auto = alias.is_auto;
    target.has_value = alias.has_value;
    target.value = turns ? MakeString("cpu") : alias.value;
    target.position = alias.position;
    target.origin = Origin::kFile;
    target.source = Cat(alias.source, " as ", key.path);
  }
}

void Settings::ApplyRules() {
  for (const Setting& setting : settings_) {
    const Key& key = *setting.key;
    if (!setting.in_file || *key.same_as != '\0') continue;
    switch (key.rule) {
      case Rule::kHonoured:
        break;
      case Rule::kFixed:
        if (setting.has_value && !Same(setting.value, MakeFromJson(key.only))) {
          Warn(key.path,
               Cat(setting.value.Show(), " has no effect: ", key.effect));
        }
        break;
      case Rule::kOnly:
        if (setting.has_value && !Same(setting.value, MakeFromJson(key.only))) {
          errors_.Add(Cat(Where(setting.position), ": ", key.path, " = ",
                          setting.value.Show(), ": only ", key.only,
                          " is available: ", key.effect),
                      true);
        }
        break;
      case Rule::kNoEffect:
        Warn(key.path, Cat("no effect: ", key.effect));
        break;
      case Rule::kRefused:
        errors_.Add(Cat(Where(setting.position), ": ", key.path,
                        " is refused: ", key.effect),
                    true);
        break;
    }
  }
}

const Value& Single(const Key& key, const Value& value) {
  return key.type == KeyType::kNumbers && value.items.size() == 1
             ? value.items[0]
             : value;
}

Value MakeBool(bool value) {
  Value out;
  out.kind = Value::Kind::kBool;
  out.boolean = value;
  return out;
}

Value MakeInt(std::int64_t value) {
  Value out;
  out.kind = Value::Kind::kNumber;
  out.number = static_cast<double>(value);
  out.is_integer = true;
  out.integer = value;
  out.text = Cat(value);
  return out;
}

Value MakeNumber(double value) {
  Value out;
  out.kind = Value::Kind::kNumber;
  out.number = value;
  out.text = JsonNumber(value);
  return out;
}

Value MakeString(std::string value) {
  Value out;
  out.kind = Value::Kind::kString;
  out.text = std::move(value);
  return out;
}

Value MakePair(double first, double second) {
  Value out;
  out.kind = Value::Kind::kArray;
  out.items = {MakeNumber(first), MakeNumber(second)};
  return out;
}

Value MakeNumbers(double value) {
  Value out;
  out.kind = Value::Kind::kArray;
  out.items = {MakeNumber(value)};
  return out;
}

Value MakeFromJson(std::string_view json) {
  absl::StatusOr<Value> value = ParseJson(json, "schema");
  STOWAGE_CHECK(value.ok());
  value->position = {};
  return *std::move(value);
}

std::string JsonOf(const Value& value) {
  switch (value.kind) {
    case Value::Kind::kNull:
      return "null";
    case Value::Kind::kBool:
      return value.boolean ? "true" : "false";
    case Value::Kind::kNumber:
      if (value.is_integer) return Cat(value.integer);
      return std::isfinite(value.number) ? JsonNumber(value.number)
                                         : JsonString(JsonNumber(value.number));
    case Value::Kind::kString:
      return JsonString(value.text);
    case Value::Kind::kArray: {
      std::string out = "[";
      for (const Value& item : value.items) {
        Append(&out, out.size() > 1 ? "," : "", JsonOf(item));
      }
      return out + "]";
    }
    case Value::Kind::kObject: {
      std::string out = "{";
      for (const Member& member : value.members) {
        Append(&out, out.size() > 1 ? "," : "", JsonString(member.key), ":",
               JsonOf(member.value));
      }
      return out + "}";
    }
  }
  return "";
}

}  // namespace stowage::engine::config
