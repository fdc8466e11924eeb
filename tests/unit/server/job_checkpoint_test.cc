// Saving a job and beginning one from files: the state goes on bit for bit, on
// any number of ranks, and what is saved is one committed step.

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "storage/checkpoint/folder.h"
#include "storage/checkpoint/reader.h"
#include "tests/unit/server/job_fixture.h"

namespace stowage::core {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class JobCheckpointTest : public JobTest {
 protected:
  JobCheckpointTest() {
    std::string name = ::testing::TempDir() + "stowage-export-XXXXXX";
    export_ = fs::canonical(::mkdtemp(name.data())).string();
  }
  ~JobCheckpointTest() override { fs::remove_all(export_); }

  std::unique_ptr<JobRegistry> Registry(std::int64_t limit_bytes = 0) {
    RegistryOptions options;
    options.export_roots = {export_};
    options.memory_limit_bytes = limit_bytes;
    return MakeRegistry(options);
  }

  SaveSpec Spec(std::int64_t step = -1) const {
    return {.job = "gpt", .folder = export_ + "/run", .step = step};
  }

  SaveInfo Await(const JobRegistry& registry) {
    for (int i = 0; i < 10000; ++i) {
      const auto info = registry.LastSave("gpt");
      EXPECT_TRUE(info.ok()) << info.status();
      if (!info.ok() || !info->running()) return *info;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    ADD_FAILURE() << "the save does not end";
    return {};
  }

  RunSpec LoadRun(std::int32_t ranks, std::int32_t micro_steps,
                  std::int64_t step = -1, bool if_any = false) const {
    RunSpec run = MakeRun(ranks, micro_steps, 'l');
    run.load = {.folder = export_ + "/run", .step = step, .if_any = if_any};
    return run;
  }

  std::string export_;
};

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_F(JobCheckpointTest, GoesOnBitForBitOnAnyNumberOfRanks) {
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp32}) {
    std::vector<float> unbroken;
    {
      auto registry = Registry();
      auto run = StartRun(*registry, SmallJob("gpt", dtype), MakeRun(6, 1));
      Train(*run, 0, 8);
      unbroken = run->rank(0).ReadEverything();
      run->Close(true);
    }
    {
      auto registry = Registry();
      auto run = StartRun(*registry, SmallJob("gpt", dtype), MakeRun(6, 1));
      Train(*run, 0, 3);
      const std::vector<std::int32_t> first = {2, 0};
      const std::vector<std::int32_t> uses = {2, 0, 0};
      ASSERT_OK(run->rank(0).session().SetForwardOrder(first, uses));
      const auto begun = registry->Save(Spec(3));
      ASSERT_TRUE(begun.ok()) << begun.status();
      Train(*run, 3, 6);  // not in it
      const SaveInfo saved = Await(*registry);
      ASSERT_EQ(saved.phase, SavePhase::kDone) << saved.error;
      EXPECT_EQ(saved.step, 3);
      EXPECT_EQ(saved.path, export_ + "/run/step-0000000003");
      EXPECT_EQ(saved.bytes_done, saved.bytes_total);
      run->Close(true);
    }
    for (const std::int32_t ranks : {1, 2, 3, 6}) {
      auto registry = Registry();
      auto run = testing::FakeRun::Start(*registry, SmallJob("gpt", dtype),
                                         LoadRun(ranks, 6 / ranks));
      ASSERT_TRUE(run.ok()) << run.status();
      const AttachInfo& info = (*run)->rank(0).info();
      EXPECT_TRUE(info.initialized);
      EXPECT_EQ(info.step, 3);
      EXPECT_EQ(info.applied_steps, 3);
      EXPECT_EQ(info.client_state, "after 2");
      EXPECT_EQ(info.loaded_from, export_ + "/run/step-0000000003");
      Train(**run, 3, 8);
      EXPECT_TRUE(SameBits((*run)->rank(0).ReadEverything(), unbroken))
          << ranks << " ranks";
      (*run)->Close(true);
    }
  }
}

