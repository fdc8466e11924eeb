// The contract of storage::StateStore, run by every implementation of it.
//
// A store that wants to be tested gives a StateStoreFactory and instantiates
//   INSTANTIATE_TEST_SUITE_P(HostStore, StateStoreContract, Values(factory));
// in a file of its own that includes this one.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/layout.h"
#include "gtest/gtest.h"
#include "storage/host/memory_budget.h"
#include "storage/state_store.h"

namespace stowage::testing {

// Makes one empty store for a layout that outlives it.
struct StateStoreFactory {
  std::string name;
  std::function<std::unique_ptr<storage::StateStore>(const Layout&)> make;
  // A pass that is abandoned leaves the committed state whole.
  bool abandon_restores = false;

  friend void PrintTo(const StateStoreFactory& factory, std::ostream* out) {
    *out << factory.name;
  }
};

class StateStoreContract : public ::testing::TestWithParam<StateStoreFactory> {
 protected:
  StateStoreContract() {
    LayoutSpec spec;
    spec.param_dtype = Dtype::kBf16;
    spec.groups = {
        {.name = "decay"}, {.name = "plain"}, {.name = "ice", .frozen = true}};
    // More than one chunk, two groups in a unit, a frozen tail, a frozen unit.
    spec.units = {
        {.name = "a",
         .params = {{.name = "a.w", .shape = {300, 257}, .group_index = 0},
                    {.name = "a.b", .shape = {257}, .group_index = 1}}},
        {.name = "b",
         .params = {{.name = "b.w", .shape = {64, 33}, .group_index = 1},
                    {.name = "b.f", .shape = {1000}, .group_index = 2}}},
        {.name = "c",
         .params = {{.name = "c.f", .shape = {10}, .group_index = 2}}},
        {.name = "d",
         .params = {{.name = "d.w", .shape = {1}, .group_index = 0}}},
    };
    layout_ = *Layout::Create(spec);
    store_ = GetParam().make(layout_);
    for (std::size_t i = layout_.chunks().size(); i > 0; --i) {
      order_.push_back(static_cast<std::int32_t>(i - 1));
    }
  }

  static float Initial(std::int64_t unit, std::int64_t element) {
    return static_cast<float>(unit + 1) + static_cast<float>(element) / 1024;
  }

