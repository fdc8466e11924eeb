#include "proto/session_codec.h"

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/job_codec.h"
#include "tests/unit/proto/codec_test_messages.h"

namespace stowage::proto {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

template <typename Message>
struct BadCase {
  const char* name;
  std::function<void(Message*)> spoil;
  const char* says;
};

template <typename Message, typename Decode>
void ExpectAllRefused(const Message& good, Decode decode,
                      const std::vector<BadCase<Message>>& cases) {
  EXPECT_TRUE(decode(good).ok()) << decode(good);
  for (const auto& bad : cases) {
    Message message = good;
    bad.spoil(&message);
    const absl::Status status = decode(message);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.name;
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.says)) << bad.name;
  }
}

v1::Open GoodOpen() {
  v1::Open message;
  EncodeOpen(GoodJob(), GoodRun(), 1, 4711, "node-a", &message);
  return message;
}

TEST(SessionCodec, OpenComesBackAsItWas) {
  const auto decoded = DecodeOpen(GoodOpen());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->job.layout, GoodJob().layout);
  EXPECT_EQ(decoded->run.nonce, GoodRun().nonce);
  EXPECT_EQ(decoded->local_rank, 1);
  EXPECT_EQ(decoded->pid, 4711);
  EXPECT_EQ(decoded->host, "node-a");
}

TEST(SessionCodec, RefusesBadOpens) {
  using M = v1::Open;
  ExpectAllRefused<M>(
      GoodOpen(), [](const M& m) { return DecodeOpen(m).status(); },
      {
          {"no job", [](M* m) { m->clear_job(); }, "job name"},
          {"no run", [](M* m) { m->clear_run(); }, "nonce"},
          {"negative rank", [](M* m) { m->set_local_rank(-1); },
           "local rank: -1"},
          {"rank too high", [](M* m) { m->set_local_rank(2); },
           "local rank: 2, expected 0 to 1"},
          {"no pid", [](M* m) { m->clear_pid(); }, "pid: 0"},
          {"negative pid", [](M* m) { m->set_pid(-4); }, "pid: -4"},
          {"long host", [](M* m) { m->set_host(std::string(257, 'h')); },
           "257 bytes"},
          {"line end in host", [](M* m) { m->set_host("a\nb"); },
           "control character"},
      });
}

TEST(SessionCodec, AnotherProtocolVersionIsSaidBeforeAnythingElse) {
  v1::Open message;  // all else is missing
  message.set_protocol_version(kProtocolVersion + 1);
  const absl::Status status = DecodeOpen(message).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("protocol version 1, this client 2"));
}

TEST(SessionCodec, PutStateComesBackAsItWasAndRefusesTheRest) {
  using M = v1::PutState;
  const std::vector<float> values = {1.0F, -2.5F, 3e-40F};
  M good;
  EncodePutState(3, 4096, values, &good);
  PutStateArgs args;
  ASSERT_TRUE(DecodePutState(good, &args).ok());
  EXPECT_EQ(args.unit, 3);
  EXPECT_EQ(args.begin_elems, 4096);
  EXPECT_EQ(args.values, values);
  ExpectAllRefused<M>(
      good, [&args](const M& m) { return DecodePutState(m, &args); },
      {
          {"negative unit", [](M* m) { m->set_unit(-1); }, "unit: -1"},
          {"huge unit", [](M* m) { m->set_unit(65536); }, "unit: 65536"},
          {"negative begin", [](M* m) { m->set_begin_elems(-1); },
           "first element: -1"},
          {"huge begin",
           [](M* m) {
             m->set_begin_elems(std::numeric_limits<std::int64_t>::max());
           },
           "first element: 9223372036854775807"},
          {"no values", [](M* m) { m->clear_values_fp32(); }, "0 bytes"},
          {"a part of a value", [](M* m) { m->set_values_fp32("12345"); },
           "5 bytes"},
          {"more than a chunk",
           [](M* m) { m->set_values_fp32(std::string(1048580, '\0')); },
           "1048580 bytes"},
      });
  good.set_values_fp32(std::string(1048576, '\0'));
  EXPECT_TRUE(DecodePutState(good, &args).ok());
}

