// A configuration file checked against the schema: one setting per known key.
//
// Between the Document (any JSON) and the Config (typed): the values here have
// their key's type and bounds, aliases are folded into the key they stand for,
// and what is absent has the schema's default. "auto" is still open
// (auto_values.h fills it).
//
// Thread safety: externally synchronized; lives inside Resolve().

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/config/config.h"
#include "engine/config/document.h"
#include "engine/config/schema.h"

namespace stowage::engine::config {

// Collects lines of one error. Bounded: after kLinesMax it only counts.
class ErrorList {
 public:
  static constexpr int kLinesMax = 20;

  // `refused`: known, but not done here (kUnimplemented if all lines are).
  void Add(const std::string& line, bool refused = false);
  bool empty() const { return count_ == 0; }
  bool full() const { return count_ >= kLinesMax; }
  absl::Status ToStatus() const;

 private:
  std::string lines_;
  int count_ = 0;
  bool all_refused_ = true;
};

struct Setting {
  const Key* key = nullptr;
  bool in_file = false;
  Position position;     // of the value, if in the file
  bool is_auto = false;  // in the file as "auto", not filled yet
  bool has_value = false;
  Value value;  // kNumbers is always a list, kBytes and kInt an integer
  Origin origin = Origin::kDefault;
  std::string source;
};

class Settings {
 public:
  // Errors: as Resolve(), for everything that one key alone shows.
  static absl::StatusOr<Settings> Read(const Document& document);

  const Document& document() const { return *document_; }
  const std::vector<Setting>& all() const { return settings_; }
  std::vector<Setting>& all() { return settings_; }
  std::vector<Warning>& warnings() { return warnings_; }

  // Requires: a key of the schema.
  Setting& At(std::string_view path);
  const Setting& At(std::string_view path) const;

  bool InFile(std::string_view path) const { return At(path).in_file; }
  // Whether the file has the block, or any key below it.
  bool HasBlock(std::string_view path) const;

  // Requires: a value of that type.
  bool Bool(std::string_view path) const;
  std::int64_t Int(std::string_view path) const;
  double Number(std::string_view path) const;
  std::string Text(std::string_view path) const;  // "" without a value
  std::vector<double> Numbers(std::string_view path) const;
  std::optional<std::int64_t> MaybeInt(std::string_view path) const;

  void Put(std::string_view path, Value value, Origin origin,
           std::string source);
  void Warn(std::string_view path, std::string message);

  // "file:line:column: path = value", for errors.
  std::string Show(std::string_view path) const;

 private:
  explicit Settings(const Document& document);

  void Walk(const Value& block, const std::string& prefix, int depth);
  void Take(const Key& key, const Member& member);
  void CheckOwners();
  void FoldAliases();
  void ApplyRules();
  std::string Where(Position position) const;

  const Document* document_;
  std::vector<Setting> settings_;  // in schema order
  std::vector<std::string> blocks_;
  std::vector<Warning> warnings_;
  ErrorList errors_;
};

// What to show of a value: a list of one as that one.
const Value& Single(const Key& key, const Value& value);

// Values made here rather than read.
Value MakeBool(bool value);
Value MakeInt(std::int64_t value);
Value MakeNumber(double value);
Value MakeString(std::string value);
Value MakePair(double first, double second);
Value MakeNumbers(double value);
// Requires: JSON of this program's own tables.
Value MakeFromJson(std::string_view json);

// A whole value as JSON text (Value::Show() cuts long ones).
std::string JsonOf(const Value& value);

}  // namespace stowage::engine::config