  void PutAll() {
    for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
      std::vector<float> values(static_cast<std::size_t>(
          layout_.units()[static_cast<std::size_t>(u)].trainable_elems));
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = Initial(u, static_cast<std::int64_t>(i));
      }
      ASSERT_TRUE(store_->Put(u, 0, values).ok());
    }
  }

  // One pass that adds `delta`, 2 delta, 3 delta to master and moments, by two
  // threads, then `end`s it.
  absl::Status Pass(float delta, const std::function<absl::Status()>& end) {
    absl::Status status = store_->BeginUpdate(order_);
    if (!status.ok()) return status;
    std::int64_t expected_begin = 0;
    for (;;) {
      auto window = store_->AcquireNext();
      if (!window.ok()) return window.status();
      if (window->empty()) break;
      EXPECT_EQ(window->begin, expected_begin);
      expected_begin = window->end;
      std::atomic<std::int64_t> next{window->begin};
      const auto work = [&] {
        for (;;) {
          const std::int64_t at = next.fetch_add(1);
          if (at >= window->end) return;
          const Layout::Chunk& chunk =
              layout_.chunks()[static_cast<std::size_t>(
                  order_[static_cast<std::size_t>(at)])];
          EXPECT_TRUE(store_->VerifyChunk(at).ok());
          store_->BeforeUpdate(at);
          const storage::StateView view = store_->View(at);
          EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view.master) % 64, 0U);
          for (std::int64_t i = 0; i < chunk.elems; ++i) {
            view.master[i] += delta;
            view.moment1[i] += 2 * delta;
            view.moment2[i] += 3 * delta;
          }
          store_->ChunkUpdated(at);
        }
      };
      std::thread other(work);
      work();
      other.join();
      status = store_->Release(*window);
      if (!status.ok()) return status;
    }
    EXPECT_EQ(expected_begin, static_cast<std::int64_t>(order_.size()));
    return end();
  }

  // Reads the first `windows` windows of a scan: masters that Pass() has raised
  // by `added`.
  void Scan(float added, int windows) {
    ASSERT_TRUE(store_->BeginScan(order_).ok());
    for (int w = 0; w < windows; ++w) {
      auto window = store_->AcquireNext();
      ASSERT_TRUE(window.ok()) << window.status();
      if (window->empty()) break;
      for (std::int64_t at = window->begin; at < window->end; ++at) {
        const Layout::Chunk& chunk = layout_.chunks()[static_cast<std::size_t>(
            order_[static_cast<std::size_t>(at)])];
        ASSERT_TRUE(store_->VerifyChunk(at).ok());
        const storage::StateView view = store_->View(at);
        ASSERT_EQ(view.master[0],
                  Initial(chunk.unit_index, chunk.begin_elems) + added);
        ASSERT_EQ(view.moment2[0], 3 * added);
      }
      ASSERT_TRUE(store_->Release(*window).ok());
    }
    ASSERT_TRUE(store_->EndScan().ok());
  }

  void ExpectState(float added) {
    for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
      const Layout::Unit& unit = layout_.units()[static_cast<std::size_t>(u)];
      for (const auto& [kind, factor] :
           {std::pair{StateKind::kMaster, 1.0F},
            std::pair{StateKind::kMoment1, 2.0F},
            std::pair{StateKind::kMoment2, 3.0F}}) {
        std::vector<float> got(static_cast<std::size_t>(unit.trainable_elems));
        ASSERT_TRUE(store_->Read(u, kind, 0, got).ok());
        for (std::size_t i = 0; i < got.size(); ++i) {
          const float base = kind == StateKind::kMaster
                                 ? Initial(u, static_cast<std::int64_t>(i))
                                 : 0.0F;
          // The padding between runs belongs to no chunk's parameters but is
          // updated with its run; what lies after the last run is not.
          const bool in_run =
              !unit.runs.empty() &&
              static_cast<std::int64_t>(i) < unit.runs.back().end_elems;
          ASSERT_EQ(got[i], in_run ? base + factor * added : base)
              << "unit " << u << " kind " << static_cast<int>(kind)
              << " element " << i;
        }
      }
    }
  }

  // Reads all of a snapshot and expects the state after `added`.
  void ExpectSnapshot(storage::StateSnapshot& snapshot, float added) {
    std::vector<float> data(static_cast<std::size_t>(3 * kChunkElems));
    const storage::StateView view{data.data(), data.data() + kChunkElems,
                                  data.data() + 2 * kChunkElems};
    for (std::size_t c = 0; c < layout_.chunks().size(); ++c) {
      const Layout::Chunk& chunk = layout_.chunks()[c];
      const absl::Status read =
          snapshot.Read(static_cast<std::int32_t>(c), view);
      ASSERT_TRUE(read.ok()) << read;
      for (std::int64_t i = 0; i < chunk.elems; ++i) {
        ASSERT_EQ(view.master[i],
                  Initial(chunk.unit_index, chunk.begin_elems + i) + added)
            << "chunk " << c << " element " << i;
        ASSERT_EQ(view.moment1[i], 2 * added) << "chunk " << c;
        ASSERT_EQ(view.moment2[i], 3 * added) << "chunk " << c;
      }
    }
  }

  absl::Status Step(std::int64_t step, float delta) {
    return Pass(delta, [&] {
      return store_->Commit(
          {.step = step, .applied_steps = step, .client_state = ""});
    });
  }

  Layout layout_;
  std::vector<std::int32_t> order_;  // last chunk first
  std::unique_ptr<storage::StateStore> store_;
};

TEST_P(StateStoreContract, StartsAtStepZeroWithZeroState) {
  EXPECT_EQ(store_->committed(), storage::CommitRecord{});
  std::vector<float> got(64, 1.0F);
  ASSERT_TRUE(store_->Read(0, StateKind::kMoment2, 64, got).ok());
  EXPECT_EQ(got, std::vector<float>(64, 0.0F));
}

