#include "storage/checkpoint/manifest.h"

#include <cmath>
#include <span>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/bytes.h"
#include "common/status_macros.h"
#include "storage/nvme/crc32.h"
#include <nlohmann/json.hpp>

namespace stowage::storage {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::int64_t kInt64Max = std::int64_t{1} << 62;
constexpr std::size_t kNameBytesMax = 512;
constexpr std::int32_t kNodesMax = 65536;

std::uint32_t CrcOf(std::string_view text) {
  return Crc32({reinterpret_cast<const std::byte*>(text.data()), text.size()});
}

absl::Status Bad(const std::string& what) {
  return absl::DataLossError(absl::StrCat("checkpoint manifest: ", what));
}

// Fields of one JSON object; the first that is missing or out of its range is
// the error, and everything after it reads as empty.
class Fields {
 public:
  Fields(const json& object, std::string where)
      : object_(object), where_(std::move(where)) {
    if (!object.is_object()) Fail("not an object");
  }

  std::int64_t Int(const char* key, std::int64_t min, std::int64_t max) {
    const json* value = Find(key);
    if (value == nullptr) return 0;
    if (!value->is_number_integer()) {
      Fail(absl::StrCat(key, " is not a whole number"));
      return 0;
    }
    const bool large = value->is_number_unsigned() &&
                       value->get<std::uint64_t>() >
                           static_cast<std::uint64_t>(max < 0 ? 0 : max);
    const auto number = large ? max : value->get<std::int64_t>();
    if (large || number < min || number > max) {
      Fail(absl::StrCat(key, " is ", value->dump(), ", expected ", min, " to ",
                        max));
      return 0;
    }
    return number;
  }

  std::string Text(const char* key, std::size_t bytes_max) {
    const json* value = Find(key);
    if (value == nullptr) return "";
    if (!value->is_string() ||
        value->get_ref<const std::string&>().size() > bytes_max) {
      Fail(absl::StrCat(key, " is no text of at most ", bytes_max, " bytes"));
      return "";
    }
    return value->get<std::string>();
  }

  bool Bool(const char* key) {
    const json* value = Find(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) {
      Fail(absl::StrCat(key, " is neither true nor false"));
      return false;
    }
    return value->get<bool>();
  }

  double Number(const char* key) {
    const json* value = Find(key);
    if (value == nullptr) return 0;
    if (!value->is_number() || !std::isfinite(value->get<double>())) {
      Fail(absl::StrCat(key, " is not a number"));
      return 0;
    }
    return value->get<double>();
  }

  const json& List(const char* key, std::size_t size_max) {
    static const json empty = json::array();
    const json* value = Find(key);
    if (value == nullptr) return empty;
    if (!value->is_array() || value->size() > size_max) {
      Fail(absl::StrCat(key, " is no list of at most ", size_max));
      return empty;
    }
    return *value;
  }

  template <typename T>
  std::vector<T> Ints(const char* key, std::size_t size_max, std::int64_t min,
                      std::int64_t max) {
    std::vector<T> numbers;
    for (const json& value : List(key, size_max)) {
      const bool fits = value.is_number_integer() &&
                        !(value.is_number_unsigned() &&
                          value.get<std::uint64_t>() >
                              static_cast<std::uint64_t>(kInt64Max)) &&
                        value.get<std::int64_t>() >= min &&
                        value.get<std::int64_t>() <= max;
      if (!fits) {
        Fail(absl::StrCat(key, " holds ", value.dump(), ", expected ", min,
                          " to ", max));
        return {};
      }
      numbers.push_back(static_cast<T>(value.get<std::int64_t>()));
    }
    return numbers;
  }

  const json* Object(const char* key) { return Find(key); }
  void Fail(const std::string& what) {
    if (status_.ok()) status_ = Bad(absl::StrCat(where_, ": ", what));
  }
  const absl::Status& status() const { return status_; }

 private:
  const json* Find(const char* key) {
    if (!status_.ok()) return nullptr;
    const auto found = object_.find(key);
    if (found != object_.end()) return &*found;
    Fail(absl::StrCat("no ", key));
    return nullptr;
  }

