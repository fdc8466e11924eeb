// Writing, finding, reading, replacing and retiring checkpoints on a real file
// system.

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/checkpoint/folder.h"
#include "storage/checkpoint/reader.h"
#include "storage/checkpoint/writer.h"

namespace stowage::storage {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class CheckpointFolder : public ::testing::Test {
 protected:
  CheckpointFolder() {
    std::string name = ::testing::TempDir() + "stowage-ckpt-XXXXXX";
    folder_ = ::mkdtemp(name.data());
  }
  ~CheckpointFolder() override { fs::remove_all(folder_); }

  static float Value(std::int64_t step, std::int64_t i) {
    return static_cast<float>(step * 1000 + i % 997);
  }

  // Two kinds, one of which is cut into files; more than a block.
  absl::StatusOr<std::string> Save(std::int64_t step, std::int64_t time) {
    CheckpointManifest manifest;
    manifest.time = time;
    manifest.step = step;
    manifest.job = "gpt";
    const std::vector<TensorSpec> tensors = {
        {"a", Dtype::kFp32, {3, 5}},
        {"big", Dtype::kFp32, {1200, 1000}},
        {"c", Dtype::kFp32, {7}}};
    auto writer = CheckpointWriter::Create(
        folder_ + "/" + CheckpointName(step), manifest,
        {{kKindMaster, tensors}, {kKindModel, {{"m", Dtype::kBf16, {3}}}}},
        /*file_bytes_max=*/1000);
    if (!writer.ok()) return writer.status();
    std::vector<float> values(15 + 1200 * 1000 + 7);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = Value(step, static_cast<std::int64_t>(i));
    }
    // Across tensors and files, in uneven pieces.
    const std::span<const std::byte> bytes =
        std::as_bytes(std::span<const float>(values));
    for (std::size_t at = 0; at < bytes.size(); at += 100003) {
      const absl::Status appended = (*writer)->Append(
          kKindMaster,
          bytes.subspan(at, std::min<std::size_t>(100003, bytes.size() - at)));
      if (!appended.ok()) return appended;
    }
    const std::vector<std::byte> model(6, std::byte{7});
    if (absl::Status appended = (*writer)->Append(kKindModel, model);
        !appended.ok()) {
      return appended;
    }
    return (*writer)->Publish();
  }

  void Expect(const std::string& path, std::int64_t step) {
    auto reader = CheckpointReader::Open(path);
    ASSERT_TRUE(reader.ok()) << reader.status();
    EXPECT_EQ(reader->manifest().step, step);
    ASSERT_TRUE(reader->Verify([](std::int64_t) {}).ok());
    std::vector<float> values(1000);
    // Backwards, across blocks.
    for (std::int64_t row = 1199; row >= 0; row -= 7) {
      ASSERT_TRUE(reader
                      ->Read(kKindMaster, "big", row * 4000,
                             std::as_writable_bytes(std::span(values)))
                      .ok());
      for (std::int64_t i = 0; i < 1000; ++i) {
        ASSERT_EQ(values[static_cast<std::size_t>(i)],
                  Value(step, 15 + row * 1000 + i));
      }
    }
    EXPECT_EQ(reader->Tensors(kKindMaster).size(), 3U);
    EXPECT_EQ(reader->Find(kKindModel, "a"), nullptr);
    EXPECT_TRUE(absl::IsNotFound(reader->Read(kKindModel, "a", 0, {})));
  }

  void Spoil(const std::string& file, std::int64_t offset) {
    std::fstream out(file, std::ios::in | std::ios::out | std::ios::binary);
    out.seekg(offset);
    const char was = static_cast<char>(out.get());
    out.seekp(offset);
    out.put(static_cast<char>(was ^ 1));
    ASSERT_TRUE(out.good()) << file;
  }

  std::string folder_;
};

TEST_F(CheckpointFolder, ReadsBackWhatWasWritten) {
  const auto path = Save(100, 1);
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_EQ(*path, folder_ + "/step-0000000100");
  Expect(*path, 100);
  EXPECT_TRUE(fs::exists(*path + "/master-00001-of-00003.safetensors"));
  EXPECT_TRUE(fs::exists(*path + "/model.safetensors"));
  EXPECT_FALSE(fs::exists(*path + ".partial"));
}

TEST_F(CheckpointFolder, FindsTheOneSavedLastAndAnyOther) {
  ASSERT_TRUE(Save(20, 1).ok());
  ASSERT_TRUE(Save(30, 2).ok());
  ASSERT_TRUE(Save(25, 3).ok());  // a run that had gone back
  EXPECT_THAT(*ListCheckpoints(folder_), ElementsAre(20, 25, 30));
  EXPECT_EQ(*FindCheckpoint(folder_, -1), folder_ + "/step-0000000025");
  EXPECT_EQ(*FindCheckpoint(folder_, 20), folder_ + "/step-0000000020");
  EXPECT_EQ(*FindCheckpoint(folder_ + "/step-0000000030", -1),
            folder_ + "/step-0000000030");
  const absl::Status none = FindCheckpoint(folder_, 21).status();
  EXPECT_TRUE(absl::IsNotFound(none));
  EXPECT_THAT(std::string(none.message()), HasSubstr("20, 25, 30"));
  EXPECT_TRUE(absl::IsNotFound(FindCheckpoint(folder_ + "/no", -1).status()));
}

