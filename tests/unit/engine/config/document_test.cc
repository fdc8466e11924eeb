#include "engine/config/document.h"

#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/config/json_reader.h"
#include "engine/config/json_text.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::engine::config {
namespace {

using ::testing::HasSubstr;

std::string Error(std::string_view text) {
  const auto document = ParseConfig(text, "c.json");
  return document.ok() ? "" : std::string(document.status().message());
}

TEST(Document, TakesWhatDeepSpeedUsersWrite) {
  const auto document = ParseConfig(
      "\xEF\xBB\xBF// a comment\n"
      "{ # another\n"
      "  \"a\": 1e9, /* and\n one more */ \"b\": [1, 2, 3,],\n"
      "  \"c\": Infinity, \"d\": -Infinity, \"e\": NaN,\n"
      "  \"f\": \"x\\u00e9\\ud83d\\ude00\\n\", \"g\": null, \"h\": -1.5e-3,\n"
      "}\n// the end",
      "c.json");
  ASSERT_TRUE(document.ok()) << document.status().ToString();
  const Value& root = document->root;
  EXPECT_TRUE(root.Find("a")->value.is_integer);
  EXPECT_EQ(root.Find("a")->value.integer, 1'000'000'000);
  EXPECT_EQ(root.Find("b")->value.items.size(), 3U);
  EXPECT_EQ(root.Find("b")->position.line, 4);
  EXPECT_EQ(root.Find("c")->value.number, HUGE_VAL);
  EXPECT_EQ(root.Find("d")->value.number, -HUGE_VAL);
  EXPECT_TRUE(std::isnan(root.Find("e")->value.number));
  EXPECT_EQ(root.Find("f")->value.text, "x\xC3\xA9\xF0\x9F\x98\x80\n");
  EXPECT_EQ(root.Find("g")->value.kind, Value::Kind::kNull);
  EXPECT_EQ(root.Find("h")->value.number, -1.5e-3);
  EXPECT_EQ(root.Find("nothing"), nullptr);
}

TEST(Document, KnowsWhatIsAnInteger) {
  const auto integer = [](std::string_view text) {
    const auto value = ParseJson(text, "v");
    EXPECT_TRUE(value.ok()) << value.status().ToString();
    return value->is_integer ? absl::StrCat(value->integer) : std::string("no");
  };
  EXPECT_EQ(integer("5e8"), "500000000");
  EXPECT_EQ(integer("2.0"), "2");
  EXPECT_EQ(integer("-0"), "0");
  EXPECT_EQ(integer("1.5"), "no");
  EXPECT_EQ(integer("9223372036854775807"), "9223372036854775807");
  EXPECT_EQ(integer("9007199254740993"), "9007199254740993");
  EXPECT_EQ(integer("9223372036854775808"), "no");
  EXPECT_EQ(integer("1e300"), "no");
  EXPECT_EQ(integer("-9223372036854775808"), "-9223372036854775808");
}

TEST(Document, SyntaxErrorsSayWhereAndWhat) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"", "c.json:1:1: expected a value, the text is empty"},
      {"// only a comment", "c.json:1:18: expected a value"},
      {"[1]", "c.json:1:1: expected an object { ... } as the whole"},
      {"{\n  \"a\" 1\n}",
       "c.json:2:7: expected ':' after the key \"a\", "
       "found \"1\""},
      {"{\n  \"a\": 1\n  \"b\": 2\n}",
       "c.json:3:3: expected ',' or '}' after the value of \"a\", found a "
       "string (the '{' of 1:1 is open)"},
      {"{\"a\": }", "c.json:1:7: expected a value, found '}'"},
      {"{\"a\": 1",
       "c.json:1:8: expected ',' or '}' after the value of "
       "\"a\", found the end of the text"},
      {"{",
       "c.json:1:2: expected a key in double quotes or '}', found the end"},
      {"{a: 1}",
       "c.json:1:2: expected a key in double quotes or '}', found "
       "\"a\""},
      {"{'a': 1}", "found '''"},
      {"{\"a\": [1, 2}", "expected ',' or ']' after a list's value"},
      {"{\"a\": [1", "expected ',' or ']'"},
      {"{\"a\": True}", "(JSON writes true, false and null)"},
      {"{\"a\": yes}", "expected a value, found \"yes\""},
      {"{\"a\": \"x\n\"}", "c.json:1:7: this string is not closed"},
      {"{\"a\": \"\\x\"}", "unknown escape"},
      {"{\"a\": \"\\u12\"}", "four hexadecimal digits"},
      {"{\"a\": \"\\ud800\"}", "surrogate pair"},
      {"{\"a\": \"\\udc00\"}", "surrogate pair"},
      {"{\"a\": \"\xFF\"}", "not UTF-8"},
      {"{\"a\": \"\x01\"}", "control character"},
      {"{\"a\": 1e}", "the digits of an exponent"},
      {"{\"a\": -}", "expected a number after '-'"},
      {"{\"a\": 1.2.3}", "expected the end of the number 1.2"},
      {"{\"a\": 0x10}", "expected the end of the number 0"},
      {"{\"a\": 1e999}", "outside what a double can hold"},
      {"{} x", "c.json:1:4: expected the end of the text, found \"x\""},
      {"{} /* open", "c.json:1:4: this comment is not closed"},
      {"{\"a\": 1,, }", "expected a key"},
      {"{\"a\": \xF0\x9F\x98\x80}", "found '\xF0\x9F\x98\x80'"}};
  for (const auto& [text, want] : cases) {
    EXPECT_THAT(Error(text), HasSubstr(want)) << text;
    EXPECT_EQ(Error(text).find('\n'), std::string::npos) << text;
  }
  EXPECT_THAT(Error(std::string_view("{\"a\": \0}", 8)),
              HasSubstr("c.json:1:7"));
}

