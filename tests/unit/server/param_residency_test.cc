// Leases, reading ahead and eviction, over a store that a test steps by hand.

#include "server/core/param_residency.h"

#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_rank.h"

namespace stowage::core {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Moves bytes at once; remembers what was read, in order.
class MemoryUnits final : public storage::UnitStore {
 public:
  explicit MemoryUnits(const Layout& layout) : layout_(layout) {}
  std::int64_t payload_bytes(std::int32_t unit) const override {
    return layout_.units()[static_cast<std::size_t>(unit)].elems * 4;
  }
  absl::Status StartRead(std::int32_t unit,
                         std::span<std::byte> into) override {
    MutexLock lock(mutex_);
    reads_.push_back(unit);
    if (broken_) return absl::DataLossError("unit cannot be read");
    std::copy(bytes_[unit].begin(), bytes_[unit].end(), into.begin());
    return absl::OkStatus();
  }
  absl::Status StartWrite(std::int32_t unit,
                          std::span<const std::byte> from) override {
    MutexLock lock(mutex_);
    bytes_[unit].assign(from.begin(), from.end());
    return absl::OkStatus();
  }
  absl::Status Await(std::int32_t /*unit*/) override {
    MutexLock lock(mutex_);
    while (slow_) arrived_.Wait(mutex_);
    return absl::OkStatus();
  }
  bool Done(std::int32_t /*unit*/) override { return true; }
  std::int64_t bytes_read() const override { return 0; }
  std::int64_t bytes_written() const override { return 0; }

  std::vector<std::int32_t> TakeReads() {
    MutexLock lock(mutex_);
    return std::exchange(reads_, {});
  }
  // Nothing arrives while it is on.
  void BeSlow(bool slow) {
    MutexLock lock(mutex_);
    slow_ = slow;
    arrived_.NotifyAll();
  }
  void Break(bool broken) {
    MutexLock lock(mutex_);
    broken_ = broken;
  }

 private:
  const Layout& layout_;
  Mutex mutex_;
  std::map<std::int32_t, std::vector<std::byte>> bytes_ GUARDED_BY(mutex_);
  std::vector<std::int32_t> reads_ GUARDED_BY(mutex_);
  bool broken_ GUARDED_BY(mutex_) = false;
  bool slow_ GUARDED_BY(mutex_) = false;
  CondVar arrived_;
};

constexpr std::int32_t kUnits = 5;
constexpr std::int64_t kUnitBytes = 8192;

class ParamResidencyTest : public ::testing::Test {
 protected:
  // `frozen`: half of each of these units is.
  void Make(std::int64_t units_in_memory, std::int32_t ahead,
            std::int64_t ahead_bytes = std::int64_t{1} << 20,
            const std::set<std::int32_t>& frozen = {}) {
    LayoutSpec spec;
    spec.groups = {{.name = "g"}, {.name = "frozen", .frozen = true}};
    for (std::int32_t u = 0; u < kUnits; ++u) {
      const std::string name = absl::StrCat("u", u);
      const std::int32_t group = frozen.count(u) > 0 ? 1 : 0;
      spec.units.push_back(
          {.name = name,
           .params = {
               {.name = name + ".w", .shape = {1024}},
               {.name = name + ".f", .shape = {1024}, .group_index = group}}});
    }
    layout_ = *Layout::Create(spec);
    folder_ = *storage::SegmentFolder::Create(shm_.path(), "cafe");
    params_ = *ParamSegment::Create(
        layout_, *folder_,
        {.job_id = 1, .leased_bytes = units_in_memory * kUnitBytes}, &budget_,
        *budget_.Reserve(1 << 20, "test"));
    store_ = std::make_unique<MemoryUnits>(layout_);
    residency_ = std::make_unique<ParamResidency>(
        layout_, *params_, *store_,
        ParamResidency::Options{
            .limit_bytes = units_in_memory * kUnitBytes,
            .ahead_units = ahead,
            .ahead_bytes = ahead_bytes,
            .granted =
                [this](const std::vector<LeaseGrant>& grants) {
                  MutexLock lock(mutex_);
                  for (const LeaseGrant& g : grants) Note(g);
                  changed_.NotifyAll();
                },
            .failed =
                [this](const absl::Status& status) {
                  MutexLock lock(mutex_);
                  failure_ = status;
                  changed_.NotifyAll();
                }});
    for (std::int32_t u = 0; u < kUnits; ++u) Write(u, 0);
    EXPECT_TRUE(residency_->Settle().ok());
  }

