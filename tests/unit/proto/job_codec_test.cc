#include "proto/job_codec.h"

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/proto/codec_test_messages.h"

namespace stowage::proto {
namespace {

using ::testing::HasSubstr;

template <typename Message>
struct BadCase {
  const char* name;
  std::function<void(Message*)> spoil;
  const char* says;  // part of the error's text
};

template <typename Message, typename Decode>
void ExpectAllRefused(const Message& good, Decode decode,
                      const std::vector<BadCase<Message>>& cases) {
  EXPECT_TRUE(decode(good).ok()) << decode(good).status();
  for (const auto& bad : cases) {
    Message message = good;
    bad.spoil(&message);
    const auto decoded = decode(message);
    EXPECT_EQ(decoded.status().code(), absl::StatusCode::kInvalidArgument)
        << bad.name;
    EXPECT_THAT(std::string(decoded.status().message()), HasSubstr(bad.says))
        << bad.name;
  }
}

v1::JobSpec GoodJobMessage() {
  v1::JobSpec message;
  EncodeJobSpec(GoodJob(), &message);
  return message;
}

TEST(JobCodec, JobSpecComesBackAsItWas) {
  const auto decoded = DecodeJobSpec(GoodJobMessage());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->name, GoodJob().name);
  EXPECT_EQ(decoded->layout, GoodJob().layout);
  EXPECT_EQ(decoded->optimizer, GoodJob().optimizer);
  EXPECT_EQ(decoded->durability, GoodJob().durability);
}

TEST(JobCodec, KeepsLambsOwnSettings) {
  JobSpec job = GoodJob();
  job.optimizer = {.kind = OptimizerKind::kLamb,
                   .bias_correction = false,
                   .max_coeff = 3,
                   .min_coeff = 0.25,
                   .eps_inside_sqrt = true};
  v1::JobSpec message;
  EncodeJobSpec(job, &message);
  const auto decoded = DecodeJobSpec(message);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->optimizer, job.optimizer);
}

TEST(JobCodec, KeepsTheSettingsOfOneBitOptimizers) {
  JobSpec job = GoodJob();
  job.optimizer = {.kind = OptimizerKind::kOneBitAdam, .freeze_step = 7};
  v1::JobSpec message;
  EncodeJobSpec(job, &message);
  EXPECT_EQ(DecodeJobSpec(message)->optimizer, job.optimizer);
  job.optimizer = {.kind = OptimizerKind::kOneBitLamb,
                   .max_coeff = 2,
                   .min_coeff = 0.5,
                   .freeze_step = 12,
                   .coeff_beta = 0.8,
                   .factor_max = 3,
                   .factor_min = 0.25,
                   .factor_threshold = 0.2};
  EncodeJobSpec(job, &message);
  EXPECT_EQ(DecodeJobSpec(message)->optimizer, job.optimizer);
  // What a kind has no use for is not sent.
  job.optimizer = {.kind = OptimizerKind::kAdam, .freeze_step = 3};
  EncodeJobSpec(job, &message);
  EXPECT_EQ(DecodeJobSpec(message)->optimizer, OptimizerSpec{});
}

