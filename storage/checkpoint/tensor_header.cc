#include "storage/checkpoint/tensor_header.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bytes.h"
#include "common/status_macros.h"
#include <nlohmann/json.hpp>

namespace stowage::storage {
namespace {

using nlohmann::json;

constexpr std::int64_t kElemsMax = std::int64_t{1} << 42;

absl::Status Bad(const std::string& what) {
  return absl::DataLossError(absl::StrCat("safetensors header: ", what));
}

absl::StatusOr<Dtype> ReadDtype(const json& entry, const std::string& name) {
  const auto found = entry.find("dtype");
  if (found == entry.end() || !found->is_string()) {
    return Bad(absl::StrCat("tensor \"", name, "\" has no dtype"));
  }
  const auto& text = found->get_ref<const std::string&>();
  for (const Dtype dtype : {Dtype::kFp32, Dtype::kFp16, Dtype::kBf16}) {
    if (text == TensorDtypeName(dtype)) return dtype;
  }
  return absl::UnimplementedError(
      absl::StrCat("safetensors header: tensor \"", name, "\" is of type ",
                   text, "; known are F32, F16 and BF16"));
}

absl::Status ReadShape(const json& entry, TensorSpec* spec) {
  const auto found = entry.find("shape");
  if (found == entry.end() || !found->is_array() || found->size() > 64) {
    return Bad(absl::StrCat("tensor \"", spec->name, "\" has no shape"));
  }
  std::int64_t elems = 1;
  for (const json& extent : *found) {
    const bool fits =
        extent.is_number_unsigned() &&
        extent.get<std::uint64_t>() <= static_cast<std::uint64_t>(kElemsMax);
    if (!fits) {
      return Bad(absl::StrCat("tensor \"", spec->name, "\" has the extent ",
                              extent.dump()));
    }
    spec->shape.push_back(extent.get<std::int64_t>());
    if (spec->shape.back() != 0 && elems > kElemsMax / spec->shape.back()) {
      return Bad(absl::StrCat("tensor \"", spec->name, "\" is too large"));
    }
    elems *= spec->shape.back();
  }
  return absl::OkStatus();
}

absl::StatusOr<PlacedTensor> ReadTensor(const std::string& name,
                                        const json& entry,
                                        std::int64_t data_bytes) {
  if (!entry.is_object()) {
    return Bad(absl::StrCat("tensor \"", name, "\" is not an object"));
  }
  PlacedTensor tensor;
  tensor.spec.name = name;
  STOWAGE_ASSIGN_OR_RETURN(tensor.spec.dtype, ReadDtype(entry, name));
  STOWAGE_RETURN_IF_ERROR(ReadShape(entry, &tensor.spec));
  const auto offsets = entry.find("data_offsets");
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return Bad(absl::StrCat("tensor \"", name, "\" has no data_offsets"));
  }
  const auto begin = (*offsets)[0].get<std::uint64_t>();
  const auto end = (*offsets)[1].get<std::uint64_t>();
  if (begin > end || end > static_cast<std::uint64_t>(data_bytes) ||
      end - begin != static_cast<std::uint64_t>(tensor.spec.bytes())) {
    return Bad(absl::StrCat("tensor \"", name, "\" of ", tensor.spec.bytes(),
                            " bytes lies at ", begin, " to ", end, " of ",
                            data_bytes));
  }
  tensor.begin_bytes = static_cast<std::int64_t>(begin);
  return tensor;
}

}  // namespace

std::int64_t TensorSpec::elems() const {
  std::int64_t product = 1;
  for (const std::int64_t extent : shape) product *= extent;
  return product;
}

const char* TensorDtypeName(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFp32:
      return "F32";
    case Dtype::kFp16:
      return "F16";
    case Dtype::kBf16:
      return "BF16";
  }
  return "?";
}

std::string EncodeTensorHeader(
    const std::vector<TensorSpec>& tensors,
    const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json all = nlohmann::ordered_json::object();
  if (!metadata.empty()) all["__metadata__"] = metadata;
  std::int64_t at = 0;
  for (const TensorSpec& tensor : tensors) {
    nlohmann::ordered_json entry;
    entry["dtype"] = TensorDtypeName(tensor.dtype);
    entry["shape"] = tensor.shape;
    entry["data_offsets"] = {at, at + tensor.bytes()};
    all[tensor.name] = std::move(entry);
    at += tensor.bytes();
  }
  // Names are checked by the layout, but not for UTF-8.
  std::string text = all.dump(-1, ' ', false,
                              nlohmann::ordered_json::error_handler_t::replace);
  text.resize(static_cast<std::size_t>(
                  RoundUp(static_cast<std::int64_t>(text.size()), 8)),
              ' ');
  std::string out(kTensorPrefixBytes, '\0');
  for (std::size_t i = 0; i < kTensorPrefixBytes; ++i) {
    out[i] = static_cast<char>((text.size() >> (8 * i)) & 0xffU);
  }
  return out + text;
}

absl::StatusOr<std::vector<PlacedTensor>> DecodeTensorHeader(
    std::string_view header, std::int64_t data_bytes) {
  const json all = json::parse(header, nullptr, /*allow_exceptions=*/false);
  if (!all.is_object()) return Bad("not a JSON object");
  std::vector<PlacedTensor> tensors;
  for (const auto& [name, entry] : all.items()) {
    if (name == "__metadata__") continue;
    STOWAGE_ASSIGN_OR_RETURN(PlacedTensor tensor,
                             ReadTensor(name, entry, data_bytes));
    tensors.push_back(std::move(tensor));
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const PlacedTensor& a, const PlacedTensor& b) {
              return a.begin_bytes != b.begin_bytes
                         ? a.begin_bytes < b.begin_bytes
                         : a.spec.bytes() < b.spec.bytes();
            });
  std::int64_t at = 0;
  for (const PlacedTensor& tensor : tensors) {
    if (tensor.begin_bytes != at) {
      return Bad(absl::StrCat("tensor \"", tensor.spec.name, "\" begins at ",
                              tensor.begin_bytes, ", expected ", at));
    }
    at += tensor.spec.bytes();
  }
  if (at != data_bytes) {
    return Bad(
        absl::StrCat("the tensors have ", at, " bytes, the file ", data_bytes));
  }
  return tensors;
}

}  // namespace stowage::storage
