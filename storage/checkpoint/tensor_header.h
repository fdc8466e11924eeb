// The header of a safetensors file: which tensors lie where in it.
//
// A file is 8 bytes (little-endian length N of the header), N bytes of JSON
// {name: {"dtype", "shape", "data_offsets": [begin, end]}} and the tensors'
// bytes, end to end without holes. Both directions are pure functions over
// bytes; whatever a file says is checked before it is used as a size.
//
// Source: the safetensors repository's README, "Format".

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/dtype.h"

namespace stowage::storage {

// Longest header that is read; the safetensors package has the same limit.
inline constexpr std::int64_t kTensorHeaderBytesMax = 100'000'000;
// Bytes in front of the header.
inline constexpr std::int64_t kTensorPrefixBytes = 8;

struct TensorSpec {
  std::string name;
  Dtype dtype = Dtype::kFp32;
  std::vector<std::int64_t> shape;  // empty for a scalar

  std::int64_t elems() const;
  std::int64_t bytes() const { return elems() * DtypeBytes(dtype); }
  friend bool operator==(const TensorSpec&, const TensorSpec&) = default;
};

// A tensor and where it begins, counted from the end of the header.
struct PlacedTensor {
  TensorSpec spec;
  std::int64_t begin_bytes = 0;
};

// Length and header of a file that has `tensors` in this order, padded with
// spaces to a multiple of 8.
std::string EncodeTensorHeader(
    const std::vector<TensorSpec>& tensors,
    const std::map<std::string, std::string>& metadata);

// Reads the header (without its length). `data_bytes`: what follows it in the
// file. Tensors are returned in the order of their bytes.
// Errors: kDataLoss saying what is wrong: not JSON, an unknown element type
//   (kUnimplemented), bytes that do not fit the shape, overlap, leave a hole,
//   or lie outside the file.
absl::StatusOr<std::vector<PlacedTensor>> DecodeTensorHeader(
    std::string_view header, std::int64_t data_bytes);

// "F32", "F16" or "BF16".
const char* TensorDtypeName(Dtype dtype);

}  // namespace stowage::storage