TEST(JobCodec, RefusesBadJobSpecs) {
  using M = v1::JobSpec;
  ExpectAllRefused<M>(
      GoodJobMessage(), [](const M& m) { return DecodeJobSpec(m); },
      {
          {"empty message", [](M* m) { m->Clear(); }, "job name"},
          {"no name", [](M* m) { m->clear_name(); }, "job name: 0 bytes"},
          {"long name", [](M* m) { m->set_name(std::string(129, 'a')); },
           "129 bytes"},
          {"slash in name", [](M* m) { m->set_name("a/b"); }, "only letters"},
          {"zero byte in name",
           [](M* m) { m->set_name(std::string("a\0b", 3)); }, "only letters"},
          {"no layout", [](M* m) { m->clear_layout(); }, "parameter type 0"},
          {"unknown type",
           [](M* m) {
             m->mutable_layout()->set_param_dtype(static_cast<v1::Dtype>(99));
           },
           "parameter type 99"},
          {"no groups", [](M* m) { m->mutable_layout()->clear_groups(); },
           "parameter groups: 0"},
          {"too many groups",
           [](M* m) {
             for (int i = 0; i < 1024; ++i) {
               m->mutable_layout()->add_groups()->set_name("g");
             }
           },
           "parameter groups: 1026"},
          {"group without name",
           [](M* m) { m->mutable_layout()->mutable_groups(1)->clear_name(); },
           "parameter group: empty"},
          {"no units", [](M* m) { m->mutable_layout()->clear_units(); },
           "units: 0"},
          {"too many units",
           [](M* m) {
             for (int i = 0; i < 65536; ++i) m->mutable_layout()->add_units();
           },
           "units: 65538"},
          {"unit without name",
           [](M* m) { m->mutable_layout()->mutable_units(0)->clear_name(); },
           "name of a unit: empty"},
          {"control character",
           [](M* m) {
             m->mutable_layout()->mutable_units(0)->set_name("a\nb");
           },
           "control character"},
          {"unit without parameters",
           [](M* m) { m->mutable_layout()->mutable_units(0)->clear_params(); },
           "\"embed\": parameters: 0"},
          {"long parameter name",
           [](M* m) {
             m->mutable_layout()->mutable_units(0)->mutable_params(0)->set_name(
                 std::string(513, 'p'));
           },
           "513 bytes"},
          {"group out of range",
           [](M* m) {
             m->mutable_layout()
                 ->mutable_units(1)
                 ->mutable_params(1)
                 ->set_group_index(2);
           },
           "group: 2, expected 0 to 1"},
          {"negative group",
           [](M* m) {
             m->mutable_layout()
                 ->mutable_units(1)
                 ->mutable_params(1)
                 ->set_group_index(-1);
           },
           "group: -1"},
          {"zero extent",
           [](M* m) {
             m->mutable_layout()
                 ->mutable_units(0)
                 ->mutable_params(0)
                 ->set_shape(1, 0);
           },
           "extent: 0"},
          {"negative extent",
           [](M* m) {
             m->mutable_layout()
                 ->mutable_units(0)
                 ->mutable_params(0)
                 ->set_shape(1, -8);
           },
           "extent: -8"},
          {"huge extent",
           [](M* m) {
             m->mutable_layout()
                 ->mutable_units(0)
                 ->mutable_params(0)
                 ->set_shape(0, std::numeric_limits<std::int64_t>::max());
           },
           "extent: 9223372036854775807"},
          {"too many dimensions",
           [](M* m) {
             for (int i = 0; i < 16; ++i) {
               m->mutable_layout()
                   ->mutable_units(0)
                   ->mutable_params(0)
                   ->add_shape(1);
             }
           },
           "dimensions: 18"},
          {"no optimizer", [](M* m) { m->clear_optimizer(); },
           "optimizer: unknown kind 0"},
          {"unknown optimizer",
           [](M* m) {
             m->mutable_optimizer()->set_kind(
                 static_cast<v1::OptimizerKind>(7));
           },
           "optimizer: unknown kind 7"},
          {"trust ratios out of order",
           [](M* m) {
             m->mutable_optimizer()->set_kind(v1::OPTIMIZER_KIND_LAMB);
             m->mutable_optimizer()->set_min_coeff(2);
             m->mutable_optimizer()->set_max_coeff(1);
           },
           "trust ratio within [2, 1]"},
          {"no trust ratio",
           [](M* m) {
             m->mutable_optimizer()->set_kind(v1::OPTIMIZER_KIND_LAMB);
             m->mutable_optimizer()->set_min_coeff(NAN);
           },
           "trust ratio within [nan, 0]"},
          {"no freeze step",
           [](M* m) {
             m->mutable_optimizer()->set_kind(v1::OPTIMIZER_KIND_ONE_BIT_ADAM);
           },
           "freeze step 0"},
          {"factors out of order",
           [](M* m) {
             m->mutable_optimizer()->set_kind(v1::OPTIMIZER_KIND_ONE_BIT_LAMB);
             m->mutable_optimizer()->set_freeze_step(1);
             m->mutable_optimizer()->set_factor_min(4);
             m->mutable_optimizer()->set_factor_max(3);
           },
           "factor within [4, 3]"},
          {"decay of a coefficient above 1",
           [](M* m) {
             m->mutable_optimizer()->set_kind(v1::OPTIMIZER_KIND_ONE_BIT_LAMB);
             m->mutable_optimizer()->set_freeze_step(1);
             m->mutable_optimizer()->set_coeff_beta(1.5);
           },
           "decay within [0, 1.5]"},
          {"no durability", [](M* m) { m->clear_durability(); },
           "durability: unknown value 0"},
          {"reserved durability",
           [](M* m) { m->set_durability(static_cast<v1::Durability>(2)); },
           "durability: unknown value 2"},
      });
}

TEST(JobCodec, RunSpecComesBackAsItWas) {
  v1::RunSpec message;
  EncodeRunSpec(GoodRun(), &message);
  const auto decoded = DecodeRunSpec(message);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->nonce, GoodRun().nonce);
  EXPECT_EQ(decoded->world_size, 4);
  EXPECT_EQ(decoded->local_ranks, 2);
  EXPECT_EQ(decoded->micro_steps, 3);
}

TEST(JobCodec, RefusesBadRunSpecs) {
  using M = v1::RunSpec;
  M good;
  EncodeRunSpec(GoodRun(), &good);
  ExpectAllRefused<M>(
      good, [](const M& m) { return DecodeRunSpec(m); },
      {
          {"empty", [](M* m) { m->Clear(); }, "nonce of 0"},
          {"short nonce", [](M* m) { m->set_nonce("123456789012345"); },
           "nonce of 15"},
          {"long nonce", [](M* m) { m->set_nonce(std::string(65, 'n')); },
           "nonce of 65"},
          {"no world", [](M* m) { m->set_world_size(0); }, "world size: 0"},
          {"huge world", [](M* m) { m->set_world_size(65537); },
           "world size: 65537"},
          {"no ranks", [](M* m) { m->set_local_ranks(0); }, "local ranks: 0"},
          {"more ranks than world", [](M* m) { m->set_local_ranks(5); },
           "of this world size: 5"},
          {"too many ranks",
           [](M* m) {
             m->set_world_size(1000);
             m->set_local_ranks(257);
           },
           "local ranks: 257"},
          {"no micro steps", [](M* m) { m->set_micro_steps(0); },
           "micro steps: 0"},
          {"negative micro steps", [](M* m) { m->set_micro_steps(-3); },
           "micro steps: -3"},
          {"too many micro steps", [](M* m) { m->set_micro_steps(65537); },
           "micro steps: 65537"},
      });
}