TEST_F(CheckpointFolder, OffersNothingThatIsNotComplete) {
  ASSERT_TRUE(Save(20, 1).ok());
  fs::create_directory(folder_ + "/step-0000000030.partial");
  fs::create_directory(folder_ + "/step-0000000010.old");
  fs::create_directory(folder_ + "/step-40");
  EXPECT_THAT(*ListCheckpoints(folder_), ElementsAre(20));
  // A folder of the right name whose manifest or files are not whole.
  ASSERT_TRUE(Save(50, 2).ok());
  fs::resize_file(folder_ + "/step-0000000050/model.safetensors", 3);
  EXPECT_EQ(*FindCheckpoint(folder_, -1), folder_ + "/step-0000000020");
  const absl::Status short_file =
      ReadCheckpoint(folder_ + "/step-0000000050").status();
  EXPECT_THAT(std::string(short_file.message()),
              HasSubstr("model.safetensors is 3 bytes long"));
  fs::remove(folder_ + "/step-0000000050/checkpoint.json");
  EXPECT_EQ(*FindCheckpoint(folder_, -1), folder_ + "/step-0000000020");
}

TEST_F(CheckpointFolder, NamesTheDamagedFile) {
  const auto path = Save(1, 1);
  ASSERT_TRUE(path.ok());
  const std::string file = *path + "/master-00002-of-00003.safetensors";
  Spoil(file, 4'500'000);
  auto reader = CheckpointReader::Open(*path);
  ASSERT_TRUE(reader.ok()) << reader.status();
  const absl::Status verified = reader->Verify([](std::int64_t) {});
  EXPECT_TRUE(absl::IsDataLoss(verified));
  EXPECT_THAT(std::string(verified.message()),
              HasSubstr("master-00002-of-00003.safetensors is damaged: bytes "
                        "4194304 to"));
  std::vector<std::byte> bytes(4);
  EXPECT_TRUE(reader->Read(kKindMaster, "big", 0, bytes).ok());
  EXPECT_TRUE(absl::IsDataLoss(
      reader->Read(kKindMaster, "big", 4'500'000 - 4096, bytes)));
  Spoil(file, 20);  // its header
  EXPECT_TRUE(absl::IsDataLoss(CheckpointReader::Open(*path).status()));
}

TEST_F(CheckpointFolder, ReplacesOneOfTheSameStep) {
  ASSERT_TRUE(Save(7, 1).ok());
  const auto path = Save(7, 2);
  ASSERT_TRUE(path.ok()) << path.status();
  Expect(*path, 7);
  EXPECT_EQ(ReadCheckpoint(*path)->time, 2);
  EXPECT_EQ(
      std::distance(fs::directory_iterator(folder_), fs::directory_iterator()),
      1);
}

TEST_F(CheckpointFolder, KeepsTheOnesSavedLast) {
  for (const auto& [step, time] :
       std::vector<std::pair<int, int>>{{10, 1}, {20, 2}, {30, 3}, {15, 4}}) {
    ASSERT_TRUE(Save(step, time).ok());
  }
  EXPECT_THAT(*KeepNewest(folder_, 2), ElementsAre(10, 20));
  EXPECT_THAT(*ListCheckpoints(folder_), ElementsAre(15, 30));
  EXPECT_THAT(*KeepNewest(folder_, 2), ElementsAre());
}

TEST_F(CheckpointFolder, RemovesLeftoversButNotWhatIsBeingWritten) {
  fs::create_directory(folder_ + "/step-0000000001.partial");
  fs::create_directory(folder_ + "/step-0000000002.old");
  fs::create_directory(folder_ + "/mine.partial");
  {
    auto live = PartialCheckpoint::Create(folder_ + "/step-0000000003");
    ASSERT_TRUE(live.ok()) << live.status();
    EXPECT_TRUE(absl::IsUnavailable(
        PartialCheckpoint::Create(folder_ + "/step-0000000003").status()));
    EXPECT_FALSE(fs::exists(folder_ + "/step-0000000001.partial"));
    EXPECT_FALSE(fs::exists(folder_ + "/step-0000000002.old"));
    EXPECT_TRUE(fs::exists(folder_ + "/mine.partial"));
    EXPECT_TRUE(fs::exists((*live)->path()));
  }
  EXPECT_FALSE(fs::exists(folder_ + "/step-0000000003.partial"));
}

TEST_F(CheckpointFolder, AsksForSpaceBeforeTheFirstByte) {
  CheckpointManifest manifest;
  manifest.step = 1;
  const auto writer = CheckpointWriter::Create(
      folder_ + "/step-0000000001", manifest,
      {{kKindMaster, {{"huge", Dtype::kFp32, {std::int64_t{1} << 41}}}}});
  EXPECT_EQ(writer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(writer.status().message()),
              HasSubstr("nothing was written"));
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(CheckpointFolder, IsOneCheckpointOfSeveralNodesOnlyIfAllPartsAreThere) {
  const auto path = Save(5, 1);
  ASSERT_TRUE(path.ok());
  CheckpointManifest first = *ReadCheckpoint(*path);
  first.nodes = 2;
  first.save_id = "one";
  const auto write = [&](const CheckpointManifest& manifest) {
    ASSERT_TRUE(
        WriteSmallFile(*path + "/" + CheckpointManifestName(manifest.node),
                       EncodeCheckpointManifest(manifest))
            .ok());
  };
  write(first);
  EXPECT_TRUE(absl::IsNotFound(CheckpointReader::Open(*path).status()));
  CheckpointManifest second = first;
  second.node = 1;
  second.files.clear();
  second.save_id = "other";
  write(second);
  EXPECT_THAT(std::string(CheckpointReader::Open(*path).status().message()),
              HasSubstr("belongs to another save"));
  second.save_id = "one";
  write(second);
  EXPECT_TRUE(CheckpointReader::Open(*path).ok());
}

}  // namespace
}  // namespace stowage::storage
