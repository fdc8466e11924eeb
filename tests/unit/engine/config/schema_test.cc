#include "engine/config/schema.h"

#include <set>
#include <string>
#include <string_view>

#include "engine/config/config.h"
#include "engine/config/json_reader.h"
#include "engine/config/settings.h"
#include "engine/config/value_check.h"
#include "gtest/gtest.h"

namespace stowage::engine::config {
namespace {

TEST(Schema, RowsAreConsistent) {
  std::set<std::string> seen;
  for (const Key& key : Schema()) {
    SCOPED_TRACE(key.path);
    EXPECT_TRUE(seen.insert(key.path).second) << "twice";
    if (!key.block().empty()) {
      const Key* block = FindKey(key.block());
      ASSERT_NE(block, nullptr);
      EXPECT_EQ(block->type, KeyType::kBlock);
      EXPECT_TRUE(seen.contains(std::string(key.block())))
          << "before its block";
    }
    if (*key.same_as != '\0') {
      const Key* target = FindKey(key.same_as);
      ASSERT_NE(target, nullptr);
      EXPECT_EQ(*target->same_as, '\0');
      EXPECT_EQ(key.auto_rule, target->auto_rule);
    } else {
      EXPECT_NE(*key.effect, '\0') << "says nothing of its effect";
    }
    EXPECT_EQ(key.type == KeyType::kEnum, *key.choices != '\0');
    EXPECT_EQ(key.rule == Rule::kFixed || key.rule == Rule::kOnly,
              *key.only != '\0');
    for (const char* json : {key.def, key.only}) {
      if (*json == '\0') continue;
      auto value = ParseJson(json, "schema");
      ASSERT_TRUE(value.ok()) << value.status().ToString();
      EXPECT_TRUE(CheckValue(key, *value).ok) << json;
    }
  }
  EXPECT_GT(seen.size(), 200U);
}

TEST(Schema, EditDistanceCountsSwaps) {
  EXPECT_EQ(EditDistance("stage", "stage", 3), 0);
  EXPECT_EQ(EditDistance("stgae", "stage", 3), 1);
  EXPECT_EQ(EditDistance("stag", "stage", 3), 1);
  EXPECT_EQ(EditDistance("betas", "beta", 3), 1);
  EXPECT_EQ(EditDistance("abc", "xyz", 5), 3);
  EXPECT_EQ(EditDistance("abc", "xyzabcdefgh", 2), 3);
  EXPECT_EQ(EditDistance("", "", 2), 0);
}

TEST(Schema, NearestKeyPrefersItsBlock) {
  const auto nearest = [](std::string_view path) {
    const Key* key = NearestKey(path);
    return key == nullptr ? std::string() : std::string(key->path);
  };
  EXPECT_EQ(nearest("zero_optimization.stge"), "zero_optimization.stage");
  EXPECT_EQ(nearest("gradient_acumulation_steps"),
            "gradient_accumulation_steps");
  EXPECT_EQ(nearest("zero_optimization.aio"), "aio");
  EXPECT_EQ(nearest("zero_optimization.offload_optimizer.buffer_size"),
            "zero_optimization.offload_param.buffer_size");
  EXPECT_EQ(nearest("optimizer.params.LR"), "optimizer.params.lr");
  EXPECT_EQ(nearest("stage"), "zero_optimization.stage");
  EXPECT_EQ(nearest("qqqqqqqqqq"), "");
  EXPECT_EQ(nearest(std::string(100'000, 'x')), "");
}

TEST(Schema, DumpIsJsonWithEveryKey) {
  const auto dump = ParseJson(DumpSchema(), "dump");
  ASSERT_TRUE(dump.ok()) << dump.status().ToString();
  ASSERT_EQ(dump->items.size(), Schema().size());
  EXPECT_EQ(dump->items[0].Find("key")->value.text, Schema()[0].path);
}

}  // namespace
}  // namespace stowage::engine::config