TEST(JobCodec, AttachInfoComesBackAsItWas) {
  v1::AttachInfo message;
  EncodeAttachInfo(GoodAttachInfo(), &message);
  const auto decoded = DecodeAttachInfo(message);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  const AttachInfo good = GoodAttachInfo();
  EXPECT_EQ(decoded->job_id, good.job_id);
  EXPECT_EQ(decoded->epoch, good.epoch);
  EXPECT_TRUE(decoded->initialized);
  EXPECT_EQ(decoded->step, good.step);
  EXPECT_EQ(decoded->applied_steps, good.applied_steps);
  EXPECT_EQ(decoded->client_state, good.client_state);
  EXPECT_EQ(decoded->slots_per_rank, good.slots_per_rank);
  EXPECT_TRUE(decoded->slots_are_ring);
  EXPECT_EQ(decoded->shm_dir, good.shm_dir);
  EXPECT_EQ(decoded->param_segment, good.param_segment);
  EXPECT_EQ(decoded->gradient_segment, good.gradient_segment);
}

// A client does not trust its server with its file system either.
TEST(JobCodec, RefusesBadAttachInfos) {
  using M = v1::AttachInfo;
  M good;
  EncodeAttachInfo(GoodAttachInfo(), &good);
  ExpectAllRefused<M>(
      good, [](const M& m) { return DecodeAttachInfo(m); },
      {
          {"negative step", [](M* m) { m->set_step(-1); }, "step: -1"},
          {"more applied than committed",
           [](M* m) { m->set_applied_steps(13); }, "applied steps: 13"},
          {"long client state",
           [](M* m) { m->set_client_state(std::string(65537, 'x')); },
           "client state: 65537"},
          {"no slots", [](M* m) { m->set_slots_per_rank(0); },
           "slots per rank: 0"},
          {"relative folder", [](M* m) { m->set_shm_dir("dev/shm"); },
           "not an absolute path"},
          {"no folder", [](M* m) { m->clear_shm_dir(); }, "folder: empty"},
          {"path in segment", [](M* m) { m->set_param_segment("../etc"); },
           "parameter segment"},
          {"slash in segment", [](M* m) { m->set_gradient_segment("a/b"); },
           "not a plain file name"},
          {"no segment", [](M* m) { m->clear_gradient_segment(); },
           "gradient segment: empty"},
      });
}

TEST(JobCodec, JobInfoComesBackAsItWas) {
  JobInfo info;
  info.name = "job";
  info.job_id = 1;
  info.epoch = 2;
  info.initialized = true;
  info.step = 3;
  info.applied_steps = 4;
  info.parameters = 5;
  info.live_sessions = 6;
  info.local_ranks = 7;
  info.state_bytes = 8;
  info.param_bytes = 9;
  info.gradient_bytes = 10;
  info.failed_because = "why";
  info.units_landed = 11;
  info.landing_seconds = 1.5;
  info.apply_seconds = 2.5;
  v1::JobInfo message;
  EncodeJobInfo(info, &message);
  const auto decoded = DecodeJobInfo(message);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->name, "job");
  EXPECT_EQ(decoded->job_id, 1U);
  EXPECT_EQ(decoded->epoch, 2U);
  EXPECT_TRUE(decoded->initialized);
  EXPECT_EQ(decoded->step, 3);
  EXPECT_EQ(decoded->applied_steps, 4);
  EXPECT_EQ(decoded->parameters, 5);
  EXPECT_EQ(decoded->live_sessions, 6);
  EXPECT_EQ(decoded->local_ranks, 7);
  EXPECT_EQ(decoded->state_bytes, 8);
  EXPECT_EQ(decoded->param_bytes, 9);
  EXPECT_EQ(decoded->gradient_bytes, 10);
  EXPECT_EQ(decoded->failed_because, "why");
  EXPECT_EQ(decoded->units_landed, 11);
  EXPECT_EQ(decoded->landing_seconds, 1.5);
  EXPECT_EQ(decoded->apply_seconds, 2.5);
  message.set_name("a b");
  EXPECT_FALSE(DecodeJobInfo(message).ok());
}

// Decoding alone must not take what Layout::Create() is there to refuse.
TEST(JobCodec, DuplicateNamesAreLeftToTheLayout) {
  v1::JobSpec message = GoodJobMessage();
  message.mutable_layout()->mutable_units(1)->set_name("embed");
  const auto decoded = DecodeJobSpec(message);
  ASSERT_TRUE(decoded.ok());
  EXPECT_FALSE(Layout::Create(decoded->layout).ok());
}

}  // namespace
}  // namespace stowage::proto
