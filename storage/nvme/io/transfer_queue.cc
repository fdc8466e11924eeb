#include "storage/nvme/io/transfer_queue.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include "common/check.h"

namespace stowage::storage {
namespace {

// A block that the kernel puts off (EAGAIN, EINTR) is tried again this often,
// with 1 ms between, before that becomes its error.
constexpr std::int32_t kRetriesMax = 100;

}  // namespace

TransferQueue::TransferQueue(std::unique_ptr<IoEngine> engine,
                             const TransferOptions& options)
    : engine_(std::move(engine)), options_(options) {
  STOWAGE_CHECK(options_.block_bytes > 0 &&
                options_.block_bytes % options_.align_bytes == 0);
}

TransferQueue::~TransferQueue() { Drain(); }

void TransferQueue::Start(const Target& target, std::span<std::byte> memory,
                          Transfer* transfer) {
  STOWAGE_CHECK(transfer->done());
  const auto bytes = static_cast<std::int64_t>(memory.size());
  *transfer = {};
  transfer->bytes = bytes;
  for (std::int64_t at = 0; at < bytes; at += options_.block_bytes) {
    std::uint64_t tag = blocks_.size();
    if (free_.empty()) {
      blocks_.emplace_back();
    } else {
      tag = free_.back();
      free_.pop_back();
    }
    blocks_[tag] = {
        .request = {.write = target.write,
                    .file = target.file,
                    .offset_bytes = target.offset_bytes + at,
                    .data = memory.data() + at,
                    .bytes = std::min(options_.block_bytes, bytes - at),
                    .buffer = target.buffer,
                    .tag = tag},
        .transfer = transfer};
    LineOf(blocks_[tag]).waiting.push_back(tag);
    ++transfer->blocks_left;
  }
  SubmitWaiting();
}

// What is submitted next, as far as the engine has room.
void TransferQueue::FillBatch() {
  batch_.clear();
  std::array<std::size_t, 2> taken{};
  const auto under_way = [&](std::size_t line) {
    return lines_[line].in_flight + static_cast<std::int32_t>(taken[line]);
  };
  const auto left = [&](std::size_t line) {
    return taken[line] < lines_[line].waiting.size();
  };
  for (std::int32_t room = engine_->capacity() - in_flight(); room > 0;
       --room) {
    if (!left(0) && !left(1)) return;
    std::size_t line = 1 - last_line_;
    if (under_way(last_line_) < under_way(line)) line = last_line_;
    if (!left(line)) line = 1 - line;
    last_line_ = line;
    batch_.push_back(blocks_[lines_[line].waiting[taken[line]++]].request);
  }
}

// The engine is broken: whatever is not in flight fails.
void TransferQueue::FailWaiting(int error) {
  for (Line& line : lines_) {
    while (!line.waiting.empty()) {
      const std::uint64_t tag = line.waiting.front();
      line.waiting.pop_front();
      Fail(blocks_[tag], error, /*short_transfer=*/false);
      EndBlock(tag);
    }
  }
}

void TransferQueue::SubmitWaiting() {
  if (!options_.overlap_events && in_flight() > 0) return;
  while (anything_waits() && in_flight() < engine_->capacity()) {
    FillBatch();
    const std::int32_t taken = engine_->Submit(batch_);
    if (taken < 0) {
      FailWaiting(-taken);
      return;
    }
    if (taken == 0) return;  // full; a completion makes room
    for (std::int32_t i = 0; i < taken; ++i) {
      Line& line = LineOf(blocks_[batch_[static_cast<std::size_t>(i)].tag]);
      line.waiting.pop_front();
      ++line.in_flight;
    }
  }
}

void TransferQueue::Fail(Block& block, int error, bool short_transfer) {
  if (!block.transfer->ok()) return;  // the first counts
  block.transfer->error = error;
  block.transfer->short_transfer = short_transfer;
  block.transfer->fault_offset_bytes = block.request.offset_bytes;
}

void TransferQueue::EndBlock(std::uint64_t index) {
  --blocks_[index].transfer->blocks_left;
  blocks_[index].transfer = nullptr;
  free_.push_back(index);
}

void TransferQueue::Complete(const IoCompletion& completion) {
  Block& block = blocks_[completion.tag];
  STOWAGE_CHECK(block.transfer != nullptr);
  Line& line = LineOf(block);
  --line.in_flight;
  if (completion.result == -EAGAIN || completion.result == -EINTR) {
    if (++block.retries <= kRetriesMax) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      line.waiting.push_front(completion.tag);
      return;
    }
  }
  if (completion.result < 0) {
    Fail(block, static_cast<int>(-completion.result), /*short_transfer=*/false);
    EndBlock(completion.tag);
    return;
  }
  const std::int64_t moved = std::min(completion.result, block.request.bytes);
  block.transfer->done_bytes += moved;
  if (moved == block.request.bytes) {
    EndBlock(completion.tag);
    return;
  }
  // Less than asked. The rest may succeed, or say why not; it can only be asked
  // for where direct I/O can begin.
  if (moved == 0 || moved % options_.align_bytes != 0) {
    Fail(block, 0, /*short_transfer=*/true);
    EndBlock(completion.tag);
    return;
  }
  block.request.offset_bytes += moved;
  block.request.data += moved;
  block.request.bytes -= moved;
  line.waiting.push_front(completion.tag);
}

bool TransferQueue::Pump(bool wait) {
  SubmitWaiting();
  completions_.clear();
  const std::int32_t min = wait && in_flight() > 0 ? 1 : 0;
  const std::int32_t got = engine_->Poll(min, &completions_);
  // A ring that cannot be waited for any more would hang or lose track of
  // memory that the kernel still writes to.
  STOWAGE_CHECK(got >= 0);
  for (const IoCompletion& completion : completions_) Complete(completion);
  SubmitWaiting();
  return got > 0;
}

void TransferQueue::AwaitCompletions(
    std::vector<IoCompletion>* completions) const {
  STOWAGE_CHECK(engine_->Poll(1, completions) >= 0);
}

void TransferQueue::Take(const std::vector<IoCompletion>& completions) {
  for (const IoCompletion& completion : completions) Complete(completion);
  SubmitWaiting();
}

void TransferQueue::Wait(const Transfer& transfer) {
  while (!transfer.done()) Pump(/*wait=*/true);
}

void TransferQueue::Drain() {
  while (!idle()) Pump(/*wait=*/true);
}

}  // namespace stowage::storage
