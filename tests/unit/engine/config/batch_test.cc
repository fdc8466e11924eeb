#include "engine/config/batch.h"

#include <cstdint>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::engine::config {
namespace {

using ::testing::HasSubstr;

void Expect(const BatchGiven& given, std::int64_t world, std::int64_t train,
            std::int64_t micro, std::int64_t accumulation) {
  const auto batch = ResolveBatch(given, world);
  ASSERT_TRUE(batch.ok()) << batch.status().ToString();
  EXPECT_EQ(batch->train, train);
  EXPECT_EQ(batch->micro, micro);
  EXPECT_EQ(batch->accumulation, accumulation);
}

std::string Error(const BatchGiven& given, std::int64_t world) {
  const auto batch = ResolveBatch(given, world);
  return batch.ok() ? "" : std::string(batch.status().message());
}

// Sections 1.4 and 13.4 of the reference.
TEST(Batch, TriangleOfTheReference) {
  Expect({.train = 64}, 4, 64, 16, 1);
  Expect({.train = 64, .micro = 4}, 4, 64, 4, 4);
  Expect({.train = 64, .accumulation = 8}, 4, 64, 2, 8);
  Expect({.micro = 3}, 4, 12, 3, 1);
  Expect({.micro = 3, .accumulation = 2}, 4, 24, 3, 2);
  Expect({.train = 24, .micro = 3, .accumulation = 2}, 4, 24, 3, 2);
  EXPECT_THAT(Error({.accumulation = 2}, 4),
              HasSubstr("train_batch_size or train_micro_batch_size_per_gpu"));
  EXPECT_THAT(Error({}, 4), HasSubstr("has to be given"));
}

// Trap 5.
TEST(Batch, FloorsBeforeItCompares) {
  EXPECT_THAT(
      Error({.train = 64, .micro = 5}, 4),
      HasSubstr("64 != 5 (train_micro_batch_size_per_gpu) * 3 "
                "(gradient_accumulation_steps, inferred as train_batch_size 64 "
                "/ train_micro_batch_size_per_gpu 5 / world size 4, rounded "
                "down) * 4 (world size) = 60"));
  EXPECT_THAT(Error({.train = 8, .micro = 3}, 1), HasSubstr("8 != 3"));
  EXPECT_EQ(Error({.train = 2}, 4),
            "train_micro_batch_size_per_gpu = 0, inferred as train_batch_size "
            "2 / world size 4, rounded down: it has to be greater than 0");
  EXPECT_THAT(Error({.train = 2, .micro = 4}, 1),
              HasSubstr("gradient_accumulation_steps = 0, inferred"));
  EXPECT_THAT(Error({.train = 10, .micro = 4, .accumulation = 2}, 1),
              HasSubstr("10 != 4"));
}

TEST(Batch, NumbersThatCannotBe) {
  EXPECT_THAT(Error({.train = 0}, 1), HasSubstr("train_batch_size = 0"));
  EXPECT_THAT(Error({.train = -8, .micro = -8}, 1), HasSubstr("= -8"));
  EXPECT_THAT(Error({.micro = 4}, 0), HasSubstr("world size = 0"));
  EXPECT_THAT(Error({.micro = INT64_MAX / 2, .accumulation = 3}, 1),
              HasSubstr("is more than 9223372036854775807"));
}

}  // namespace
}  // namespace stowage::engine::config