  const json& object_;
  const std::string where_;
  absl::Status status_;
};

ordered_json LayoutToJson(const LayoutSpec& layout) {
  ordered_json groups = ordered_json::array();
  for (const GroupSpec& group : layout.groups) {
    groups.push_back({{"name", group.name}, {"frozen", group.frozen}});
  }
  ordered_json units = ordered_json::array();
  for (const UnitSpec& unit : layout.units) {
    ordered_json params = ordered_json::array();
    for (const ParamSpec& param : unit.params) {
      params.push_back({{"name", param.name},
                        {"shape", param.shape},
                        {"group", param.group_index}});
    }
    units.push_back({{"name", unit.name}, {"params", std::move(params)}});
  }
  return {{"param_dtype", std::string(DtypeName(layout.param_dtype))},
          {"groups", std::move(groups)},
          {"units", std::move(units)}};
}

absl::StatusOr<UnitSpec> ReadUnit(const json& entry, std::size_t groups) {
  Fields fields(entry, "a unit");
  UnitSpec unit;
  unit.name = fields.Text("name", kNameBytesMax);
  for (const json& item : fields.List("params", std::size_t{1} << 20)) {
    Fields param_fields(item, absl::StrCat("unit \"", unit.name, "\""));
    ParamSpec param;
    param.name = param_fields.Text("name", kNameBytesMax);
    param.shape =
        param_fields.Ints<std::int64_t>("shape", 64, 1, std::int64_t{1} << 42);
    param.group_index = static_cast<std::int32_t>(
        param_fields.Int("group", 0, static_cast<std::int64_t>(groups) - 1));
    STOWAGE_RETURN_IF_ERROR(param_fields.status());
    unit.params.push_back(std::move(param));
  }
  STOWAGE_RETURN_IF_ERROR(fields.status());
  return unit;
}

absl::StatusOr<LayoutSpec> ReadLayout(const json& object) {
  Fields fields(object, "layout");
  LayoutSpec layout;
  absl::StatusOr<Dtype> dtype = ParseDtype(fields.Text("param_dtype", 16));
  STOWAGE_RETURN_IF_ERROR(fields.status());
  if (!dtype.ok()) return Bad(std::string(dtype.status().message()));
  layout.param_dtype = *dtype;
  for (const json& item : fields.List("groups", 1024)) {
    Fields group(item, "a parameter group");
    layout.groups.push_back(
        {group.Text("name", kNameBytesMax), group.Bool("frozen")});
    STOWAGE_RETURN_IF_ERROR(group.status());
  }
  for (const json& item : fields.List("units", 65536)) {
    STOWAGE_ASSIGN_OR_RETURN(UnitSpec unit,
                             ReadUnit(item, layout.groups.size()));
    layout.units.push_back(std::move(unit));
  }
  STOWAGE_RETURN_IF_ERROR(fields.status());
  return layout;
}

ordered_json FileToJson(const CheckpointFile& file) {
  return {{"name", file.name},
          {"kind", file.kind},
          {"bytes", file.bytes},
          {"crc32", file.crc32}};
}

absl::StatusOr<CheckpointFile> ReadFile(const json& entry) {
  Fields fields(entry, "a file");
  CheckpointFile file;
  file.name = fields.Text("name", 255);
  file.kind = fields.Text("kind", 64);
  file.bytes = fields.Int("bytes", 0, kInt64Max);
  file.crc32 = fields.Ints<std::uint32_t>("crc32", std::size_t{1} << 28, 0,
                                          std::int64_t{0xffffffff});
  STOWAGE_RETURN_IF_ERROR(fields.status());
  if (file.name.empty() || file.name.front() == '.' ||
      file.name.find('/') != std::string::npos ||
      file.name.find('\0') != std::string::npos) {
    return Bad(absl::StrCat("\"", file.name, "\" is no name of a file"));
  }
  if (static_cast<std::int64_t>(file.crc32.size()) !=
      CeilDiv(file.bytes, kCheckpointBlockBytes)) {
    return Bad(absl::StrCat("file ", file.name, " has ", file.crc32.size(),
                            " checksums for ", file.bytes, " bytes"));
  }
  return file;
}

ordered_json GroupToJson(const GroupStep& group) {
  return {{"lr", group.lr},
          {"beta1", group.beta1},
          {"beta2", group.beta2},
          {"eps", group.eps},
          {"weight_decay", group.weight_decay}};
}

absl::StatusOr<std::string> Body(std::string_view bytes) {
  const std::size_t end = bytes.substr(0, 256).find('\n');
  if (end == std::string_view::npos) return Bad("has no first line");
  const json first = json::parse(bytes.substr(0, end), nullptr,
                                 /*allow_exceptions=*/false);
  if (!first.is_object() || first.find("stowage_checkpoint") == first.end()) {
    return Bad("not written by Stowage");
  }
  Fields fields(first, "first line");
  const std::int64_t format =
      fields.Int("stowage_checkpoint", 0, std::int64_t{1} << 30);
  STOWAGE_RETURN_IF_ERROR(fields.status());
  if (format != kCheckpointFormat) {
    return absl::UnimplementedError(
        absl::StrCat("checkpoint manifest: format ", format,
                     ", this program reads ", kCheckpointFormat));
  }
  const std::int64_t length = fields.Int("bytes", 0, kInt64Max);
  const std::int64_t crc = fields.Int("crc32", 0, 0xffffffff);
  STOWAGE_RETURN_IF_ERROR(fields.status());
  const std::string_view body = bytes.substr(end + 1);
  if (static_cast<std::int64_t>(body.size()) != length) {
    return Bad(
        absl::StrCat("is ", body.size(), " bytes long, written were ", length));
  }
  if (CrcOf(body) != static_cast<std::uint32_t>(crc)) {
    return Bad("its checksum is wrong");
  }
  return std::string(body);
}

absl::Status ReadHeader(Fields& fields, CheckpointManifest* manifest) {
  manifest->program = fields.Text("program", 1024);
  manifest->time = fields.Int("time", 0, kInt64Max);
  manifest->save_id = fields.Text("save_id", 128);
  manifest->nodes =
      static_cast<std::int32_t>(fields.Int("nodes", 1, kNodesMax));
  manifest->node = static_cast<std::int32_t>(
      fields.Int("node", 0, std::int64_t{manifest->nodes} - 1));
  manifest->job = fields.Text("job", kJobNameBytesMax);
  manifest->step = fields.Int("step", 0, kInt64Max);
  manifest->applied_steps = fields.Int("applied_steps", 0, manifest->step);
  const std::string state =
      fields.Text("client_state", 2 * kClientStateBytesMax);
  STOWAGE_RETURN_IF_ERROR(fields.status());
  if (!absl::Base64Unescape(state, &manifest->client_state) ||
      static_cast<std::int64_t>(manifest->client_state.size()) >
          kClientStateBytesMax) {
    return Bad("client_state is not base64 of at most 65536 bytes");
  }
  const json* optimizer = fields.Object("optimizer");
  STOWAGE_RETURN_IF_ERROR(fields.status());
  Fields kind(*optimizer, "optimizer");
  manifest->optimizer.kind =
      static_cast<OptimizerKind>(kind.Int("kind", 1, 255));
  manifest->optimizer.decoupled_weight_decay =
      kind.Bool("decoupled_weight_decay");
  manifest->optimizer.bias_correction = kind.Bool("bias_correction");
  // Fixes what a 1-bit optimizer's state means; of other kinds absent.
  if (manifest->optimizer.one_bit()) {
    manifest->optimizer.freeze_step = kind.Int("freeze_step", 1, kInt64Max);
  }
  return kind.status();
}

}  // namespace