TEST_F(JobCheckpointTest, SavesTheStepThatWasAskedForAlsoAheadOfIt) {
  auto registry = Registry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 1));
  Train(*run, 0, 2);
  ASSERT_TRUE(registry->Save(Spec(4)).ok());
  EXPECT_EQ(registry->LastSave("gpt")->phase, SavePhase::kWaiting);
  EXPECT_EQ(registry->Save(Spec(4)).status().code(),
            absl::StatusCode::kUnavailable);
  Train(*run, 2, 4);
  // A skipped step right behind must not get in.
  ASSERT_OK(run->Prepare(4, BatchGradient).status());
  ASSERT_OK(run->Apply(MakeSkip(4)));
  const SaveInfo saved = Await(*registry);
  ASSERT_EQ(saved.phase, SavePhase::kDone) << saved.error;
  const auto manifest = storage::ReadCheckpoint(saved.path);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->step, 4);
  EXPECT_EQ(manifest->applied_steps, 4);
  EXPECT_EQ(manifest->groups, MakeApply(3).groups);
  EXPECT_EQ(registry->Save(Spec(4)).status().code(),
            absl::StatusCode::kAborted);
  EXPECT_EQ(registry->Save(Spec(50)).status().code(),
            absl::StatusCode::kFailedPrecondition);
  run->Close(true);
}

TEST_F(JobCheckpointTest, IsOneStepHoweverLittleRoomThereIsForCopies) {
  // The job fits, copies of it do not.
  for (int round = 0; round < 3; ++round) {
    auto registry = Registry(std::int64_t{20} << 20);
    auto run = StartRun(*registry, SmallJob(), MakeRun(2, 1));
    ASSERT_NE(run, nullptr);
    Train(*run, 0, 2);
    ASSERT_TRUE(registry->Save(Spec(2)).ok());
    Train(*run, 2, 6);
    const SaveInfo saved = Await(*registry);
    ASSERT_EQ(saved.phase, SavePhase::kDone) << saved.error;
    run->Close(true);
    auto loaded = testing::FakeRun::Start(*registry, SmallJob(), LoadRun(1, 2));
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    const std::vector<float> got = (*loaded)->rank(0).ReadEverything();
    (*loaded)->Close(true);
    auto again = StartRun(*registry, SmallJob("other"), MakeRun(2, 1));
    Train(*again, 0, 2);
    EXPECT_TRUE(SameBits(got, again->rank(0).ReadEverything()));
    again->Close(true);
  }
}

TEST_F(JobCheckpointTest, WritesASetForHuggingFaceAndRetiresOldOnes) {
  auto registry = Registry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 1));
  SaveSpec spec = Spec();
  spec.model = true;
  spec.keep = 2;
  for (std::int64_t step = 0; step < 4; ++step) {
    Train(*run, step, step + 1);
    ASSERT_TRUE(registry->Save(spec).ok());
    ASSERT_EQ(Await(*registry).phase, SavePhase::kDone);
  }
  EXPECT_EQ(*storage::ListCheckpoints(export_ + "/run"),
            (std::vector<std::int64_t>{3, 4}));
  auto reader =
      storage::CheckpointReader::Open(export_ + "/run/step-0000000004");
  ASSERT_TRUE(reader.ok()) << reader.status();
  ASSERT_OK(reader->Verify([](std::int64_t) {}));
  EXPECT_EQ(reader->Tensors(storage::kKindModel).size(), 6U);
  EXPECT_EQ(reader->Tensors(storage::kKindFrozen).size(), 2U);
  // The ranks' own copy, bit for bit.
  const Layout& layout = run->rank(0).layout();
  for (const Layout::Unit& unit : layout.units()) {
    for (const Layout::Param& param : unit.params) {
      std::vector<float> want(static_cast<std::size_t>(param.elems));
      ASSERT_OK(run->rank(0).session().ReadState(
          param.unit_index, StateKind::kParam, param.begin_elems, want));
      std::vector<std::uint16_t> got(want.size());
      ASSERT_OK(reader->Read(storage::kKindModel, param.name, 0,
                             std::as_writable_bytes(std::span(got))));
      for (std::size_t i = 0; i < want.size(); ++i) {
        ASSERT_EQ(Bf16ToFloat(got[i]), want[i]) << param.name << " " << i;
      }
    }
  }
  run->Close(true);
}