  void Write(std::int32_t unit, std::int64_t step) {
    ASSERT_TRUE(residency_->BeginWrite(unit, false, false).ok());
    *reinterpret_cast<float*>(params_->param(unit, 7)) =
        static_cast<float>(std::int64_t{unit} * 100 + step);
    std::vector<LeaseGrant> grants;
    residency_->EndWrite(unit, step, &grants);
    MutexLock lock(mutex_);
    for (const LeaseGrant& g : grants) Note(g);
  }
  void Note(const LeaseGrant& g) REQUIRES(mutex_) {
    granted_.insert(absl::StrCat(g.rank, ":", g.unit, "@", g.step));
  }
  void Lease(std::int32_t rank, std::int32_t unit, std::int64_t step) {
    std::vector<LeaseGrant> grants;
    residency_->Lease(rank, unit, step, &grants);
    MutexLock lock(mutex_);
    for (const LeaseGrant& g : grants) Note(g);
  }
  bool Granted(std::int32_t rank, std::int32_t unit, std::int64_t step,
               int wait_ms = 5000) {
    MutexLock lock(mutex_);
    const std::string name = absl::StrCat(rank, ":", unit, "@", step);
    for (int i = 0; i < wait_ms && granted_.count(name) == 0; ++i) {
      changed_.WaitFor(mutex_, std::chrono::milliseconds(1));
    }
    return granted_.count(name) > 0;
  }
  float Value(std::int32_t unit) const {
    return *reinterpret_cast<const float*>(params_->param(unit, 7));
  }
  void Use(std::int32_t rank, std::int32_t unit, std::int64_t step) {
    {
      MutexLock lock(mutex_);
      granted_.erase(absl::StrCat(rank, ":", unit, "@", step));
    }
    Lease(rank, unit, step);
    ASSERT_TRUE(Granted(rank, unit, step));
    EXPECT_EQ(Value(unit), static_cast<float>(std::int64_t{unit} * 100 + step));
    residency_->Unlease(rank, unit);
  }

  // One rank, forward and backward, in step 0.
  void RunOneStep() {
    const std::vector<std::int32_t> trace = {0, 1, 2, 3, 4, 4, 3, 2, 1, 0};
    residency_->BeginRun(1, 1, 1, 0);
    residency_->SetTrace(trace);
    for (const std::int32_t u : trace) Use(0, u, 0);
    ASSERT_TRUE(residency_->Settle().ok());
  }