TEST_P(StateStoreContract, ReadsBackWhatWasPutInPieces) {
  const std::vector<float> first = {1.5F, -2.25F, 3.0F};
  const std::vector<float> second = {4.0F, 5.0F};
  ASSERT_TRUE(store_->Put(0, 100, second).ok());
  ASSERT_TRUE(store_->Put(0, 98, first).ok());
  std::vector<float> got(4);
  ASSERT_TRUE(store_->Read(0, StateKind::kMaster, 98, got).ok());
  EXPECT_EQ(got, (std::vector<float>{1.5F, -2.25F, 3.0F, 5.0F}));
}

TEST_P(StateStoreContract, UpdatesEveryChunkOfTheOrderOnce) {
  PutAll();
  ASSERT_TRUE(Pass(0.5F, [&] {
                return store_->Commit(
                    {.step = 1, .applied_steps = 1, .client_state = ""});
              }).ok());
  ExpectState(0.5F);
  ASSERT_TRUE(Pass(0.25F, [&] {
                return store_->Commit(
                    {.step = 2, .applied_steps = 2, .client_state = ""});
              }).ok());
  ExpectState(0.75F);
}

TEST_P(StateStoreContract, GivesTheSameStateInWhateverOrderItIsUpdated) {
  PutAll();
  std::mt19937 random(20261124);
  for (int step = 1; step <= 4; ++step) {
    // Backwards, then forwards, then at random, then forwards again.
    if (step == 2 || step == 4) std::sort(order_.begin(), order_.end());
    if (step == 3) std::shuffle(order_.begin(), order_.end(), random);
    const absl::Status status = Pass(0.5F, [&] {
      return store_->Commit(
          {.step = step, .applied_steps = step, .client_state = ""});
    });
    ASSERT_TRUE(status.ok()) << status;
    ExpectState(0.5F * static_cast<float>(step));
  }
}

TEST_P(StateStoreContract, KeepsChunksThatAreNotInTheOrder) {
  PutAll();
  const std::vector<std::int32_t> all = order_;
  ASSERT_TRUE(Pass(1.0F, [&] {
                return store_->Commit(
                    {.step = 1, .applied_steps = 1, .client_state = ""});
              }).ok());
  // Only the second chunk of unit "a".
  order_ = {1};
  ASSERT_TRUE(Pass(4.0F, [&] {
                return store_->Commit(
                    {.step = 2, .applied_steps = 2, .client_state = ""});
              }).ok());
  const Layout::Chunk& chunk = layout_.chunks()[1];
  std::vector<float> got(
      static_cast<std::size_t>(layout_.units()[0].trainable_elems));
  ASSERT_TRUE(store_->Read(0, StateKind::kMoment1, 0, got).ok());
  for (std::int64_t i = 0; i < layout_.units()[0].runs.back().end_elems; ++i) {
    const bool in_chunk =
        i >= chunk.begin_elems && i < chunk.begin_elems + chunk.elems;
    ASSERT_EQ(got[static_cast<std::size_t>(i)], in_chunk ? 10.0F : 2.0F) << i;
  }
}

TEST_P(StateStoreContract, GoesOnFromACommitAfterAnAbandonedPass) {
  if (!GetParam().abandon_restores) return;  // says so: the test above
  PutAll();
  const storage::CommitRecord first{
      .step = 1, .applied_steps = 1, .client_state = "one"};
  ASSERT_TRUE(Pass(1.0F, [&] { return store_->Commit(first); }).ok());
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(Pass(100.0F, [&] { return store_->Abandon(); }).ok());
    EXPECT_EQ(store_->committed(), first);
  }
  ExpectState(1.0F);
  ASSERT_TRUE(Pass(2.0F, [&] {
                return store_->Commit(
                    {.step = 2, .applied_steps = 2, .client_state = ""});
              }).ok());
  ExpectState(3.0F);
}