TEST_F(JobCheckpointTest, SaysWhatDiffersAndLoadsNothingOfIt) {
  auto registry = Registry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 1));
  Train(*run, 0, 1);
  ASSERT_TRUE(registry->Save(Spec()).ok());
  ASSERT_EQ(Await(*registry).phase, SavePhase::kDone);
  run->Close(true);
  const auto refusal = [&](const JobSpec& job) {
    const auto got = testing::FakeRun::Start(*registry, job, LoadRun(1, 1));
    return std::string(got.status().message());
  };
  JobSpec job = SmallJob();
  job.layout.units[2].params[1].shape = {65, 70};
  EXPECT_THAT(refusal(job),
              HasSubstr("layout: parameter \"block.w\" has shape [70, 65], the "
                        "job has [65, 70]"));
  job = SmallJob();
  job.layout.units[3].params.push_back({"head.w", {2}, 0});
  EXPECT_THAT(refusal(job), HasSubstr("no trainable parameter \"head.w\""));
  job = SmallJob();
  job.layout.units.pop_back();
  EXPECT_THAT(refusal(job), HasSubstr("\"head.b\", which the job has not"));
  job = SmallJob();
  job.optimizer.decoupled_weight_decay = false;
  EXPECT_THAT(refusal(job), HasSubstr("AdamW, the job has Adam"));
  // Units may be cut otherwise: what counts is the parameters.
  job = SmallJob();
  job.layout.units[2].params.push_back(job.layout.units[3].params[0]);
  job.layout.units.pop_back();
  EXPECT_EQ(refusal(job), "");
}

TEST_F(JobCheckpointTest, TouchesOnlyFoldersBelowItsRoots) {
  auto registry = Registry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 1));
  Train(*run, 0, 1);
  SaveSpec spec = Spec();
  spec.folder = "/tmp";
  const absl::Status refused = registry->Save(spec).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("export path /tmp"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr(export_));
  run->Close(true);
  RunSpec load = LoadRun(1, 1);
  load.load.folder = "/tmp";
  EXPECT_EQ(
      testing::FakeRun::Start(*registry, SmallJob(), load).status().code(),
      absl::StatusCode::kPermissionDenied);
}

TEST_F(JobCheckpointTest, BeginsAnewWhereThereIsNoneIfThatWasAsked) {
  auto registry = Registry();
  EXPECT_TRUE(absl::IsNotFound(
      testing::FakeRun::Start(*registry, SmallJob(), LoadRun(1, 1)).status()));
  auto run = testing::FakeRun::Start(*registry, SmallJob(),
                                     LoadRun(1, 1, -1, /*if_any=*/true));
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_FALSE((*run)->rank(0).info().initialized);
  EXPECT_EQ((*run)->rank(0).info().loaded_from, "");
  (*run)->Close(false);
}

TEST_F(JobCheckpointTest, ADamagedFileIsNamedAndNothingBegins) {
  auto registry = Registry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 1));
  Train(*run, 0, 1);
  ASSERT_TRUE(registry->Save(Spec()).ok());
  ASSERT_EQ(Await(*registry).phase, SavePhase::kDone);
  run->Close(true);
  const std::string file = export_ + "/run/step-0000000001/moment2.safetensors";
  std::FILE* damaged = std::fopen(file.c_str(), "r+b");
  ASSERT_NE(damaged, nullptr);
  std::fseek(damaged, 90000, SEEK_SET);
  std::fputc(0x5a, damaged);
  std::fclose(damaged);
  const auto got =
      testing::FakeRun::Start(*registry, SmallJob(), LoadRun(1, 1));
  EXPECT_TRUE(absl::IsDataLoss(got.status())) << got.status();
  EXPECT_THAT(std::string(got.status().message()),
              HasSubstr("moment2.safetensors"));
  EXPECT_TRUE(registry->List().empty());
}

TEST_F(JobCheckpointTest, AServerThatStopsDoesNotWaitForASave) {
  auto registry = Registry();
  auto run = StartRun(*registry, SmallJob(), MakeRun(1, 1));
  Train(*run, 0, 1);
  ASSERT_TRUE(registry->Save(Spec()).ok());
  registry->Stop();
  // Complete or not there.
  const auto steps = storage::ListCheckpoints(export_ + "/run");
  ASSERT_TRUE(steps.ok()) << steps.status();
  for (const std::int64_t step : *steps) {
    EXPECT_TRUE(storage::ReadCheckpoint(export_ + "/run/" +
                                        storage::CheckpointName(step))
                    .ok());
  }
  run->Close(false);
}

}  // namespace
}  // namespace stowage::core
