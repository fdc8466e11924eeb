// Bytes by collectives that move numbers: nothing is computed on the way, so a
// word of four bytes may be anything.

#pragma once

#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "engine/exchange/collectives.h"
#include "optim/onebit_reduce.h"

namespace stowage::engine {

// `group` must outlive it. Thread safety and blocking: the group's.
class CollectiveBytes final : public optim::ByteExchange {
 public:
  explicit CollectiveBytes(Collectives* group) : group_(group) {}

  int rank() const override { return group_->rank(); }
  int ranks() const override { return group_->ranks(); }

  absl::Status AllToAll(std::span<const std::byte> parts,
                        std::span<std::byte> received) override {
    const auto ranks = static_cast<std::size_t>(group_->ranks());
    STOWAGE_CHECK(parts.size() == received.size() &&
                  parts.size() % (ranks * kWord) == 0);
    const auto words = static_cast<std::int64_t>(parts.size() / ranks / kWord);
    const std::vector<std::int64_t> each(ranks, words);
    STOWAGE_ASSIGN_OR_RETURN(
        const std::unique_ptr<Pending> pending,
        group_->ExchangeParts(Dtype::kFp32, parts.data(), each, received.data(),
                              words));
    return pending->Wait();
  }

  absl::Status AllGather(std::span<const std::byte> mine,
                         std::span<std::byte> gathered) override {
    STOWAGE_ASSIGN_OR_RETURN(const std::unique_ptr<Pending> pending,
                             group_->AllGather(gathered, mine));
    return pending->Wait();
  }

 private:
  static constexpr std::size_t kWord = 4;
  Collectives* const group_;
};

}  // namespace stowage::engine
