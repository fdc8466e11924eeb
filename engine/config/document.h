// A configuration file as a tree in which every value knows its place.
//
// The reader takes what DeepSpeed's users write: JSON with // # and /* */
// comments, trailing commas, Infinity, NaN. Positions stay with every key and
// value, so that any later error can say file:line:column.
//
// Ownership: a Document owns its tree. Thread safety: immutable after reading.
// Limits: 4 MiB of text, 64 levels, 100,000 values; beyond is an error, and no
//   input crashes the reader (tests/fuzz).

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace stowage::engine::config {

// Both count from 1; columns are bytes. 0: nowhere in the file.
struct Position {
  int line = 0;
  int column = 0;
};

struct Member;

// One JSON value.
struct Value {
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  Position position;
  bool boolean = false;
  // kNumber: the double, and the exact integer if it was written as one (or as
  // a float with an integral value, such as 5e8) and fits.
  double number = 0;
  bool is_integer = false;
  std::int64_t integer = 0;
  std::string text;  // kString: the value; kNumber: as written
  std::vector<Value> items;
  std::vector<Member> members;  // in file order, keys unique

  // The member named `key`, or null.
  const Member* Find(std::string_view key) const;
  // "a string", "a number", "an object", ...
  const char* KindName() const;
  // As compact JSON; long ones are cut with "...".
  std::string Show() const;
};

struct Member {
  std::string key;
  Position position;  // of the key
  Value value;
};

struct Document {
  std::string file;  // as given, for messages
  Value root;        // always an object

  // "file:line:column".
  std::string At(Position position) const;
};

// Errors: kNotFound or what errno says if the file cannot be read;
//   kInvalidArgument for a syntax error, with file:line:column and what was
//   expected, and for a duplicate key, with both places.
absl::StatusOr<Document> ReadConfigFile(const std::string& path);

// As ReadConfigFile(), on text; `file` is used in messages only.
absl::StatusOr<Document> ParseConfig(std::string_view text, std::string file);

}  // namespace stowage::engine::config
