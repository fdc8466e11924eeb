// docs/configuration.md shows the schema as it is.
//
// With STOWAGE_UPDATE_DOCS=1 the test writes the tables instead.

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "engine/config/schema.h"
#include "gtest/gtest.h"

namespace stowage::engine::config {
namespace {

constexpr char kBegin[] = "<!-- keys: begin -->\n";
constexpr char kEnd[] = "<!-- keys: end -->\n";

TEST(ConfigDoc, TablesAreThoseOfTheSchema) {
  const char* source = std::getenv("STOWAGE_SOURCE_DIR");
  const std::string path =
      std::string(source == nullptr ? "." : source) + "/docs/configuration.md";
  std::ifstream file(path);
  ASSERT_TRUE(file) << "no " << path;
  std::ostringstream stream;
  stream << file.rdbuf();
  const std::string text = stream.str();
  const std::size_t begin = text.find(kBegin);
  const std::size_t end = text.find(kEnd);
  ASSERT_NE(begin, std::string::npos);
  ASSERT_NE(end, std::string::npos);
  const std::size_t from = begin + std::string(kBegin).size();
  const std::string want = "\n" + SchemaMarkdown();
  if (std::getenv("STOWAGE_UPDATE_DOCS") != nullptr) {
    std::ofstream(path) << text.substr(0, from) << want << text.substr(end);
    return;
  }
  EXPECT_TRUE(text.substr(from, end - from) == want)
      << path << " is not what the schema says: run this test with "
      << "STOWAGE_UPDATE_DOCS=1 and look at the difference";
}

}  // namespace
}  // namespace stowage::engine::config
