// Tables that DeepSpeed and torch produced, and where they are.
//
// Each kind has an index (lr_index.json, ...) that lists files and parameters;
// the tests read through it, so that they pass on tables they have not seen.
// STOWAGE_REFERENCE_DIR names another folder.

#pragma once

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/config/document.h"
#include "engine/config/json_reader.h"

namespace stowage::parity {

inline std::string ReferenceDirectory() {
  if (const char* folder = std::getenv("STOWAGE_REFERENCE_DIR")) return folder;
  const char* source = std::getenv("STOWAGE_SOURCE_DIR");
  return absl::StrCat(source == nullptr ? "." : source,
                      "/tests/parity/reference");
}

inline absl::StatusOr<std::string> ReadText(const std::string& name) {
  const std::string path = absl::StrCat(ReferenceDirectory(), "/", name);
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("no file ", path));
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The array of an index file.
inline absl::StatusOr<engine::config::Value> ReadIndex(
    const std::string& name) {
  const absl::StatusOr<std::string> text = ReadText(name);
  if (!text.ok()) return text.status();
  return engine::config::ParseJson(*text, name);
}

// A CSV file's cells as text; the first row is the header.
inline absl::StatusOr<std::vector<std::vector<std::string>>> ReadTable(
    const std::string& name) {
  const absl::StatusOr<std::string> text = ReadText(name);
  if (!text.ok()) return text.status();
  std::vector<std::vector<std::string>> rows;
  const std::vector<std::string> lines = absl::StrSplit(*text, '\n');
  for (std::string line : lines) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) continue;
    rows.push_back(absl::StrSplit(line, ','));
  }
  return rows;
}

}  // namespace stowage::parity
