// Where a job's state lies, as it travels: every number and path of a client is
// checked before the server looks at it.

#include "proto/storage_codec.h"

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/job_codec.h"
#include "proto/job_record_codec.h"
#include "tests/unit/proto/codec_test_messages.h"

namespace stowage::proto {
namespace {

using ::testing::HasSubstr;

StorageSpec GoodStorage() {
  StorageSpec spec;
  spec.optimizer = Placement::kNvme;
  spec.nvme_paths = {"/disk/a", "/disk/b.."};
  spec.kept_steps = 3;
  spec.aio = {.block_size_bytes = 8192,
              .queue_depth = 9,
              .intra_op_parallelism = 2,
              .single_submit = true,
              .overlap_events = false};
  spec.optimizer_buffers = 6;
  spec.sub_group_elems = 1234;
  spec.pipeline_read = true;
  spec.pipeline_write = true;
  spec.param_buffers = 7;
  spec.param_buffer_elems = 99;
  spec.max_in_cpu_elems = 0;
  spec.pin_memory = false;
  spec.memory_budget_bytes = 1 << 30;
  spec.nvme_budget_bytes = 5;
  return spec;
}

TEST(StorageCodec, ComesBackAsItWas) {
  v1::StorageSpec message;
  EncodeStorageSpec(GoodStorage(), &message);
  const auto decoded = DecodeStorageSpec(message);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(*decoded, GoodStorage());
  EncodeStorageSpec(StorageSpec{}, &message);
  EXPECT_EQ(*DecodeStorageSpec(message), StorageSpec{});
}

TEST(StorageCodec, RefusesEveryBadField) {
  using M = v1::StorageSpec;
  struct Case {
    const char* name;
    std::function<void(M*)> spoil;
    const char* says;
  };
  for (const Case& c : std::vector<Case>{
           {"optimizer",
            [](M* m) { m->set_optimizer(static_cast<v1::Placement>(9)); },
            "optimizer: unknown placement 9"},
           {"parameters",
            [](M* m) { m->set_params(static_cast<v1::Placement>(3)); },
            "parameters: unknown placement 3"},
           {"no path", [](M* m) { m->clear_nvme_paths(); },
            "nvme paths: 0, expected 1 to 16"},
           {"paths in memory",
            [](M* m) { m->set_optimizer(v1::PLACEMENT_MEMORY); },
            "nvme paths: 2, expected 0"},
           {"too many paths",
            [](M* m) {
              for (int i = 0; i < 15; ++i) m->add_nvme_paths("/a");
            },
            "nvme paths: 17"},
           {"empty path", [](M* m) { m->set_nvme_paths(0, ""); },
            "not absolute"},
           {"relative path", [](M* m) { m->set_nvme_paths(1, "a/b"); },
            "\"a/b\": not absolute"},
           {"long path",
            [](M* m) { m->set_nvme_paths(1, "/" + std::string(1024, 'a')); },
            "1025 bytes"},
           {"zero byte",
            [](M* m) { m->set_nvme_paths(1, std::string("/a\0b", 4)); },
            "control character"},
           {"upwards", [](M* m) { m->set_nvme_paths(0, "/a/../b"); }, "\"..\""},
           {"upwards at the end", [](M* m) { m->set_nvme_paths(0, "/a/.."); },
            "\"..\""},
           {"kept 0", [](M* m) { m->set_kept_steps(0); }, "kept steps: 0"},
           {"kept 64", [](M* m) { m->set_kept_steps(64); }, "kept steps: 64"},
           {"no aio", [](M* m) { m->clear_aio(); }, "aio.block_size: 0"},
           {"odd block",
            [](M* m) { m->mutable_aio()->set_block_size_bytes(5000); },
            "multiple of 4096"},
           {"huge block",
            [](M* m) {
              m->mutable_aio()->set_block_size_bytes(std::int64_t{1} << 31);
            },
            "aio.block_size: 2147483648"},
           {"depth 0", [](M* m) { m->mutable_aio()->set_queue_depth(0); },
            "aio.queue_depth: 0"},
           {"depth", [](M* m) { m->mutable_aio()->set_queue_depth(65537); },
            "aio.queue_depth: 65537"},
           {"threads",
            [](M* m) { m->mutable_aio()->set_intra_op_parallelism(1025); },
            "aio.intra_op_parallelism: 1025"},
           {"buffers", [](M* m) { m->set_optimizer_buffers(0); },
            "optimizer buffers: 0"},
           {"buffers", [](M* m) { m->set_optimizer_buffers(65537); },
            "optimizer buffers: 65537"},
           {"sub-group", [](M* m) { m->set_sub_group_elems(0); },
            "sub-group elements: 0"},
           {"param buffers", [](M* m) { m->set_param_buffers(-1); },
            "parameter buffers: -1"},
           {"param buffer", [](M* m) { m->set_param_buffer_elems(0); },
            "parameter buffer elements: 0"},
           {"max in cpu", [](M* m) { m->set_max_in_cpu_elems(-1); },
            "max_in_cpu: -1"},
           {"budget", [](M* m) { m->set_memory_budget_bytes(-1); },
            "memory budget: -1"},
           {"disk", [](M* m) { m->set_nvme_budget_bytes(-2); },
            "nvme budget: -2"},
       }) {
    M message;
    EncodeStorageSpec(GoodStorage(), &message);
    c.spoil(&message);
    const auto decoded = DecodeStorageSpec(message);
    EXPECT_EQ(decoded.status().code(), absl::StatusCode::kInvalidArgument)
        << c.name;
    EXPECT_THAT(std::string(decoded.status().message()), HasSubstr(c.says));
  }
}

TEST(StorageCodec, AJobSpecCarriesIt) {
  JobSpec job = GoodJob();
  job.storage = GoodStorage();
  v1::JobSpec message;
  EncodeJobSpec(job, &message);
  EXPECT_EQ(DecodeJobSpec(message)->storage, job.storage);
  message.mutable_storage()->set_kept_steps(-1);
  EXPECT_FALSE(DecodeJobSpec(message).ok());
  // A client that knows nothing of it has everything in memory.
  message.clear_storage();
  EXPECT_EQ(DecodeJobSpec(message)->storage, StorageSpec{});
}

TEST(JobRecordCodec, ComesBackAndRefusesWhatIsNone) {
  JobRecord record;
  record.spec = GoodJob();
  record.spec.storage = GoodStorage();
  record.forward_order = {1, 0};
  record.trace = {1, 0, 0, 1};
  record.params_current = true;
  const std::string bytes = EncodeJobRecord(record);
  const auto decoded = DecodeJobRecord(bytes);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->spec.name, record.spec.name);
  EXPECT_EQ(decoded->spec.layout, record.spec.layout);
  EXPECT_EQ(decoded->spec.storage, record.spec.storage);
  EXPECT_EQ(decoded->spec.durability, record.spec.durability);
  EXPECT_EQ(decoded->forward_order, record.forward_order);
  EXPECT_EQ(decoded->trace, record.trace);
  EXPECT_TRUE(decoded->params_current);

  const auto code = [](const std::string& text) {
    return DecodeJobRecord(text).status().code();
  };
  EXPECT_EQ(code(""), absl::StatusCode::kDataLoss);
  EXPECT_EQ(code("not a record at all"), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(DecodeJobRecord(bytes.substr(0, bytes.size() / 2)).ok());
  record.trace = {2};
  EXPECT_EQ(code(EncodeJobRecord(record)), absl::StatusCode::kInvalidArgument);
  v1::JobRecord newer;
  ASSERT_TRUE(newer.ParseFromString(bytes));
  newer.set_record_version(2);
  EXPECT_EQ(code(newer.SerializeAsString()), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace stowage::proto