TEST_P(StateStoreContract, CommitsRecordAndTensorsTogether) {
  PutAll();
  const storage::CommitRecord record{
      .step = 1, .applied_steps = 1, .client_state = std::string("\0x", 2)};
  ASSERT_TRUE(Pass(1.0F, [&] { return store_->Commit(record); }).ok());
  EXPECT_EQ(store_->committed(), record);
}

TEST_P(StateStoreContract, CommitsASkippedStepWithoutAPass) {
  PutAll();
  const storage::CommitRecord record{
      .step = 1, .applied_steps = 0, .client_state = "scale=1024"};
  ASSERT_TRUE(store_->Commit(record).ok());
  EXPECT_EQ(store_->committed(), record);
  ExpectState(0.0F);
}

TEST_P(StateStoreContract, AbandonsAPassBeforeItsFirstWindowWithoutLoss) {
  PutAll();
  ASSERT_TRUE(store_->BeginUpdate(order_).ok());
  ASSERT_TRUE(store_->Abandon().ok());
  EXPECT_EQ(store_->committed(), storage::CommitRecord{});
  ExpectState(0.0F);
}

TEST_P(StateStoreContract, SaysSoWhenAnAbandonedPassCostTheState) {
  PutAll();
  const absl::Status status = Pass(1.0F, [&] { return store_->Abandon(); });
  EXPECT_EQ(store_->committed().step, 0);
  if (GetParam().abandon_restores) {
    EXPECT_TRUE(status.ok()) << status;
    ExpectState(0.0F);
  } else {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  }
}