std::int64_t CheckpointManifest::bytes() const {
  std::int64_t sum = 0;
  for (const CheckpointFile& file : files) sum += file.bytes;
  return sum;
}

std::string EncodeCheckpointManifest(const CheckpointManifest& manifest) {
  ordered_json body;
  body["program"] = manifest.program;
  body["time"] = manifest.time;
  body["save_id"] = manifest.save_id;
  body["node"] = manifest.node;
  body["nodes"] = manifest.nodes;
  body["job"] = manifest.job;
  body["step"] = manifest.step;
  body["applied_steps"] = manifest.applied_steps;
  body["client_state"] = absl::Base64Escape(manifest.client_state);
  body["optimizer"] = {
      {"kind", static_cast<int>(manifest.optimizer.kind)},
      {"decoupled_weight_decay", manifest.optimizer.decoupled_weight_decay},
      {"bias_correction", manifest.optimizer.bias_correction}};
  if (manifest.optimizer.one_bit()) {
    body["optimizer"]["freeze_step"] = manifest.optimizer.freeze_step;
  }
  body["groups"] = ordered_json::array();
  for (const GroupStep& group : manifest.groups) {
    body["groups"].push_back(GroupToJson(group));
  }
  body["layout"] = LayoutToJson(manifest.layout);
  body["forward_order"] = manifest.forward_order;
  body["trace"] = manifest.trace;
  body["files"] = ordered_json::array();
  for (const CheckpointFile& file : manifest.files) {
    body["files"].push_back(FileToJson(file));
  }
  const std::string text =
      body.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
  return absl::StrCat("{\"stowage_checkpoint\": ", kCheckpointFormat,
                      ", \"bytes\": ", text.size(),
                      ", \"crc32\": ", CrcOf(text), "}\n", text);
}

absl::StatusOr<CheckpointManifest> DecodeCheckpointManifest(
    std::string_view bytes) {
  STOWAGE_ASSIGN_OR_RETURN(const std::string text, Body(bytes));
  const json body = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!body.is_object()) return Bad("its body is not a JSON object");
  Fields fields(body, "body");
  CheckpointManifest manifest;
  STOWAGE_RETURN_IF_ERROR(ReadHeader(fields, &manifest));
  const json* layout = fields.Object("layout");
  STOWAGE_RETURN_IF_ERROR(fields.status());
  STOWAGE_ASSIGN_OR_RETURN(manifest.layout, ReadLayout(*layout));
  for (const json& item : fields.List("groups", 1024)) {
    Fields group(item, "a group's constants");
    manifest.groups.push_back({.lr = group.Number("lr"),
                               .beta1 = group.Number("beta1"),
                               .beta2 = group.Number("beta2"),
                               .eps = group.Number("eps"),
                               .weight_decay = group.Number("weight_decay")});
    STOWAGE_RETURN_IF_ERROR(group.status());
  }
  const auto units = static_cast<std::int64_t>(manifest.layout.units.size());
  manifest.forward_order =
      fields.Ints<std::int32_t>("forward_order", 65536, 0, units - 1);
  manifest.trace = fields.Ints<std::int32_t>(
      "trace", static_cast<std::size_t>(kTraceUsesMax), 0, units - 1);
  for (const json& item : fields.List("files", std::size_t{1} << 20)) {
    STOWAGE_ASSIGN_OR_RETURN(CheckpointFile file, ReadFile(item));
    manifest.files.push_back(std::move(file));
  }
  STOWAGE_RETURN_IF_ERROR(fields.status());
  return manifest;
}

}  // namespace stowage::storage
