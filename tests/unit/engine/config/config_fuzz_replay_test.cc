// The saved inputs of the reader's fuzzer (tests/fuzz/config_fuzz.cc).

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "gtest/gtest.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size);

namespace stowage::engine::config {
namespace {

TEST(ConfigFuzz, SavedInputsAreReplayed) {
  const char* source = std::getenv("STOWAGE_SOURCE_DIR");
  const std::filesystem::path corpus =
      std::filesystem::path(source == nullptr ? "." : source) /
      "tests/fuzz/corpus/config_fuzz";
  int replayed = 0;
  for (const auto& entry : std::filesystem::directory_iterator(corpus)) {
    SCOPED_TRACE(entry.path().string());
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)),
                            std::istreambuf_iterator<char>());
    EXPECT_EQ(
        LLVMFuzzerTestOneInput(
            reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()),
        0);
    ++replayed;
  }
  EXPECT_GE(replayed, 10);
}

}  // namespace
}  // namespace stowage::engine::config