TEST_P(StateStoreContract, RefusesRangesOutsideTheTrainablePrefix) {
  std::vector<float> values(8);
  const std::int64_t prefix = layout_.units()[0].trainable_elems;
  struct Case {
    std::int32_t unit;
    std::int64_t begin;
  };
  for (const Case& c : {Case{-1, 0}, Case{4, 0}, Case{0, -1},
                        Case{0, prefix - 7}, Case{0, prefix + 1}, Case{2, 0},
                        Case{0, INT64_MAX}, Case{0, INT64_MIN}}) {
    EXPECT_EQ(store_->Put(c.unit, c.begin, values).code(),
              absl::StatusCode::kInvalidArgument)
        << c.unit << " " << c.begin;
    EXPECT_EQ(store_->Read(c.unit, StateKind::kMaster, c.begin, values).code(),
              absl::StatusCode::kInvalidArgument)
        << c.unit << " " << c.begin;
  }
  EXPECT_EQ(store_->Read(0, StateKind::kParam, 0, values).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(store_->Put(0, prefix, {}).ok());
}

TEST_P(StateStoreContract, AScanReadsAndChangesNothing) {
  PutAll();
  const storage::CommitRecord first = {
      .step = 1, .applied_steps = 1, .client_state = "one"};
  Scan(0, 1000);
  ASSERT_TRUE(Pass(1, [&] { return store_->Commit(first); }).ok());
  Scan(1, 1000);
  EXPECT_EQ(store_->committed(), first);
  ExpectState(1);
  Scan(1, 1);  // broken off
  EXPECT_EQ(store_->committed(), first);
  const storage::CommitRecord second = {
      .step = 2, .applied_steps = 2, .client_state = "two"};
  Scan(1, 1000);
  ASSERT_TRUE(Pass(2, [&] { return store_->Commit(second); }).ok());
  EXPECT_EQ(store_->committed(), second);
  ExpectState(3);
  ASSERT_TRUE(store_->BeginScan(order_).ok());
  EXPECT_EQ(store_->BeginScan(order_).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store_->BeginUpdate(order_).code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(store_->EndScan().ok());
  ExpectState(3);
}

TEST_P(StateStoreContract, RefusesValuesAndReadsWhileAPassRuns) {
  std::vector<float> values(8);
  ASSERT_TRUE(store_->BeginUpdate(order_).ok());
  EXPECT_EQ(store_->Put(0, 0, values).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store_->Read(0, StateKind::kMaster, 0, values).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store_->BeginUpdate(order_).code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(store_->Abandon().ok());
}

TEST_P(StateStoreContract, RefusesInitialValuesAfterACommit) {
  ASSERT_TRUE(
      store_->Commit({.step = 1, .applied_steps = 0, .client_state = ""}).ok());
  const std::vector<float> values(8);
  EXPECT_EQ(store_->Put(0, 0, values).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_P(StateStoreContract, TakesMomentsBesideMasters) {
  PutAll();
  const std::vector<float> values = {1.0F, 2.0F, 3.0F};
  ASSERT_TRUE(store_->PutMoment(0, StateKind::kMoment1, 5, values).ok());
  ASSERT_TRUE(store_->PutMoment(0, StateKind::kMoment2, 6, values).ok());
  EXPECT_FALSE(store_->PutMoment(0, StateKind::kMaster, 6, values).ok());
  ASSERT_TRUE(
      store_->Commit({.step = 7, .applied_steps = 6, .client_state = "x"})
          .ok());
  EXPECT_EQ(store_->committed().step, 7);
  std::vector<float> got(5);
  ASSERT_TRUE(store_->Read(0, StateKind::kMoment1, 4, got).ok());
  EXPECT_EQ(got, (std::vector<float>{0, 1, 2, 3, 0}));
  ASSERT_TRUE(store_->Read(0, StateKind::kMoment2, 4, got).ok());
  EXPECT_EQ(got, (std::vector<float>{0, 0, 1, 2, 3}));
  ASSERT_TRUE(store_->Read(0, StateKind::kMaster, 4, got).ok());
  EXPECT_EQ(got[0], Initial(0, 4));
  EXPECT_EQ(store_->PutMoment(0, StateKind::kMoment1, 5, values).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_P(StateStoreContract, ASnapshotHoldsItsStepWhileALaterOneRuns) {
  PutAll();
  ASSERT_TRUE(Step(1, 0.5F).ok());
  storage::MemoryBudget budget(std::int64_t{1} << 30);
  auto snapshot = store_->BeginSnapshot(
      {.budget = &budget, .copies_bytes_max = std::int64_t{1} << 28});
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_EQ(store_->BeginSnapshot({}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(Step(2, 0.25F).ok());
  ExpectSnapshot(**snapshot, 0.5F);
  (*snapshot)->End();
  EXPECT_EQ(budget.in_use_bytes(), 0) << "copies are given back";
  EXPECT_EQ((*snapshot)->Read(0, {}).code(), absl::StatusCode::kCancelled);
  ExpectState(0.75F);
  ASSERT_TRUE(Step(3, 0.25F).ok());
  ExpectState(1.0F);
}

// The reader runs beside the passes; without room for copies they wait for it.
TEST_P(StateStoreContract, SnapshotsAreWholeWhateverTheTimingAndTheRoom) {
  PutAll();
  ASSERT_TRUE(Step(1, 1.0F).ok());
  storage::MemoryBudget budget(std::int64_t{1} << 30);
  std::int64_t step = 1;
  for (const std::int64_t room :
       {std::int64_t{0}, std::int64_t{1} << 20, std::int64_t{1} << 28}) {
    auto snapshot =
        store_->BeginSnapshot({.budget = &budget, .copies_bytes_max = room});
    ASSERT_TRUE(snapshot.ok()) << snapshot.status();
    const auto added = static_cast<float>(step);
    std::thread reader([&] { ExpectSnapshot(**snapshot, added); });
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(Step(++step, 1.0F).ok());
    reader.join();
    EXPECT_LE((*snapshot)->stats().copies_bytes_max, room);
  }
  ExpectState(static_cast<float>(step));
}

TEST_P(StateStoreContract, ASnapshotThatIsGivenUpHoldsNobodyUp) {
  PutAll();
  ASSERT_TRUE(Step(1, 1.0F).ok());
  auto snapshot =
      store_->BeginSnapshot({.budget = nullptr, .copies_bytes_max = 0});
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    (*snapshot)->End();
  });
  for (std::int64_t step = 2; step < 5; ++step) {
    ASSERT_TRUE(Step(step, 1.0F).ok());
  }
  other.join();
  ExpectState(4.0F);
}

}  // namespace stowage::testing
