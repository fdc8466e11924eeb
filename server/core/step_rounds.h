// What a run's nodes tell each other between verdict and apply, because one of
// them alone cannot end the step. Servers do not know each other: their ranks
// fetch what a server has to give, swap it among themselves, and bring back
// what came of it.
//
//   optimizer          round  a rank gives                a rank brings back
//   Lamb               0      the node's LambNorms of     the sums over all
//                             all trainable tensors       nodes (first rank)
//   1-bit, compressed  0      its signs for each rank     each rank's for it
//                      1      the signs of its part       all parts' (first
//                                                         rank)
//
// Until the apply nothing committed changes, so a step whose ranks are lost
// between rounds is done again by the next run. A rank applies only when all
// nodes hold the last round's results (engine/exchange/spread_shards.h): if any
// node has applied the step, every other can end it by itself.
//
// This is the bookkeeping; StepUpdate makes and keeps the bytes.

#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/job_spec.h"
#include "common/layout.h"

namespace stowage::core {

// Thread safety: externally synchronized.
class StepRounds {
 public:
  StepRounds() = default;  // of a run that has none
  StepRounds(const OptimizerSpec& optimizer, const Layout& layout,
             const RunSpec& run);

  // Rounds of applied step `t`, counted from 1.
  std::int32_t Count(std::int64_t t) const;

  // Rank `rank` begins a round of the step that `args` will end; the first call
  // for a step forgets the one before.
  // Errors: kInvalidArgument for a round that the step has not, or for args
  //   that differ from the first call's; kFailedPrecondition before the result
  //   of the round before.
  absl::Status Begin(const ApplyArgs& args, std::int64_t t, std::int32_t round,
                     std::int32_t rank);
  bool made(std::int32_t round, std::int32_t rank) const {
    return made_[At(round, rank)];
  }
  void MarkMade(std::int32_t round, std::int32_t rank);

  // Rank `rank` brings bytes [begin, begin + bytes) of `total` back.
  // Returns: false for a repeat of what is held, to be dropped.
  // Errors: kInvalidArgument for another range than the next one, or a rank
  //   whose word is not asked for; kFailedPrecondition before Begin().
  absl::StatusOr<bool> Take(std::int64_t step, std::int32_t round,
                            std::int32_t rank, std::int64_t begin_bytes,
                            std::int64_t bytes, std::int64_t total);
  bool held(std::int32_t round, std::int32_t rank) const {
    return held_[At(round, rank)];
  }
  void MarkHeld(std::int32_t round, std::int32_t rank) {
    held_[At(round, rank)] = true;
  }

  // Whether `args` may end the step.
  // Errors: kFailedPrecondition naming the round that is missing;
  //   kInvalidArgument for other args than the rounds were made for.
  absl::Status CheckApply(const ApplyArgs& args, std::int64_t t) const;

 private:
  std::size_t At(std::int32_t round, std::int32_t rank) const {
    return static_cast<std::size_t>(round) * static_cast<std::size_t>(ranks_) +
           static_cast<std::size_t>(rank);
  }
  // Rank `rank` brings back what came of the round.
  bool Brings(std::int32_t round, std::int32_t rank) const {
    return rank == 0 || (one_bit_ && round == 0);
  }

  std::int32_t rounds_ = 0;
  std::int32_t ranks_ = 0;  // of this node
  bool one_bit_ = false;
  std::int64_t freeze_step_ = 0;
  std::optional<ApplyArgs> args_;
  // By round and rank.
  std::vector<bool> made_;
  std::vector<std::int64_t> taken_bytes_;
  std::vector<bool> held_;
};

}  // namespace stowage::core