TEST(Document, DuplicateKeysAreRefusedWithBothPlaces) {
  EXPECT_EQ(Error("{\n  \"a\": 1,\n  \"b\": {\"c\": 1,\n    \"c\": 2}\n}"),
            "c.json:4:5: duplicate key \"c\", first at c.json:3:9");
}

TEST(Document, DepthSizeAndNumberOfValuesAreBounded) {
  std::string deep = "{\"a\": ";
  deep.append(100'000, '[');
  EXPECT_THAT(Error(deep), HasSubstr("nested deeper than 64 levels"));
  std::string long_text = "{\"a\": \"";
  long_text.append(kTextBytesMax, 'x');
  EXPECT_THAT(Error(long_text), HasSubstr("bytes are more than the 4194304"));
  std::string wide = "{\"a\": [";
  for (int i = 0; i < 100'001; ++i) wide += "0,";
  EXPECT_THAT(Error(wide), HasSubstr("more than 100000 values"));
}

TEST(Document, ReadsFilesAndSaysWhichItCannot) {
  std::string name = "/tmp/stowage-config-XXXXXX";
  const int fd = ::mkstemp(name.data());
  ASSERT_GE(fd, 0);
  ::close(fd);
  std::ofstream(name) << "{\"train_batch_size\": 1}";
  const auto document = ReadConfigFile(name);
  ASSERT_TRUE(document.ok()) << document.status().ToString();
  EXPECT_EQ(document->At(document->root.members[0].value.position),
            absl::StrCat(name, ":1:22"));
  ::unlink(name.c_str());

  const auto missing = ReadConfigFile(name);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr(name));
  EXPECT_THAT(std::string(ReadConfigFile("/tmp").status().message()),
              HasSubstr("it is a folder"));
}

TEST(JsonText, StringsAndNumbersReadBack) {
  EXPECT_EQ(JsonString("a\"\\\n\x01\xFFz\xC3\xA9"),
            "\"a\\\"\\\\\\n\\u0001\\ufffdz\xC3\xA9\"");
  EXPECT_EQ(JsonNumber(3e-4), "0.0003");
  EXPECT_EQ(JsonNumber(1e-8), "1e-08");
  EXPECT_EQ(JsonNumber(65536), "65536");
  EXPECT_EQ(NestedJson({{"a.b", "1"}, {"c", "true"}, {"a.d", "\"x\""}}),
            "{\n  \"a\": {\n    \"b\": 1,\n    \"d\": \"x\"\n  },\n  \"c\": "
            "true\n}\n");
}

}  // namespace
}  // namespace stowage::engine::config
