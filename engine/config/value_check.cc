#include "engine/config/value_check.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "absl/strings/numbers.h"
#include "common/bytes.h"
#include "engine/config/settings.h"
#include "engine/config/text.h"

namespace stowage::engine::config {
namespace {

constexpr std::size_t kListMax = 1024;  // parameter groups of a job

bool InBounds(const Key& key, double number) {
  if (!std::isfinite(number)) return false;
  if (key.above_min ? number <= key.min : number < key.min) return false;
  return number <= key.max;
}

// For a string that holds what should have been written without quotes.
std::string QuotesHint(const Value& value) {
  if (value.kind != Value::Kind::kString) return "";
  double number = 0;
  const std::string lower = Lower(value.text);
  if (absl::SimpleAtod(value.text, &number) || lower == "true" ||
      lower == "false" || lower == "null") {
    return "write it without the quotes";
  }
  return "";
}

ValueCheck Wrong(std::string hint = "") { return {false, std::move(hint)}; }

ValueCheck CheckInt(const Key& key, Value& value) {
  if (value.kind != Value::Kind::kNumber) return Wrong(QuotesHint(value));
  if (key.infinity && std::isinf(value.number) && value.number > 0) {
    value = MakeInt(std::numeric_limits<std::int64_t>::max());
    return {};
  }
  if (!value.is_integer) {
    return Wrong(std::fabs(value.number) >= 9223372036854775808.0
                     ? "at most 9223372036854775807"
                     : "");
  }
  if (!InBounds(key, value.number)) return Wrong();
  return {};
}

ValueCheck CheckNumber(const Key& key, const Value& value) {
  if (value.kind != Value::Kind::kNumber) return Wrong(QuotesHint(value));
  if (!std::isfinite(value.number)) return Wrong("a finite one");
  return InBounds(key, value.number) ? ValueCheck{} : Wrong();
}

ValueCheck CheckEnum(const Key& key, Value& value) {
  std::string given = value.text;  // of a string, or a number as written
  if (value.kind != Value::Kind::kString &&
      value.kind != Value::Kind::kNumber) {
    return Wrong();
  }
  for (const std::string_view choice : Split(key.choices, '|')) {
    double number = 0;
    const bool same = value.kind == Value::Kind::kString
                          ? Lower(given) == Lower(choice)
                          : absl::SimpleAtod(ForAbseil(choice), &number) &&
                                number == value.number;
    if (same) {
      value.kind = Value::Kind::kString;
      value.text = std::string(choice);
      return {};
    }
  }
  return Wrong();
}

ValueCheck CheckNumbers(const Key& key, Value& value) {
  if (value.kind == Value::Kind::kNumber) {
    ValueCheck check = CheckNumber(key, value);
    if (!check.ok) return check;
    Value list;
    list.kind = Value::Kind::kArray;
    list.position = value.position;
    list.items.push_back(value);
    value = std::move(list);
    return {};
  }
  if (value.kind != Value::Kind::kArray) return Wrong(QuotesHint(value));
  if (value.items.empty() || value.items.size() > kListMax) {
    return Wrong(Cat("1 to ", kListMax, " numbers"));
  }
  for (const Value& item : value.items) {
    ValueCheck check = CheckNumber(key, item);
    if (!check.ok) return check;
  }
  return {};
}

ValueCheck CheckBytes(const Key& key, Value& value) {
  if (value.kind == Value::Kind::kString) {
    const auto bytes = ParseBytes(value.text);
    if (!bytes.ok()) return Wrong();
    value = MakeInt(*bytes);
    return {};
  }
  return CheckInt(key, value);
}

}  // namespace

bool IsAuto(const Key& key, const Value& value) {
  if (value.kind != Value::Kind::kString || value.text != "auto") return false;
  if (key.type == KeyType::kString || key.type == KeyType::kAny ||
      key.type == KeyType::kBlock) {
    return false;
  }
  if (key.type == KeyType::kEnum) {
    for (const std::string_view choice : Split(key.choices, '|')) {
      if (choice == "auto") return false;
    }
  }
  return true;
}

ValueCheck CheckValue(const Key& key, Value& value) {
  switch (key.type) {
    case KeyType::kBlock:
      return value.kind == Value::Kind::kObject ? ValueCheck{} : Wrong();
    case KeyType::kBool:
      return value.kind == Value::Kind::kBool ? ValueCheck{}
                                              : Wrong(QuotesHint(value));
    case KeyType::kInt:
      return CheckInt(key, value);
    case KeyType::kNumber:
      return CheckNumber(key, value);
    case KeyType::kString:
      return value.kind == Value::Kind::kString ? ValueCheck{} : Wrong();
    case KeyType::kEnum:
      return CheckEnum(key, value);
    case KeyType::kPair:
      if (value.kind != Value::Kind::kArray || value.items.size() != 2) {
        return Wrong();
      }
      for (const Value& item : value.items) {
        if (item.kind != Value::Kind::kNumber || !(item.number >= 0) ||
            !(item.number < 1)) {
          return Wrong();
        }
      }
      return {};
    case KeyType::kNumbers:
      return CheckNumbers(key, value);
    case KeyType::kStrings:
      if (value.kind != Value::Kind::kArray) return Wrong();
      for (const Value& item : value.items) {
        if (item.kind != Value::Kind::kString) return Wrong();
      }
      return {};
    case KeyType::kBytes:
      return CheckBytes(key, value);
    case KeyType::kAny:
      return {};
  }
  return {};
}

}  // namespace stowage::engine::config
