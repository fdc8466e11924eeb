// The table of every configuration key: type, default, bounds, and what it
// does.
//
// One row per key, one file per section of the JSON (schema_*.cc). The resolver
// checks and fills a file from this table, docs/configuration.md is generated
// from it, and the mutation suite walks it, so that a key exists once.
//
// Thread safety: immutable.

#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace stowage::engine::config {

enum class KeyType {
  kBlock,  // an object with keys of its own in this table
  kBool,
  kInt,  // 1000, 1e3; not 1.5, not "1000"
  kNumber,
  kString,
  kEnum,     // a string of Key::choices, in any case
  kPair,     // two numbers
  kNumbers,  // a number, or a list with one for each parameter group
  kStrings,  // a list of strings
  kBytes,    // an integer, or a string such as "20GiB"
  kAny,      // not looked into
};

// What becomes of a key that is in the file.
enum class Rule {
  kHonoured,  // has its effect
  kFixed,     // things are always as Key::only says; another value is warned of
  kOnly,      // Key::only is accepted, another value is refused
  kNoEffect,  // any value is accepted and warned of
  kRefused,   // its presence is an error
};

// What "auto" stands for.
enum class Auto {
  kNone,  // an error, or the default with a warning (see Key::typed())
  kMicroBatch,
  kAccumulation,
  kTrainBatch,
  kMaxGradNorm,
  kLr,
  kBetas,
  kEps,
  kWeightDecay,
  kZero,
  kWarmupSteps,
  kTotalSteps,
  kFp16,
  kBf16,
  kReduceBucket,    // width^2
  kPrefetchBucket,  // int(0.9 * width^2), stage 3
  kPersistence,     // 10 * width, stage 3
  kFalse,
};

// When a key can have an effect at all.
enum class Needs {
  kNothing,
  kStage3,
  kParamNvme,
  kOptimizerOffload,
  kOptimizerNvme,
  kAnyNvme,
  kFp16,
  kFp16Dynamic,
  kCsv,
  kWandb,
  kTensorboard,
  kJsonl,
  kC10d,
  kCycleMomentum,
  kCycleDecay,
};

struct Key {
  const char* path = "";  // "zero_optimization.stage"
  KeyType type{};
  const char* def = "";  // JSON; empty: nothing unless the file says so
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool above_min = false;    // `min` itself is out
  const char* choices = "";  // kEnum: "a|b|c"
  bool nullable = false;     // null means absent
  bool infinity = false;     // Infinity is accepted and means never or no limit
  Rule rule = Rule::kHonoured;
  const char* only = "";  // kFixed, kOnly: JSON
  Auto auto_rule = Auto::kNone;
  const char* same_as = "";  // another name of that key
  const char* owners =
      "";  // `params`: the types that have it, "Lamb|OneBitLamb"
  Needs needs = Needs::kNothing;
  // One clause without a full stop: what it does; for the other rules why it
  // does not.
  const char* effect = "";
  const char* difference = "";  // from DeepSpeed; empty: none
  const char* tests = "";  // beside its case of ConfigKey: "Suite.Name ..."

  std::string_view block() const;  // path without the last part; may be ""
  std::string_view name() const;   // the last part
  // In a block where DeepSpeed silently takes the default for "auto".
  bool typed() const;
};

// All rows, blocks before their keys.
const std::vector<Key>& Schema();

// Null if there is no such key.
const Key* FindKey(std::string_view path);

// The known key that `path` was probably meant to be: same block first, then a
// key of that very name elsewhere. Null if nothing is near.
const Key* NearestKey(std::string_view path);

// Edits (insert, delete, replace, swap of neighbours) between two words, at
// most `limit` + 1.
int EditDistance(std::string_view a, std::string_view b, int limit);

// "an integer >= 1", "true or false", "\"Warn\", \"Ignore\" or \"Fail\"".
std::string Expected(const Key& key);

// The tables of docs/configuration.md between its markers.
std::string SchemaMarkdown();

// Sections, in the order of the document.
std::span<const Key> TopKeys();
std::span<const Key> ZeroKeys();
std::span<const Key> PrecisionKeys();
std::span<const Key> OptimizerKeys();
std::span<const Key> SchedulerKeys();
std::span<const Key> MonitorKeys();
std::span<const Key> OtherKeys();
std::span<const Key> StowageKeys();

}  // namespace stowage::engine::config
