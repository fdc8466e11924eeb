// Whole transfers over an IoEngine: cut into blocks, many in flight, each
// completion looked at, short ones carried on, the outcome of the whole kept.
//
// What a store calls. A transfer is one run of bytes of one file, of any
// length; its Transfer object counts what is left and keeps the first error.
//
// Reads and writes wait in a line each, and the one with less under way goes
// first, in turns where both have as much: a pipeline reads ahead by whole
// windows, and what it writes behind those would leave the device one way at a
// time.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "storage/nvme/io/io_engine.h"

namespace stowage::storage {

// One transfer's progress. Ownership: the caller's; must stay where it is until
// done().
struct Transfer {
  std::int32_t blocks_left = 0;
  // The first fault: errno, or 0 with `short_transfer` where the file ended or
  // the device took less than it was given and no more of it.
  int error = 0;
  bool short_transfer = false;
  std::int64_t fault_offset_bytes = 0;  // of the block, in the file
  std::int64_t done_bytes = 0;
  std::int64_t bytes = 0;

  bool done() const { return blocks_left == 0; }
  bool ok() const { return error == 0 && !short_transfer; }
};

struct TransferOptions {
  std::int64_t block_bytes = std::int64_t{1} << 20;
  // Of offsets, so that a short transfer can be carried on.
  std::int64_t align_bytes = 512;
  // False: a batch of blocks completes before the next is submitted.
  bool overlap_events = true;
};

// Thread safety: externally synchronized.
// Shutdown: Drain() before the memory of a transfer goes away; the destructor
//   drains.
class TransferQueue {
 public:
  TransferQueue(std::unique_ptr<IoEngine> engine,
                const TransferOptions& options);
  TransferQueue(const TransferQueue&) = delete;
  TransferQueue& operator=(const TransferQueue&) = delete;
  ~TransferQueue();

  struct Target {
    bool write = false;
    std::int32_t file = 0;
    std::int64_t offset_bytes = 0;
    std::int32_t buffer = -1;
  };

  // Starts moving `memory`. Requires: transfer->done().
  void Start(const Target& target, std::span<std::byte> memory,
             Transfer* transfer);

  // Submits what there is room for, and takes in what has completed.
  // Blocks: until something completes if `wait` and anything is in flight.
  // Returns: true if anything completed.
  bool Pump(bool wait);

  // Blocks: until the transfer is done.
  void Wait(const Transfer& transfer);
  // Blocks: until nothing is in flight or queued.
  void Drain();

  // Pump(true) in three parts, for callers who share the queue: only the middle
  // one blocks, it touches nothing but the engine, and one thread at a time may
  // be in it.
  bool anything_in_flight() const { return in_flight() > 0; }
  void AwaitCompletions(std::vector<IoCompletion>* completions) const;
  void Take(const std::vector<IoCompletion>& completions);

  bool idle() const { return in_flight() == 0 && !anything_waits(); }
  const IoEngine& engine() const { return *engine_; }

 private:
  struct Block {
    IoRequest request;
    Transfer* transfer = nullptr;
    std::int32_t retries = 0;
  };

  // Requests of one kind, reads or writes.
  struct Line {
    std::deque<std::uint64_t> waiting;  // tags, in the order of submission
    std::int32_t in_flight = 0;
  };

  Line& LineOf(const Block& block) {
    return lines_[block.request.write ? 1 : 0];
  }
  std::int32_t in_flight() const {
    return lines_[0].in_flight + lines_[1].in_flight;
  }
  bool anything_waits() const {
    return !lines_[0].waiting.empty() || !lines_[1].waiting.empty();
  }
  void FillBatch();
  void FailWaiting(int error);
  void SubmitWaiting();
  void Complete(const IoCompletion& completion);
  void EndBlock(std::uint64_t index);
  void Fail(Block& block, int error, bool short_transfer);

  const std::unique_ptr<IoEngine> engine_;
  const TransferOptions options_;
  std::vector<Block> blocks_;        // by tag
  std::vector<std::uint64_t> free_;  // tags
  std::array<Line, 2> lines_;        // reads, writes
  std::size_t last_line_ = 1;        // that was taken from
  std::vector<IoRequest> batch_;
  std::vector<IoCompletion> completions_;
};

}  // namespace stowage::storage