TEST(SessionCodec, ForwardOrderNamesEachUnitAtMostOnce) {
  using M = v1::SetForwardOrder;
  M good;
  EncodeForwardOrder(std::vector<std::int32_t>{2, 0, 1},
                     std::vector<std::int32_t>{2, 0, 0, 2}, &good);
  EXPECT_THAT(DecodeForwardOrder(good)->units, ElementsAre(2, 0, 1));
  EXPECT_THAT(DecodeForwardOrder(good)->uses, ElementsAre(2, 0, 0, 2));
  ExpectAllRefused<M>(
      good, [](const M& m) { return DecodeForwardOrder(m).status(); },
      {
          {"empty", [](M* m) { m->clear_units(); }, "units: 0"},
          {"twice", [](M* m) { m->set_units(1, 2); }, "unit 2 twice"},
          {"negative", [](M* m) { m->set_units(0, -1); }, "unit: -1"},
          {"out of range", [](M* m) { m->set_units(0, 65536); }, "unit: 65536"},
          {"too many",
           [](M* m) {
             for (int i = 3; i < 65538; ++i) m->add_units(i);
           },
           "units: 65538"},
          {"use of no unit", [](M* m) { m->set_uses(1, -1); }, "unit: -1"},
          {"use out of range", [](M* m) { m->set_uses(1, 65536); },
           "unit: 65536"},
          {"too many uses",
           [](M* m) {
             m->mutable_uses()->Resize(static_cast<int>(kTraceUsesMax) + 1, 0);
           },
           "uses: 1048577"},
      });
}

TEST(SessionCodec, LeasesNameAUnitAndAStep) {
  v1::Lease lease;
  EncodeLease({5, 7}, &lease);
  EXPECT_EQ(DecodeLease(lease)->unit, 5);
  EXPECT_EQ(DecodeLease(lease)->step, 7);
  lease.set_unit(-1);
  EXPECT_FALSE(DecodeLease(lease).ok());
  lease.set_unit(65536);
  EXPECT_FALSE(DecodeLease(lease).ok());
  lease.set_unit(0);
  lease.set_step(-1);
  EXPECT_FALSE(DecodeLease(lease).ok());
  v1::Unlease unlease;
  unlease.set_unit(3);
  EXPECT_EQ(*DecodeUnlease(unlease), 3);
  unlease.set_unit(-3);
  EXPECT_FALSE(DecodeUnlease(unlease).ok());
  v1::Leased leased;
  leased.set_unit(2);
  leased.set_step(4);
  EXPECT_EQ(DecodeLeased(leased)->step, 4);
  leased.set_step(-4);
  EXPECT_FALSE(DecodeLeased(leased).ok());
}

TEST(SessionCodec, NoticeComesBackAsItWasAndRefusesTheRest) {
  using M = v1::Notice;
  M good;
  EncodeNotice({9, 2, 3, true}, &good);
  const auto decoded = DecodeNotice(good);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->step, 9);
  EXPECT_EQ(decoded->micro, 2);
  EXPECT_EQ(decoded->unit, 3);
  EXPECT_TRUE(decoded->empty);
  ExpectAllRefused<M>(
      good, [](const M& m) { return DecodeNotice(m).status(); },
      {
          {"negative step", [](M* m) { m->set_step(-1); }, "step: -1"},
          {"negative micro", [](M* m) { m->set_micro(-1); }, "micro step: -1"},
          {"huge micro", [](M* m) { m->set_micro(65536); },
           "micro step: 65536"},
          {"negative unit", [](M* m) { m->set_unit(-7); }, "unit: -7"},
          {"huge unit", [](M* m) { m->set_unit(1 << 30); }, "unit: 1073741824"},
      });
}

TEST(SessionCodec, PrepareTakesAnyValuesButNotTooMany) {
  using M = v1::Prepare;
  M good;
  EncodePrepare(4, std::vector<double>{1.5, kInf}, &good);
  EXPECT_THAT(DecodePrepare(good)->scalars, ElementsAre(1.5, kInf));
  ExpectAllRefused<M>(
      good, [](const M& m) { return DecodePrepare(m).status(); },
      {
          {"negative step", [](M* m) { m->set_step(-4); }, "step: -4"},
          {"too many",
           [](M* m) {
             for (int i = 0; i < 65536; ++i) m->add_scalars(0);
           },
           "scalars: 65538"},
      });
}

TEST(SessionCodec, ApplyComesBackAsItWasAndRefusesTheRest) {
  using M = v1::Apply;
  M good;
  EncodeApply(GoodApply(), &good);
  EXPECT_EQ(*DecodeApply(good), GoodApply());
  ExpectAllRefused<M>(
      good, [](const M& m) { return DecodeApply(m).status(); },
      {
          {"negative step", [](M* m) { m->set_step(-1); }, "step: -1"},
          {"factor", [](M* m) { m->set_gradient_factor(kInf); },
           "gradient_factor: not finite"},
          {"lr", [](M* m) { m->mutable_groups(1)->set_lr(kNan); },
           "lr: not finite"},
          {"weight decay",
           [](M* m) { m->mutable_groups(1)->set_weight_decay(kInf); },
           "weight_decay: not finite"},
          {"beta1 is 1", [](M* m) { m->mutable_groups(0)->set_beta1(1); },
           "betas 1"},
          {"beta2 is NaN", [](M* m) { m->mutable_groups(0)->set_beta2(kNan); },
           "betas"},
          {"negative eps", [](M* m) { m->mutable_groups(0)->set_eps(-1e-8); },
           "eps"},
          {"eps is NaN", [](M* m) { m->mutable_groups(0)->set_eps(kNan); },
           "eps"},
          {"too many groups",
           [](M* m) {
             while (m->groups_size() < 1025) m->add_groups();
           },
           "groups: 1025"},
          {"long client state",
           [](M* m) { m->set_client_state(std::string(65537, 's')); },
           "client state: 65537"},
      });
  good.set_skip(true);  // the factor of a step with an overflow means nothing
  good.set_gradient_factor(kInf);
  EXPECT_TRUE(DecodeApply(good).ok());
}

