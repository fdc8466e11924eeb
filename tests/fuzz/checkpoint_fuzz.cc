// Files of checkpoints, which come from other machines and other programs: the
// manifest, headers of safetensors files, the trainer's own record.
//
// Input: a byte of choices, then text. A manifest's first line is written anew
// with the right length and checksum, unless bit 2 is set: the code behind the
// checksum must hold too.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/layout.h"
#include "engine/checkpoint/client_state.h"
#include "storage/checkpoint/manifest.h"
#include "storage/checkpoint/tensor_header.h"
#include "storage/nvme/crc32.h"
#include "tests/fuzz/fuzz_input.h"

namespace stowage::storage {
namespace {

std::string Seal(const std::string& body) {
  return absl::StrCat(
      "{\"stowage_checkpoint\": 1, \"bytes\": ", body.size(),
      ", \"crc32\": ", Crc32(std::as_bytes(std::span<const char>(body))), "}\n",
      body);
}

void OneManifest(const std::string& text) {
  const auto manifest = DecodeCheckpointManifest(text);
  if (!manifest.ok()) return;
  const std::string once = EncodeCheckpointManifest(*manifest);
  const auto again = DecodeCheckpointManifest(once);
  STOWAGE_FUZZ_CHECK(again.ok(), again.status().ToString());
  STOWAGE_FUZZ_CHECK(EncodeCheckpointManifest(*again) == once,
                     "another came back");
  (void)Layout::Create(manifest->layout, {.elems_max = std::int64_t{1} << 36});
}

// What is accepted must lie in the file, without overlap or hole, and come back
// from its own encoding.
void OneHeader(const std::string& text, std::int64_t data_bytes) {
  const auto tensors = DecodeTensorHeader(text, data_bytes);
  if (!tensors.ok()) return;
  std::int64_t end = 0;
  std::vector<TensorSpec> specs;
  for (const PlacedTensor& tensor : *tensors) {
    STOWAGE_FUZZ_CHECK(tensor.begin_bytes == end, tensor.spec.name);
    STOWAGE_FUZZ_CHECK(tensor.spec.bytes() >= 0, tensor.spec.name);
    end += tensor.spec.bytes();
    specs.push_back(tensor.spec);
  }
  STOWAGE_FUZZ_CHECK(end == data_bytes, "bytes are left over");
  const std::string encoded = EncodeTensorHeader(specs, {});
  const auto again = DecodeTensorHeader(
      std::string_view(encoded).substr(kTensorPrefixBytes), data_bytes);
  STOWAGE_FUZZ_CHECK(again.ok(), again.status().ToString());
  STOWAGE_FUZZ_CHECK(again->size() == specs.size(), "another came back");
}

void OneClientState(const std::string& bytes) {
  const auto state = engine::ClientState::Parse(bytes);
  if (!state.ok()) return;
  const std::string once = state->Serialize();
  const auto again = engine::ClientState::Parse(once);
  STOWAGE_FUZZ_CHECK(again.ok(), again.status().ToString());
  STOWAGE_FUZZ_CHECK(again->Serialize() == once, "another came back");
}

}  // namespace
}  // namespace stowage::storage

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  using namespace stowage::storage;  // NOLINT(google-build-using-namespace)
  stowage::fuzz::Input input(data, size);
  const auto choice = input.Get<std::uint8_t>();
  switch (choice & 3) {
    case 0:
      OneManifest((choice & 4) == 0 ? Seal(input.Rest()) : input.Rest());
      break;
    case 1:
    case 2: {
      const std::int64_t bytes =
          input.Number(std::int64_t{input.Get<std::uint16_t>()});
      OneHeader(input.Rest(), bytes);
      break;
    }
    default:
      OneClientState(input.Rest());
  }
  return 0;
}
