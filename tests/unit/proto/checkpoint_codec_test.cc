// Messages about checkpoints: they come back as they were, and what cannot be
// right is refused before a path or a number reaches the core.

#include "proto/checkpoint_codec.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::proto {
namespace {

using ::testing::HasSubstr;

SaveSpec GoodSave() {
  SaveSpec spec;
  spec.job = "gpt";
  spec.folder = "/export/gpt";
  spec.step = 12;
  spec.model = true;
  spec.keep = 3;
  return spec;
}

TEST(CheckpointCodec, ValuesComeBackAsTheyWere) {
  v1::SaveJobRequest save;
  EncodeSaveJob(GoodSave(), &save);
  EXPECT_EQ(DecodeSaveJob(save).value(), GoodSave());
  SaveSpec model_only = GoodSave();
  model_only.state = false;
  EncodeSaveJob(model_only, &save);
  EXPECT_EQ(DecodeSaveJob(save).value(), model_only);

  const LoadSpec spec{.folder = "/export", .step = 7, .if_any = true};
  v1::LoadSpec load;
  EncodeLoadSpec(spec, &load);
  EXPECT_EQ(DecodeLoadSpec(load).value(), spec);
  EXPECT_EQ(DecodeLoadSpec({}).value(), LoadSpec{});

  SaveInfo info;
  info.job = "gpt";
  info.phase = SavePhase::kFailed;
  info.step = 5;
  info.path = "/export/gpt/step-0000000005";
  info.error = "no space";
  info.bytes_done = 1;
  info.bytes_total = 2;
  info.seconds = 0.5;
  info.begin_ms = 0.25;
  info.copied_bytes = 3;
  info.copies_bytes_max = 4;
  info.waits = 6;
  info.wait_seconds = 0.125;
  v1::SaveInfo message;
  EncodeSaveInfo(info, &message);
  EXPECT_EQ(DecodeSaveInfo(message).value(), info);
}

TEST(CheckpointCodec, RefusesFoldersThatLeadElsewhere) {
  for (const std::string& folder :
       {std::string("relative"), std::string("/a/../b"), std::string("/a\nb"),
        "/" + std::string(5000, 'a'), std::string("..")}) {
    v1::SaveJobRequest save;
    EncodeSaveJob(GoodSave(), &save);
    save.set_folder(folder);
    EXPECT_EQ(DecodeSaveJob(save).status().code(),
              absl::StatusCode::kInvalidArgument)
        << folder.substr(0, 20);
    v1::LoadSpec load;
    load.set_folder(folder);
    EXPECT_EQ(DecodeLoadSpec(load).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(CheckpointCodec, RefusesNumbersAndNamesOutOfRange) {
  v1::SaveJobRequest good;
  EncodeSaveJob(GoodSave(), &good);
  v1::SaveJobRequest bad = good;
  bad.set_step(-2);
  EXPECT_THAT(std::string(DecodeSaveJob(bad).status().message()),
              HasSubstr("step -2"));
  bad = good;
  bad.set_keep(-1);
  EXPECT_FALSE(DecodeSaveJob(bad).ok());
  bad = good;
  bad.set_job("a/b");
  EXPECT_FALSE(DecodeSaveJob(bad).ok());
  bad = good;
  bad.clear_folder();
  EXPECT_FALSE(DecodeSaveJob(bad).ok());
  v1::SaveInfo info;
  info.set_phase(static_cast<v1::SavePhase>(99));
  EXPECT_FALSE(DecodeSaveInfo(info).ok());
}

}  // namespace
}  // namespace stowage::proto
