#include "engine/config/schema.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <unordered_map>

#include "engine/config/json_text.h"
#include "engine/config/text.h"

namespace stowage::engine::config {
namespace {

// Names longer than this are nobody's misspelling.
constexpr std::size_t kNameBytesMax = 80;

// How many edits a misspelling may have: about a third of its letters.
int EditsMax(std::string_view name) {
  return std::max(1,
                  static_cast<int>(std::min<std::size_t>(name.size(), 30)) / 3);
}

std::string Quoted(const char* choices) {
  const std::vector<std::string_view> list = Split(choices, '|');
  std::string out;
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (i > 0) out += i + 1 == list.size() ? " or " : ", ";
    Append(&out, "\"", list[i], "\"");
  }
  return out;
}

std::string Bounds(const Key& key) {
  const bool low = std::isfinite(key.min);
  const bool high = std::isfinite(key.max);
  if (low && high) {
    return Cat(" from ", JsonNumber(key.min), " to ", JsonNumber(key.max));
  }
  if (low) {
    return Cat(key.above_min ? " > " : " >= ", JsonNumber(key.min));
  }
  if (high) return Cat(" <= ", JsonNumber(key.max));
  return "";
}

}  // namespace

std::string_view Key::block() const {
  const std::string_view whole = path;
  const std::size_t dot = whole.rfind('.');
  return dot == std::string_view::npos ? "" : whole.substr(0, dot);
}

std::string_view Key::name() const {
  const std::string_view whole = path;
  const std::size_t dot = whole.rfind('.');
  return dot == std::string_view::npos ? whole : whole.substr(dot + 1);
}

bool Key::typed() const {
  constexpr std::string_view kTyped[] = {
      "zero_optimization", "fp16",           "bf16",  "bfloat16",
      "csv_monitor",       "tensorboard",    "wandb", "comet",
      "flops_profiler",    "torch_autocast", "timers"};
  const std::string_view whole = path;
  const std::string_view top = whole.substr(0, whole.find('.'));
  return top != whole && std::find(std::begin(kTyped), std::end(kTyped), top) !=
                             std::end(kTyped);
}

const std::vector<Key>& Schema() {
  static const std::vector<Key>* const keys = [] {
    auto* all = new std::vector<Key>();
    for (const std::span<const Key> section :
         {TopKeys(), PrecisionKeys(), OptimizerKeys(), SchedulerKeys(),
          ZeroKeys(), MonitorKeys(), OtherKeys(), StowageKeys()}) {
      all->insert(all->end(), section.begin(), section.end());
    }
    return all;
  }();
  return *keys;
}

const Key* FindKey(std::string_view path) {
  static const auto* const index = [] {
    auto* map = new std::unordered_map<std::string_view, const Key*>();
    for (const Key& key : Schema()) map->emplace(key.path, &key);
    return map;
  }();
  const auto found = index->find(path);
  return found == index->end() ? nullptr : found->second;
}

int EditDistance(std::string_view a, std::string_view b, int limit) {
  const auto difference =
      a.size() > b.size() ? a.size() - b.size() : b.size() - a.size();
  if (difference > static_cast<std::size_t>(limit)) return limit + 1;
  // Rows of the optimal string alignment table: two before, one before, this.
  std::vector<int> before(b.size() + 1);
  std::vector<int> last(b.size() + 1);
  std::vector<int> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) last[j] = static_cast<int>(j);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = static_cast<int>(i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const int cost = a[i - 1] == b[j - 1] ? 0 : 1;
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + cost});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    before.swap(last);
    last.swap(row);
  }
  return std::min(last[b.size()], limit + 1);
}

const Key* NearestKey(std::string_view path) {
  const std::size_t dot = path.rfind('.');
  const std::string_view block =
      dot == std::string_view::npos ? "" : path.substr(0, dot);
  const std::string name =
      Lower(dot == std::string_view::npos ? path : path.substr(dot + 1));
  if (name.size() > kNameBytesMax) return nullptr;
  const Key* best = nullptr;
  // Near: fewest edits in the block itself; else that very name in another
  // block; else few edits elsewhere.
  int best_edits = EditsMax(name) + 1;
  for (const Key& key : Schema()) {
    if (key.block() != block) continue;
    const int edits = EditDistance(name, Lower(key.name()), best_edits);
    if (edits < best_edits) {
      best = &key;
      best_edits = edits;
    }
  }
  if (best != nullptr) return best;
  for (const Key& key : Schema()) {
    if (key.name() == name) return &key;
  }
  for (const Key& key : Schema()) {
    const int edits = EditDistance(name, Lower(key.name()), best_edits);
    if (edits < best_edits) {
      best = &key;
      best_edits = edits;
    }
  }
  return best;
}

std::string Expected(const Key& key) {
  std::string out;
  switch (key.type) {
    case KeyType::kBlock:
      out = "an object { ... }";
      break;
    case KeyType::kBool:
      out = "true or false";
      break;
    case KeyType::kInt:
      out = Cat("an integer", Bounds(key));
      break;
    case KeyType::kNumber:
      out = Cat("a number", Bounds(key));
      break;
    case KeyType::kString:
      out = "a string";
      break;
    case KeyType::kEnum:
      out = Quoted(key.choices);
      break;
    case KeyType::kPair:
      out = "two numbers >= 0 and < 1";
      break;
    case KeyType::kNumbers:
      out = Cat("a number", Bounds(key),
                ", or a list with one for each parameter group");
      break;
    case KeyType::kStrings:
      out = "a list of strings";
      break;
    case KeyType::kBytes:
      out = "a number of bytes >= 0, or a string such as \"20GiB\"";
      break;
    case KeyType::kAny:
      out = "any value";
      break;
  }
  if (key.infinity) out += ", or Infinity";
  if (key.nullable) out += ", or null";
  if (key.auto_rule != Auto::kNone) out += ", or \"auto\"";
  return out;
}

}  // namespace stowage::engine::config