TEST(SessionCodec, ReadStateComesBackAsItWasAndRefusesTheRest) {
  using M = v1::ReadState;
  M good;
  EncodeReadState({3, StateKind::kMoment2, 64, 128}, &good);
  const auto decoded = DecodeReadState(good);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->unit, 3);
  EXPECT_EQ(decoded->kind, StateKind::kMoment2);
  EXPECT_EQ(decoded->begin_elems, 64);
  EXPECT_EQ(decoded->elems, 128);
  ExpectAllRefused<M>(
      good, [](const M& m) { return DecodeReadState(m).status(); },
      {
          {"unit", [](M* m) { m->set_unit(-1); }, "unit: -1"},
          {"no kind", [](M* m) { m->clear_kind(); }, "unknown value 0"},
          {"kind", [](M* m) { m->set_kind(static_cast<v1::StateKind>(5)); },
           "unknown value 5"},
          {"begin", [](M* m) { m->set_begin_elems(-64); },
           "first element: -64"},
          {"no elements", [](M* m) { m->clear_elems(); }, "elements: 0"},
          {"elements",
           [](M* m) { m->set_elems(std::numeric_limits<std::int64_t>::max()); },
           "elements: 9223372036854775807"},
      });
}

TEST(SessionCodec, VerdictComesBackAsItWasAndRefusesTheRest) {
  using M = v1::Verdict;
  Verdict verdict;
  verdict.step = 8;
  verdict.sum_of_squares = kInf;
  verdict.first_nonfinite_param = "block.0.w";
  verdict.rank_scalars = {{1, 2}, {}, {3}};
  verdict.rank_wait_seconds = {0.5, 0, 0.25};
  verdict.disk_wait_seconds = 2.5;
  M good;
  EncodeVerdict(verdict, &good);
  const auto decoded = DecodeVerdict(good);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->step, 8);
  EXPECT_EQ(decoded->sum_of_squares, kInf);
  EXPECT_EQ(decoded->first_nonfinite_param, "block.0.w");
  EXPECT_EQ(decoded->rank_scalars, verdict.rank_scalars);
  EXPECT_EQ(decoded->rank_wait_seconds, verdict.rank_wait_seconds);
  EXPECT_EQ(decoded->disk_wait_seconds, 2.5);
  ExpectAllRefused<M>(
      good, [](const M& m) { return DecodeVerdict(m).status(); },
      {
          {"step", [](M* m) { m->set_step(-1); }, "step: -1"},
          {"long name",
           [](M* m) { m->set_first_nonfinite_param(std::string(513, 'n')); },
           "513"},
          {"too many ranks",
           [](M* m) {
             while (m->rank_scalars_size() < 257) m->add_rank_scalars();
           },
           "ranks: 257"},
          {"too many scalars",
           [](M* m) {
             for (int i = 0; i < 65536; ++i) {
               m->mutable_rank_scalars(0)->add_values(0);
             }
           },
           "scalars: 65538"},
          {"too many waits",
           [](M* m) {
             while (m->rank_wait_seconds_size() < 257) {
               m->add_rank_wait_seconds(0);
             }
           },
           "waits of ranks: 257"},
      });
}

TEST(SessionCodec, StateChunkComesBackAsItWasAndRefusesTheRest) {
  using M = v1::StateChunk;
  const std::vector<float> values = {1, 2};
  M good;
  EncodeStateChunk(1, StateKind::kParam, 32, values, &good);
  StateChunkArgs args;
  ASSERT_TRUE(DecodeStateChunk(good, &args).ok());
  EXPECT_EQ(args.unit, 1);
  EXPECT_EQ(args.kind, StateKind::kParam);
  EXPECT_EQ(args.begin_elems, 32);
  EXPECT_EQ(args.values, values);
  ExpectAllRefused<M>(
      good, [&args](const M& m) { return DecodeStateChunk(m, &args); },
      {
          {"unit", [](M* m) { m->set_unit(-1); }, "unit: -1"},
          {"kind", [](M* m) { m->clear_kind(); }, "unknown value 0"},
          {"begin", [](M* m) { m->set_begin_elems(-2); }, "first element: -2"},
          {"values", [](M* m) { m->set_values_fp32("abc"); }, "3 bytes"},
      });
}

}  // namespace
}  // namespace stowage::proto
