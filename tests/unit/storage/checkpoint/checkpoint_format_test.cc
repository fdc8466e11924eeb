// The bytes of checkpoints: manifests and safetensors headers come back as they
// were, and nothing that is spoilt is taken for whole.

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/checkpoint/manifest.h"
#include "storage/checkpoint/tensor_header.h"
#include "storage/nvme/crc32.h"

namespace stowage::storage {
namespace {

using ::testing::HasSubstr;

CheckpointManifest Good() {
  CheckpointManifest m;
  m.program = "stowd 0.1.0";
  m.time = 1764000000123;
  m.save_id = "00ff";
  m.job = "gpt";
  m.step = 12;
  m.applied_steps = 11;
  m.client_state = std::string("\0\xff\n\"", 4);
  m.layout.param_dtype = Dtype::kBf16;
  m.layout.groups = {{"decay", false}, {"ice", true}};
  m.layout.units = {{"embed", {{"embed.w", {50, 8}, 0}}},
                    {"b", {{"b.scalar", {}, 0}, {"b.table", {3}, 1}}}};
  m.optimizer.decoupled_weight_decay = false;
  m.groups = {{1e-3, 0.9, 0.95, 1e-8, 0.1}, {}};
  m.forward_order = {0, 1};
  m.trace = {0, 1, 1, 0};
  m.files = {{"master.safetensors", "master", 5, {0xffffffffU}},
             {"empty", "frozen", 0, {}}};
  return m;
}

TEST(CheckpointManifest, ComesBackAsItWas) {
  const CheckpointManifest good = Good();
  const auto back = DecodeCheckpointManifest(EncodeCheckpointManifest(good));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->program, good.program);
  EXPECT_EQ(back->time, good.time);
  EXPECT_EQ(back->save_id, good.save_id);
  EXPECT_EQ(back->node, 0);
  EXPECT_EQ(back->nodes, 1);
  EXPECT_EQ(back->job, good.job);
  EXPECT_EQ(back->step, good.step);
  EXPECT_EQ(back->applied_steps, good.applied_steps);
  EXPECT_EQ(back->client_state, good.client_state);
  EXPECT_EQ(back->layout, good.layout);
  EXPECT_EQ(back->optimizer, good.optimizer);
  EXPECT_EQ(back->groups, good.groups);
  EXPECT_EQ(back->forward_order, good.forward_order);
  EXPECT_EQ(back->trace, good.trace);
  EXPECT_EQ(back->files, good.files);
  EXPECT_EQ(back->bytes(), 5);
}

TEST(CheckpointManifest, IsRefusedWhereverAByteIsChangedOrMissing) {
  const std::string good = EncodeCheckpointManifest(Good());
  for (std::size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x04);
    // Blanks of the first line are nobody's.
    if (good[i] == ' ' && i < good.find('\n')) continue;
    EXPECT_FALSE(DecodeCheckpointManifest(bad).ok()) << "byte " << i;
  }
  for (std::size_t length = 0; length < good.size(); ++length) {
    EXPECT_FALSE(DecodeCheckpointManifest(good.substr(0, length)).ok());
  }
}

TEST(CheckpointManifest, ANewerFormatIsRefusedByName) {
  std::string newer = EncodeCheckpointManifest(Good());
  newer.replace(newer.find(": 1,"), 4, ": 2,");
  const absl::Status status = DecodeCheckpointManifest(newer).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("format 2"));
}

// The worked example of FORMAT.md.
TEST(TensorHeader, IsAsInTheWorkedExample) {
  const std::string bytes =
      EncodeTensorHeader({{"w.weight", Dtype::kFp32, {2, 3}}},
                         {{"format", "pt"}, {"stowage_kind", "master"}});
  EXPECT_EQ(bytes,
            std::string("\x78\0\0\0\0\0\0\0", 8) +
                R"({"__metadata__":{"format":"pt","stowage_kind":"master"},)"
                R"("w.weight":{"dtype":"F32","shape":[2,3],)"
                R"("data_offsets":[0,24]}} )");
  EXPECT_EQ(bytes.size() + 24, 152U);
}

TEST(CheckpointManifest, ChecksumsAreThoseOfZlib) {
  const std::string text = "123456789";
  EXPECT_EQ(Crc32({reinterpret_cast<const std::byte*>(text.data()), 9}),
            0xCBF43926U);
  EXPECT_EQ(Crc32({reinterpret_cast<const std::byte*>(text.data()) + 4, 5},
                  Crc32({reinterpret_cast<const std::byte*>(text.data()), 4})),
            0xCBF43926U);
}

