// In which order a TransferQueue hands its requests over.

#include "storage/nvme/io/transfer_queue.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::testing {
namespace {

using storage::IoCompletion;
using storage::IoEngine;
using storage::IoRequest;
using storage::Transfer;
using storage::TransferOptions;
using storage::TransferQueue;

constexpr std::int64_t kBlock = 4096;

// Completes nothing until it is told to, oldest first.
class HandEngine final : public IoEngine {
 public:
  explicit HandEngine(std::int32_t capacity) : capacity_(capacity) {}

  std::int32_t capacity() const override { return capacity_; }
  std::int32_t Submit(std::span<const IoRequest> requests) override {
    if (broken) return -EIO;
    for (const IoRequest& request : requests) {
      submitted += request.write ? 'w' : 'r';
      in_flight.push_back(request);
    }
    return static_cast<std::int32_t>(requests.size());
  }
  std::int32_t Poll(std::int32_t min,
                    std::vector<IoCompletion>* completions) override {
    const std::int32_t count = std::max(min, std::exchange(may_complete, 0));
    for (std::int32_t i = 0; i < count; ++i) {
      completions->push_back({in_flight.front().tag, in_flight.front().bytes});
      in_flight.pop_front();
    }
    return count;
  }
  std::string Describe() const override { return "by hand"; }

  std::string submitted;  // 'r' or 'w' each
  std::deque<IoRequest> in_flight;
  std::int32_t may_complete = 0;
  bool broken = false;

 private:
  const std::int32_t capacity_;
};

class TransferQueueTest : public ::testing::Test {
 protected:
  explicit TransferQueueTest(std::int32_t capacity = 4) {
    auto engine = std::make_unique<HandEngine>(capacity);
    engine_ = engine.get();
    queue_ = std::make_unique<TransferQueue>(
        std::move(engine),
        TransferOptions{.block_bytes = kBlock, .align_bytes = 512});
  }

  void Start(bool write, std::int64_t blocks, Transfer* transfer) {
    queue_->Start(
        {.write = write},
        std::span(memory_).first(static_cast<std::size_t>(blocks * kBlock)),
        transfer);
  }
  // Completes the oldest `count`; returns what was submitted instead.
  std::string After(std::int32_t count) {
    engine_->submitted.clear();
    engine_->may_complete = count;
    queue_->Pump(/*wait=*/false);
    return engine_->submitted;
  }

  std::vector<std::byte> memory_ =
      std::vector<std::byte>(static_cast<std::size_t>(64 * kBlock));
  HandEngine* engine_ = nullptr;
  std::unique_ptr<TransferQueue> queue_;
};

TEST_F(TransferQueueTest, WritesDoNotWaitForAllReadsBeforeThem) {
  Transfer ahead;
  Transfer behind;
  Start(/*write=*/false, 20, &ahead);
  EXPECT_EQ(engine_->submitted, "rrrr");
  Start(/*write=*/true, 3, &behind);
  // Each that ends is followed by one of the kind that has less under way.
  EXPECT_EQ(After(1), "w");
  EXPECT_EQ(After(1), "w");
  EXPECT_EQ(After(2), "rr");
  EXPECT_EQ(After(2), "wr") << "two writes ended, one is left";
  EXPECT_FALSE(behind.done());
  EXPECT_EQ(After(3), "rrr");
  EXPECT_TRUE(behind.done());
  queue_->Wait(ahead);
  EXPECT_TRUE(ahead.ok());
  EXPECT_TRUE(queue_->idle());
}

TEST_F(TransferQueueTest, ReadsDoNotWaitForAllWritesBeforeThem) {
  Transfer behind;
  Transfer ahead;
  Start(/*write=*/true, 20, &behind);
  EXPECT_EQ(engine_->submitted, "wwww");
  Start(/*write=*/false, 3, &ahead);
  EXPECT_EQ(After(2), "rr");
  EXPECT_EQ(After(4), "wrww") << "one read was left";
  queue_->Drain();
  EXPECT_TRUE(ahead.ok());
  EXPECT_TRUE(behind.ok());
}

TEST_F(TransferQueueTest, OneKindAloneHasTheWholeQueue) {
  Transfer transfer;
  Start(/*write=*/true, 9, &transfer);
  EXPECT_EQ(engine_->submitted, "wwww");
  EXPECT_EQ(After(4), "wwww");
  EXPECT_EQ(After(4), "w");
  queue_->Drain();
  EXPECT_EQ(transfer.done_bytes, 9 * kBlock);
}

class TransferQueueOfOne : public TransferQueueTest {
 protected:
  TransferQueueOfOne() : TransferQueueTest(1) {}
};

TEST_F(TransferQueueOfOne, TakesTurns) {
  Transfer ahead;
  Transfer behind;
  Start(/*write=*/false, 4, &ahead);
  Start(/*write=*/true, 2, &behind);
  std::string order;
  for (int i = 0; i < 5; ++i) order += After(1);
  EXPECT_EQ(order, "wrwrr");
  queue_->Drain();
}

TEST_F(TransferQueueTest, ABrokenEngineFailsWhatWaitsBothWays) {
  Transfer ahead;
  Transfer behind;
  Start(/*write=*/false, 6, &ahead);
  Start(/*write=*/true, 2, &behind);
  engine_->broken = true;
  After(1);
  EXPECT_TRUE(behind.done());
  EXPECT_EQ(behind.error, EIO);
  EXPECT_FALSE(ahead.done()) << "what was taken still completes";
  engine_->broken = false;
  queue_->Drain();
  EXPECT_EQ(ahead.error, EIO);
}

}  // namespace
}  // namespace stowage::testing
