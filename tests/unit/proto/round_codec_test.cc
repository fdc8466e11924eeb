// Rounds on the wire: what goes out comes in; a table of what is refused.

#include "proto/round_codec.h"

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::proto {
namespace {

using ::testing::HasSubstr;

std::vector<std::byte> Data(std::size_t bytes) {
  return std::vector<std::byte>(bytes, std::byte{7});
}

v1::RoundChunk Chunk() {
  const std::vector<std::byte> data = Data(100);
  v1::RoundChunk message;
  EncodeRoundChunk({.step = 5,
                    .round = 1,
                    .begin_bytes = 50,
                    .total_bytes = 150,
                    .data = data},
                   &message);
  return message;
}

v1::RoundResult Result() {
  const std::vector<std::byte> data = Data(100);
  v1::RoundResult message;
  EncodeRoundResult({.step = 5, .round = 1, .begin_bytes = 50, .data = data},
                    &message);
  return message;
}

TEST(RoundCodec, WhatGoesOutComesIn) {
  const v1::RoundChunk chunk = Chunk();
  const auto piece = DecodeRoundChunk(chunk);
  ASSERT_TRUE(piece.ok()) << piece.status();
  EXPECT_EQ(piece->step, 5);
  EXPECT_EQ(piece->round, 1);
  EXPECT_EQ(piece->begin_bytes, 50);
  EXPECT_EQ(piece->total_bytes, 150);
  EXPECT_EQ(std::vector<std::byte>(piece->data.begin(), piece->data.end()),
            Data(100));
  const v1::RoundResult result = Result();
  const auto back = DecodeRoundResult(result);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->begin_bytes, 50);
  EXPECT_EQ(back->data.size(), 100U);
  v1::RoundHeld held;
  EncodeRoundHeld({.step = 9, .round = 2}, &held);
  EXPECT_EQ(DecodeRoundHeld(held)->step, 9);
  EXPECT_EQ(DecodeRoundHeld(held)->round, 2);
  ApplyArgs apply;
  apply.step = 3;
  apply.groups = {{.lr = 0.5}};
  v1::BeginRound begin;
  EncodeBeginRound(apply, 1, &begin);
  const auto args = DecodeBeginRound(begin);
  ASSERT_TRUE(args.ok()) << args.status();
  EXPECT_EQ(args->apply, apply);
  EXPECT_EQ(args->round, 1);
}

TEST(RoundCodec, RefusesWhatTheMessageAloneTells) {
  struct Case {
    const char* name;
    std::function<void(v1::RoundChunk*)> change;
    absl::StatusCode code;
  };
  const auto bad = absl::StatusCode::kInvalidArgument;
  for (const Case& c : std::vector<Case>{
           {"step", [](auto* m) { m->set_step(-1); }, bad},
           {"round", [](auto* m) { m->set_round(-1); }, bad},
           {"a high round", [](auto* m) { m->set_round(kRoundsMax); }, bad},
           {"begin", [](auto* m) { m->set_begin_bytes(-1); }, bad},
           {"far begin",
            [](auto* m) { m->set_begin_bytes(std::int64_t{1} << 62); }, bad},
           {"no data", [](auto* m) { m->clear_data(); }, bad},
           {"much data",
            [](auto* m) {
              m->set_data(std::string(kPayloadBytesMax + 1, 'x'));
            },
            bad},
           {"beyond its total", [](auto* m) { m->set_total_bytes(149); }, bad},
           {"a total too large",
            [](auto* m) { m->set_total_bytes(kRoundBytesMax + 1); }, bad},
           {"damaged", [](auto* m) { (*m->mutable_data())[3] ^= 1; },
            absl::StatusCode::kDataLoss}}) {
    v1::RoundChunk chunk = Chunk();
    c.change(&chunk);
    EXPECT_EQ(DecodeRoundChunk(chunk).status().code(), c.code) << c.name;
    v1::RoundResult result = Result();
    result.set_step(chunk.step());
    result.set_round(chunk.round());
    result.set_begin_bytes(chunk.begin_bytes());
    result.set_data(chunk.data());
    if (std::strstr(c.name, "total") == nullptr) {
      EXPECT_EQ(DecodeRoundResult(result).status().code(), c.code) << c.name;
    }
  }
  v1::BeginRound begin;
  begin.mutable_apply()->set_step(-1);
  EXPECT_THAT(std::string(DecodeBeginRound(begin).status().message()),
              HasSubstr("apply: step"));
  v1::RoundHeld held;
  held.set_round(kRoundsMax);
  EXPECT_EQ(DecodeRoundHeld(held).status().code(), bad);
}

}  // namespace
}  // namespace stowage::proto