  testing::ShmFolder shm_;
  storage::MemoryBudget budget_{1 << 24};
  Layout layout_;
  std::unique_ptr<storage::SegmentFolder> folder_;
  std::unique_ptr<ParamSegment> params_;
  std::unique_ptr<MemoryUnits> store_;
  Mutex mutex_;
  CondVar changed_;
  std::multiset<std::string> granted_ GUARDED_BY(mutex_);
  absl::Status failure_ GUARDED_BY(mutex_);
  std::unique_ptr<ParamResidency> residency_;
};

TEST_F(ParamResidencyTest, NeverHoldsMoreThanTheLimit) {
  Make(/*units_in_memory=*/2, /*ahead=*/3);
  residency_->BeginRun(1, 1, 1, 0);
  residency_->SetTrace({0, 1, 2, 3, 4, 4, 3, 2, 1, 0});
  for (std::int64_t step = 0; step < 4; ++step) {
    for (const std::int32_t u : {0, 1, 2, 3, 4, 4, 3, 2, 1, 0}) {
      Use(0, u, step);
    }
    for (std::int32_t u = 0; u < kUnits; ++u) Write(u, step + 1);
    ASSERT_TRUE(residency_->Settle().ok());
  }
  EXPECT_EQ(residency_->resident_bytes_max(), 2 * kUnitBytes);
}

TEST_F(ParamResidencyTest, ALeasedUnitStaysAndAnotherRankWaitsForRoom) {
  Make(2, 0);
  residency_->BeginRun(1, 2, 1, 0);
  Lease(0, 0, 0);
  Lease(1, 1, 0);
  ASSERT_TRUE(Granted(0, 0, 0));
  ASSERT_TRUE(Granted(1, 1, 0));
  Lease(0, 2, 0);
  EXPECT_FALSE(Granted(0, 2, 0, 50)) << "a leased unit was evicted";
  EXPECT_EQ(Value(0), 0);
  EXPECT_EQ(Value(1), 100);
  residency_->Unlease(1, 1);
  EXPECT_TRUE(Granted(0, 2, 0));
  EXPECT_EQ(Value(2), 200);
  EXPECT_EQ(Value(0), 0);
  // A lost rank's leases are nobody's.
  residency_->DropRank(0);
  Lease(1, 3, 0);
  EXPECT_TRUE(Granted(1, 3, 0));
}

TEST_F(ParamResidencyTest, ALeaseOfANewStepIsGrantedWhenItIsMade) {
  Make(3, 0);
  residency_->BeginRun(1, 1, 1, 0);
  Lease(0, 0, 0);
  ASSERT_TRUE(Granted(0, 0, 0));
  Lease(0, 0, 1);
  EXPECT_FALSE(Granted(0, 0, 1, 20));
  Write(0, 1);
  EXPECT_TRUE(Granted(0, 0, 1));
  EXPECT_EQ(Value(0), 1);
  Lease(0, 4, 1);
  std::vector<LeaseGrant> grants;
  residency_->Advance(4, 1, &grants);  // frozen, say
  EXPECT_TRUE(grants.size() == 1 || Granted(0, 4, 1));
}

// With room for two of five units on 0 1 2 3 4 4 3 2 1 0, least-recently-used
// reads eight a step; what is needed sooner must stay.
TEST_F(ParamResidencyTest, EvictsWhatIsNeededLast) {
  Make(3, 0);
  residency_->BeginRun(1, 1, 2, 0);  // two passes: content stays
  residency_->SetTrace({0, 1, 2, 3, 4, 4, 3, 2, 1, 0});
  for (const std::int32_t u : {0, 1, 2, 3, 4}) Use(0, u, 0);
  ASSERT_TRUE(residency_->Settle().ok());
  store_->TakeReads();
  // 4 is there; 3 and 2 were used last and are needed next: both kept.
  for (const std::int32_t u : {4, 3, 2}) Use(0, u, 0);
  EXPECT_THAT(store_->TakeReads(), IsEmpty());
  for (const std::int32_t u : {1, 0}) Use(0, u, 0);
  EXPECT_THAT(store_->TakeReads(), ElementsAre(1, 0));
}

TEST_F(ParamResidencyTest, ReadsAheadAlongTheTrace) {
  Make(3, 2);
  residency_->BeginRun(1, 1, 1, 0);
  residency_->SetTrace({0, 1, 2, 3, 4, 4, 3, 2, 1, 0});
  store_->TakeReads();
  for (const std::int32_t u : {0, 1, 2, 3}) {
    Use(0, u, 0);
    // What comes next is on its way before it is asked for.
    for (int i = 0; i < 5000 && Value(u + 1) == 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_EQ(Value(u + 1), (u + 1) * 100);
  }
}

// A rank that is in the next step already while the update goes on: what is
// not made yet would be read in vain.
TEST_F(ParamResidencyTest, DoesNotReadWhatTheUpdateReplaces) {
  Make(3, 2);
  RunOneStep();
  store_->TakeReads();
  for (std::int32_t u = 0; u < kUnits; ++u) {
    Write(u, 1);
    Use(0, u, 1);
    ASSERT_TRUE(residency_->Settle().ok());
    EXPECT_THAT(store_->TakeReads(), IsEmpty()) << "unit " << u;
  }
}

// Half of unit 2 is frozen: its update reads it, so that may begin early. What
// comes behind what is not made yet is not looked for beyond ahead_units.
TEST_F(ParamResidencyTest, ReadsEarlyWhatAnUpdateKeepsAPartOf) {
  Make(4, 2, 1 << 20, {2});
  RunOneStep();
  residency_->Reset(0);
  store_->TakeReads();
  Write(0, 1);
  Use(0, 0, 1);
  ASSERT_TRUE(residency_->Settle().ok());
  EXPECT_THAT(store_->TakeReads(), ElementsAre(2));
}

// A save that reads a unit while the trainer is killed and comes back.
TEST_F(ParamResidencyTest, TheServersOwnLeaseOutlivesARun) {
  Make(2, 0);
  residency_->BeginRun(1, 2, 1, 0);
  ASSERT_TRUE(residency_->Hold(0).ok());
  residency_->BeginRun(2, 2, 1, 0);
  Lease(0, 1, 0);
  ASSERT_TRUE(Granted(0, 1, 0));
  Lease(1, 2, 0);
  EXPECT_FALSE(Granted(1, 2, 0, 50)) << "a unit that the server reads went";
  EXPECT_EQ(Value(0), 0);
  residency_->LetGo(0);
  ASSERT_TRUE(Granted(1, 2, 0));
  // And it took nobody else's lease with it.
  Lease(0, 0, 0);
  EXPECT_FALSE(Granted(0, 0, 0, 50));
  residency_->Unlease(1, 2);
  ASSERT_TRUE(Granted(0, 0, 0));
  EXPECT_EQ(Value(1), 100);
}

TEST_F(ParamResidencyTest, ForgettingWaitsForTheServersOwnLease) {
  Make(2, 0);
  residency_->BeginRun(1, 1, 1, 0);
  ASSERT_TRUE(residency_->Hold(3).ok());
  std::atomic<bool> forgotten{false};
  std::thread reset([&] {
    residency_->Reset(0);
    forgotten = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_FALSE(forgotten.load());
  EXPECT_EQ(Value(3), 300);
  residency_->LetGo(3);
  reset.join();
}

// The next step's first units stay while the others are made; the one that has
// to go for them is not read again and again.
TEST_F(ParamResidencyTest, ReadsNothingWhileAnUpdateNeedsTheRoom) {
  Make(3, 3);
  RunOneStep();
  store_->TakeReads();
  for (std::int32_t u = 0; u + 1 < kUnits; ++u) {
    Write(u, 1);
    ASSERT_TRUE(residency_->Settle().ok());
    // The thread has looked for what could be read.
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  EXPECT_THAT(store_->TakeReads(), IsEmpty());
  Write(kUnits - 1, 1);
  ASSERT_TRUE(residency_->Settle().ok());
  for (const std::int32_t u : {0, 1, 2}) Use(0, u, 1);
  EXPECT_EQ(store_->TakeReads().front(), 2);
}

// Unit 0 is needed next; unit 1, which is on its way to the store, later.
TEST_F(ParamResidencyTest, AWriterWaitsForWhatIsSavedRatherThanEvictTheNext) {
  Make(2, 0);
  RunOneStep();
  Write(0, 1);
  ASSERT_TRUE(residency_->Settle().ok());
  store_->BeSlow(true);
  Write(1, 1);
  std::thread writer([&] { Write(2, 1); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  store_->TakeReads();
  store_->BeSlow(false);
  writer.join();
  Use(0, 0, 1);
  EXPECT_THAT(store_->TakeReads(), IsEmpty()) << "unit 0 had been evicted";
}

// offload_param.buffer_count and buffer_size: what may be on its way at once.
TEST_F(ParamResidencyTest, ReadsAheadSoManyUnitsAndBytesAtMost) {
  struct Case {
    std::int32_t units;
    std::int64_t bytes;
    std::size_t reads;
  };
  for (const Case& c :
       {Case{1, 1 << 20, 1}, Case{3, 1 << 20, 3}, Case{4, 2 * kUnitBytes, 2},
        Case{4, kUnitBytes / 2, 1}}) {
    SCOPED_TRACE(absl::StrCat(c.units, " units, ", c.bytes, " bytes"));
    residency_.reset();
    params_.reset();
    folder_.reset();
    Make(5, c.units, c.bytes);
    residency_->Reset(0);  // all are out
    residency_->SetTrace({0, 1, 2, 3, 4});
    store_->TakeReads();
    store_->BeSlow(true);
    residency_->BeginRun(1, 1, 1, 0);
    EXPECT_EQ(store_->TakeReads().size(), c.reads);
    store_->BeSlow(false);
  }
}

TEST_F(ParamResidencyTest, AnErrorIsToldAndEndsWithReset) {
  Make(2, 0);
  residency_->BeginRun(1, 1, 1, 0);
  store_->Break(true);
  Lease(0, 0, 0);
  {
    MutexLock lock(mutex_);
    for (int i = 0; i < 5000 && failure_.ok(); ++i) {
      changed_.WaitFor(mutex_, std::chrono::milliseconds(1));
    }
    EXPECT_EQ(failure_.code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_FALSE(residency_->BeginWrite(1, false, false).ok());
  EXPECT_FALSE(residency_->Hold(1).ok());
  EXPECT_FALSE(residency_->Settle().ok());
  store_->Break(false);
  residency_->Reset(0);
  residency_->BeginRun(2, 1, 1, 0);
  Use(0, 3, 0);
}

TEST_F(ParamResidencyTest, GivesUpWhereNobodyCanMakeRoom) {
  Make(2, 0);
  ASSERT_TRUE(residency_->BeginWrite(0, false, true).ok());
  ASSERT_TRUE(residency_->BeginWrite(1, false, true).ok());
  EXPECT_EQ(residency_->BeginWrite(2, false, true).code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace stowage::core
