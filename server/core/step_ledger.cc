#include "server/core/step_ledger.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace stowage::core {

StepLedger::StepLedger(const Layout& layout, const RunSpec& run,
                       const SlotPlan& plan)
    : layout_(layout),
      ring_(plan.ring),
      micro_steps_(run.micro_steps),
      ranks_(static_cast<std::size_t>(run.local_ranks)),
      shards_(run.shards),
      regions_(plan.regions) {
  const auto units = static_cast<std::size_t>(layout.unit_count());
  noticed_.resize(units * ranks_);
  ranks_ready_.resize(units);
  landed_.resize(units);
  missing_.resize(ranks_);
  gradients_.slots = static_cast<std::size_t>(plan.slots_per_rank);
  gradients_.ranks = static_cast<std::size_t>(run.gradient_segments());
  gradients_.empty.resize(units * gradients_.slots * gradients_.ranks);
  gradients_.sum_started.resize(units);
  if (regions_ > 0) gradients_.region.resize(gradients_.empty.size());
  region_taken_.resize(gradients_.ranks * static_cast<std::size_t>(regions_));
  if (shards_) noticed_by_.resize(units * gradients_.slots);
  ready_.resize(units);
  Reset();
}

bool StepLedger::Trainable(std::int32_t unit) const {
  return layout_.units()[static_cast<std::size_t>(unit)].trainable_elems > 0;
}

void StepLedger::Reset() {
  std::fill(noticed_.begin(), noticed_.end(), 0);
  std::fill(ranks_ready_.begin(), ranks_ready_.end(), 0);
  std::fill(landed_.begin(), landed_.end(), 0);
  std::fill(gradients_.empty.begin(), gradients_.empty.end(), std::uint8_t{0});
  std::fill(gradients_.sum_started.begin(), gradients_.sum_started.end(),
            std::uint8_t{0});
  std::fill(noticed_by_.begin(), noticed_by_.end(), 0);
  units_to_land_ = 0;
  for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
    if (Trainable(u)) ++units_to_land_;
  }
  std::fill(missing_.begin(), missing_.end(), units_to_land_ * micro_steps_);
  ready_begin_ = 0;
  ready_size_ = 0;
}

absl::StatusOr<bool> StepLedger::Notice(std::int32_t rank, std::int32_t micro,
                                        std::int32_t unit, bool empty,
                                        std::int32_t region) {
  if (!Trainable(unit)) return false;
  const auto u = static_cast<std::size_t>(unit);
  std::int32_t& noticed = noticed_[u * ranks_ + static_cast<std::size_t>(rank)];
  if (micro < noticed) return false;  // a repeat
  if (micro > noticed) {
    return absl::FailedPreconditionError(absl::StrCat(
        "notice: micro step ", micro, " of unit \"", layout_.units()[u].name,
        "\" before its micro step ", noticed));
  }
  if (ring_ && micro > landed_[u]) {
    return absl::FailedPreconditionError(
        absl::StrCat("notice: micro step ", micro, " of unit \"",
                     layout_.units()[u].name, "\" before micro step ",
                     micro - 1, " has landed; its slot was not free"));
  }
  const std::int32_t slot = ring_ ? 0 : micro;
  const std::int32_t segment = shards_ ? 0 : rank;
  const std::size_t at = gradients_.EmptyIndex(unit, slot, segment);
  bool first = true;
  if (shards_) {
    STOWAGE_ASSIGN_OR_RETURN(first, JoinShards(unit, at, empty, region));
  }
  if (first && regions_ > 0 && !empty) {
    if (region < 0 || region >= regions_) {
      return absl::InvalidArgumentError(
          absl::StrCat("notice: region ", region, " of ", regions_));
    }
    std::vector<bool>::reference taken =
        region_taken_[static_cast<std::size_t>(segment) *
                          static_cast<std::size_t>(regions_) +
                      static_cast<std::size_t>(region)];
    if (taken) {
      return absl::InvalidArgumentError(absl::StrCat(
          "notice: unit \"", layout_.units()[u].name, "\" in region ", region,
          ", which holds a gradient that has not landed"));
    }
    taken = true;
    gradients_.region[at] = region;
  }
  if (shards_) ++noticed_by_[at];
  ++noticed;
  --missing_[static_cast<std::size_t>(rank)];
  gradients_.empty[at] = empty ? 1 : 0;
  if (!ring_ && noticed < micro_steps_) return false;
  if (++ranks_ready_[u] < static_cast<std::int32_t>(ranks_)) return false;
  PushReady(unit);
  return true;
}

absl::StatusOr<bool> StepLedger::JoinShards(std::int32_t unit, std::size_t at,
                                            bool empty,
                                            std::int32_t region) const {
  if (noticed_by_[at] == 0) return true;
  const bool differs =
      (gradients_.empty[at] != 0) != empty ||
      (regions_ > 0 && !empty && gradients_.region[at] != region);
  if (!differs) return false;
  return absl::InvalidArgumentError(absl::StrCat(
      "notice: ranks that share a gradient disagree on unit \"",
      layout_.units()[static_cast<std::size_t>(unit)].name,
      "\": ", empty ? "empty" : absl::StrCat("in region ", region),
      ", another rank said ",
      gradients_.empty[at] != 0
          ? "empty"
          : absl::StrCat("in region ",
                         regions_ > 0 ? gradients_.region[at] : 0)));
}

void StepLedger::PushReady(std::int32_t unit) {
  STOWAGE_CHECK(ready_size_ < ready_.size());
  ready_[(ready_begin_ + ready_size_) % ready_.size()] = unit;
  ++ready_size_;
}

StepLedger::Landing StepLedger::PopReady() {
  STOWAGE_CHECK(ready_size_ > 0);
  Landing landing;
  landing.unit = ready_[ready_begin_];
  ready_begin_ = (ready_begin_ + 1) % ready_.size();
  --ready_size_;
  if (ring_) {
    landing.micro = landed_[static_cast<std::size_t>(landing.unit)];
    landing.last = landing.micro + 1 == micro_steps_;
  }
  return landing;
}

std::int32_t StepLedger::MarkLanded(const Landing& landing) {
  const auto u = static_cast<std::size_t>(landing.unit);
  landed_[u] = ring_ ? landing.micro + 1 : micro_steps_;
  ranks_ready_[u] = 0;
  if (landing.last) --units_to_land_;
  // A ring's slot is used again by the next micro step.
  if (shards_ && ring_)
    noticed_by_[gradients_.EmptyIndex(landing.unit, 0, 0)] = 0;
  for (std::size_t rank = 0; regions_ > 0 && rank < gradients_.ranks; ++rank) {
    const std::size_t at =
        gradients_.EmptyIndex(landing.unit, 0, static_cast<std::int32_t>(rank));
    if (gradients_.empty[at] != 0) continue;
    region_taken_[rank * static_cast<std::size_t>(regions_) +
                  static_cast<std::size_t>(gradients_.region[at])] = false;
  }
  return landed_[u];
}

std::optional<StepLedger::Missing> StepLedger::FirstMissing(
    std::int32_t rank) const {
  if (missing_[static_cast<std::size_t>(rank)] == 0) return std::nullopt;
  for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
    const std::int32_t noticed = noticed_[static_cast<std::size_t>(u) * ranks_ +
                                          static_cast<std::size_t>(rank)];
    if (Trainable(u) && noticed < micro_steps_) return Missing{u, noticed};
  }
  return std::nullopt;
}

void StepLedger::NextStep(StepGradients* finished) {
  if (finished->empty.empty()) *finished = gradients_;
  std::swap(*finished, gradients_);
  Reset();
}

}  // namespace stowage::core
