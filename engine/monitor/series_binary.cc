// The two binary formats: TensorBoard's records of protobuf messages, and
// wandb's log of protobuf records. Decoded by hand, so that the engine needs no
// protobuf.
//
// Source: tensorboard/compat/proto/event.proto and summary.proto; LevelDB's
// "log format" with wandb's file header; wandb/proto/wandb_internal.proto,
// field numbers of Record, HistoryRecord and HistoryItem.

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>

#include "engine/config/json_reader.h"
#include "engine/monitor/series.h"
#include "engine/monitor/series_names.h"
#include "engine/monitor/tf_record.h"

namespace stowage::engine::monitor {
namespace {

template <typename T>
T Little(std::string_view bytes) {
  T value = 0;
  for (std::size_t i = sizeof(T); i-- > 0;) {
    value = static_cast<T>((value << 8) | static_cast<unsigned char>(bytes[i]));
  }
  return value;
}

// The fields of one protobuf message, one after the other.
class Fields {
 public:
  explicit Fields(std::string_view message) : left_(message) {}

  // False at the end, or where the message is damaged.
  bool Next() {
    std::uint64_t tag = 0;
    if (left_.empty() || !Varint(&tag)) return false;
    field = tag >> 3;
    switch (tag & 7U) {
      case 0:
        return Varint(&number);
      case 1:
        return Take(8, &data);
      case 2: {
        std::uint64_t size = 0;
        return Varint(&size) && Take(size, &data);
      }
      case 5:
        return Take(4, &data);
      default:
        return false;
    }
  }

  std::uint64_t field = 0;
  std::uint64_t number = 0;  // of a varint
  std::string_view data;     // of everything else

 private:
  bool Varint(std::uint64_t* value) {
    *value = 0;
    for (unsigned shift = 0; shift < 64 && !left_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(left_.front());
      left_.remove_prefix(1);
      *value |= std::uint64_t{byte & 0x7fU} << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }
  bool Take(std::uint64_t size, std::string_view* out) {
    if (size > left_.size()) return false;
    *out = left_.substr(0, size);
    left_.remove_prefix(size);
    return true;
  }

  std::string_view left_;
};

void ReadSummaryValue(std::string_view message, double x, SeriesMap* series) {
  std::string tag;
  std::optional<double> value;
  for (Fields value_fields(message); value_fields.Next();) {
    if (value_fields.field == 1) tag = std::string(value_fields.data);
    if (value_fields.field == 2 && value_fields.data.size() == 4) {
      value = std::bit_cast<float>(Little<std::uint32_t>(value_fields.data));
    }
  }
  if (!tag.empty() && value) (*series)[ShortEventName(tag)][x] = *value;
}

void ReadEvent(std::string_view message, SeriesMap* series) {
  double x = 0;
  std::string_view summary;
  for (Fields event(message); event.Next();) {
    if (event.field == 2) x = static_cast<double>(event.number);
    if (event.field == 5) summary = event.data;
  }
  for (Fields values(summary); values.Next();) {
    if (values.field == 1) ReadSummaryValue(values.data, x, series);
  }
}

// wandb's HistoryRecord: items of a key and its value as JSON; the row's step
// stands in "_step".
void ReadHistory(std::string_view message, SeriesMap* series) {
  std::map<std::string, double> row;
  for (Fields items(message); items.Next();) {
    if (items.field != 1) continue;
    std::string key;
    std::string_view json;
    for (Fields item(items.data); item.Next();) {
      if (item.field == 1) key = std::string(item.data);
      // Keys with a dot or slash may come as parts.
      if (item.field == 2) {
        if (!key.empty()) key += '.';
        key += item.data;
      }
      if (item.field == 16) json = item.data;
    }
    const auto value = config::ParseJson(json, "value");
    if (value.ok() && value->kind == config::Value::Kind::kNumber) {
      row[key] = value->number;
    }
  }
  const auto step = row.find("_step");
  if (step == row.end()) return;
  for (const auto& [key, value] : row) {
    if (!key.starts_with("_")) {
      (*series)[ShortEventName(key)][step->second] = value;
    }
  }
}

}  // namespace

void ReadTensorboardSeries(std::string_view bytes, SeriesMap* series) {
  // Length 8, its checksum 4, payload, its checksum 4.
  while (bytes.size() >= 16) {
    const auto size = Little<std::uint64_t>(bytes);
    if (size > bytes.size() - 16) return;
    const std::string_view payload = bytes.substr(12, size);
    if (MaskedCrc32c(bytes.substr(0, 8)) !=
            Little<std::uint32_t>(bytes.substr(8)) ||
        MaskedCrc32c(payload) !=
            Little<std::uint32_t>(bytes.substr(12 + size))) {
      return;
    }
    ReadEvent(payload, series);
    bytes.remove_prefix(16 + size);
  }
}

void ReadWandbSeries(std::string_view bytes, SeriesMap* series) {
  constexpr std::size_t kHeader = 7;  // of the file, and of each piece
  constexpr std::size_t kBlock = 32768;
  if (bytes.size() < kHeader || bytes.substr(0, 4) != ":W&B") return;
  std::string record;
  std::size_t at = kHeader;
  while (at + kHeader <= bytes.size()) {
    const std::size_t in_block = at % kBlock;
    if (kBlock - in_block < kHeader) {
      at += kBlock - in_block;  // a block's end too short for a piece
      continue;
    }
    // Checksum 4, length 2, kind 1: full, first, middle, last.
    const auto size = Little<std::uint16_t>(bytes.substr(at + 4));
    const char kind = bytes[at + 6];
    if (kind < 1 || kind > 4 || at + kHeader + size > bytes.size()) return;
    if (kind == 1 || kind == 2) record.clear();
    record += bytes.substr(at + kHeader, size);
    at += kHeader + size;
    if (kind != 1 && kind != 4) continue;
    for (Fields fields(record); fields.Next();) {
      if (fields.field == 2) ReadHistory(fields.data, series);
    }
  }
}

}  // namespace stowage::engine::monitor