// Spoils one thing of a good manifest and signs it anew.
TEST(CheckpointManifest, SaysWhatIsWrongWithItsContents) {
  struct Case {
    const char* what;
    void (*spoil)(CheckpointManifest*);
    const char* message;
  };
  for (const Case& c : {
           Case{"applied", [](CheckpointManifest* m) { m->applied_steps = 13; },
                "applied_steps"},
           Case{"step", [](CheckpointManifest* m) { m->step = -1; }, "step"},
           Case{"node", [](CheckpointManifest* m) { m->node = 1; }, "node"},
           Case{"path", [](CheckpointManifest* m) { m->files[0].name = "a/b"; },
                "no name of a file"},
           Case{"hidden",
                [](CheckpointManifest* m) { m->files[0].name = ".."; },
                "no name of a file"},
           Case{"sums", [](CheckpointManifest* m) { m->files[0].crc32 = {}; },
                "checksums"},
           Case{"trace", [](CheckpointManifest* m) { m->trace = {2}; },
                "trace"},
           Case{"group",
                [](CheckpointManifest* m) {
                  m->layout.units[0].params[0].group_index = 2;
                },
                "group"},
           Case{"extent",
                [](CheckpointManifest* m) {
                  m->layout.units[0].params[0].shape = {0};
                },
                "shape"},
       }) {
    CheckpointManifest bad = Good();
    c.spoil(&bad);
    const absl::Status status =
        DecodeCheckpointManifest(EncodeCheckpointManifest(bad)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << c.what;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message)) << c.what;
  }
}

TEST(TensorHeader, ComesBackAsItWas) {
  const std::vector<TensorSpec> tensors = {
      {"a \"quoted\"", Dtype::kFp32, {3, 2}},
      {"scalar", Dtype::kBf16, {}},
      {"none", Dtype::kFp16, {0, 4}},
      {"z", Dtype::kFp16, {5}}};
  const std::string bytes = EncodeTensorHeader(tensors, {{"format", "pt"}});
  EXPECT_EQ(bytes.size() % 8, 0U);
  const auto back = DecodeTensorHeader(bytes.substr(8), 24 + 2 + 10);
  ASSERT_TRUE(back.ok()) << back.status();
  ASSERT_EQ(back->size(), tensors.size());
  EXPECT_EQ((*back)[0].spec, tensors[0]);
  EXPECT_EQ((*back)[3].spec, tensors[3]);
  EXPECT_EQ((*back)[3].begin_bytes, 26);
}

TEST(TensorHeader, SaysWhatIsWrong) {
  const auto header = [](const std::string& entry) {
    return DecodeTensorHeader("{\"t\":" + entry + "}", 8).status();
  };
  const std::string good =
      R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  EXPECT_TRUE(header(good).ok());
  struct Case {
    const char* entry;
    const char* message;
  };
  for (const Case& c : {
           Case{"7", "not an object"},
           Case{R"({"shape":[2],"data_offsets":[0,8]})", "no dtype"},
           Case{R"({"dtype":"I8","shape":[8],"data_offsets":[0,8]})",
                "of type I8"},
           Case{R"({"dtype":"F32","data_offsets":[0,8]})", "no shape"},
           Case{R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})",
                "extent -2"},
           Case{R"({"dtype":"F32","shape":[2.5],"data_offsets":[0,8]})",
                "extent 2.5"},
           Case{R"({"dtype":"F32","shape":[4398046511104,4398046511104],)"
                R"("data_offsets":[0,8]})",
                "too large"},
           Case{R"({"dtype":"F32","shape":[2]})", "no data_offsets"},
           Case{R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})",
                "lies at"},
           Case{R"({"dtype":"F32","shape":[2],"data_offsets":[1,9]})",
                "lies at"},
           Case{R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})",
                "begins at 4"},
           Case{R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})",
                "the tensors have 4 bytes"},
       }) {
    const absl::Status status = header(c.entry);
    EXPECT_FALSE(status.ok()) << c.entry;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
  EXPECT_FALSE(DecodeTensorHeader("[]", 0).ok());
  EXPECT_FALSE(DecodeTensorHeader("{", 0).ok());
  EXPECT_FALSE(DecodeTensorHeader(std::string(100000, '['), 0).ok());
}

}  // namespace
}  // namespace stowage::storage
