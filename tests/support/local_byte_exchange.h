// ByteExchange between threads of one process: ranks meet at a barrier and copy
// from each other.

#pragma once

#include <algorithm>
#include <barrier>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "optim/onebit_reduce.h"

namespace stowage::testing {

class LocalRanks {
 public:
  explicit LocalRanks(int ranks)
      : given_(static_cast<std::size_t>(ranks)), barrier_(ranks) {
    for (int r = 0; r < ranks; ++r) {
      exchanges_.push_back(std::make_unique<Rank>(this, r));
    }
  }

  int ranks() const { return static_cast<int>(exchanges_.size()); }
  optim::ByteExchange& exchange(int rank) {
    return *exchanges_[static_cast<std::size_t>(rank)];
  }

  // Calls work(rank) for every rank, each on a thread of its own.
  void ForEachRank(const std::function<void(int)>& work) {
    std::vector<std::jthread> threads;
    for (int r = 1; r < ranks(); ++r) threads.emplace_back(work, r);
    work(0);
  }

 private:
  class Rank final : public optim::ByteExchange {
   public:
    Rank(LocalRanks* all, int rank) : all_(all), rank_(rank) {}
    int rank() const override { return rank_; }
    int ranks() const override { return all_->ranks(); }
    absl::Status AllToAll(std::span<const std::byte> parts,
                          std::span<std::byte> received) override {
      const std::size_t piece = parts.size() / all_->given_.size();
      return Swap(parts, received, piece,
                  static_cast<std::size_t>(rank_) * piece);
    }
    absl::Status AllGather(std::span<const std::byte> mine,
                           std::span<std::byte> gathered) override {
      return Swap(mine, gathered, mine.size(), 0);
    }

   private:
    // Takes `piece` bytes at `begin` of what each rank gives.
    absl::Status Swap(std::span<const std::byte> mine, std::span<std::byte> out,
                      std::size_t piece, std::size_t begin) {
      all_->given_[static_cast<std::size_t>(rank_)] = mine;
      all_->barrier_.arrive_and_wait();
      std::size_t at = 0;
      for (const std::span<const std::byte> given : all_->given_) {
        std::copy_n(given.begin() + static_cast<std::ptrdiff_t>(begin), piece,
                    out.begin() + static_cast<std::ptrdiff_t>(at));
        at += piece;
      }
      all_->barrier_.arrive_and_wait();
      return absl::OkStatus();
    }

    LocalRanks* const all_;
    const int rank_;
  };

  std::vector<std::span<const std::byte>> given_;  // by rank
  std::barrier<> barrier_;
  std::vector<std::unique_ptr<Rank>> exchanges_;
};

}  // namespace stowage::testing
