#include "engine/exchange/c10d_exchange.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/crash_point.h"
#include "common/dtype.h"
#include "common/status_macros.h"

namespace stowage::engine {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

C10dExchange::C10dExchange(const C10dOptions& options, const Layout* layout,
                           const plan::ShardPlan* plan, C10dParts parts)
    : options_(options),
      layout_(layout),
      plan_(plan),
      gather_group_(std::move(parts.gathers)),
      reduce_group_(std::move(parts.reduces)),
      store_(std::move(parts.store)),
      part_(plan->parts() == 1 ? 0 : gather_group_->rank()),
      width_(DtypeBytes(layout->param_dtype())),
      gathers_(static_cast<std::size_t>(layout->unit_count())),
      reducer_(options.reduce, layout, plan, part_, reduce_group_.get(),
               store_.get()) {}

// ---------------------------------------------------------------------------
// Parameters

void C10dExchange::Queue(std::int32_t unit, std::int64_t step) {
  Gather& gather = At(unit);
  STOWAGE_CHECK(gather.buffer.empty());
  gather.buffer = pool_.Take(plan_->gathered_elems(unit) * width_);
  gather.step = step;
  gather.queued = true;
  gather.done = false;
  queue_.push_back(unit);
}

absl::Status C10dExchange::Launch(std::int32_t until) {
  bool reached = until < 0 || !At(until).queued;
  while (!queue_.empty()) {
    const std::int32_t unit = queue_.front();
    if (reached && !store_->ShardReady(unit, At(unit).step)) break;
    queue_.pop_front();
    STOWAGE_RETURN_IF_ERROR(LaunchOne(unit));
    reached = reached || unit == until;
  }
  return absl::OkStatus();
}

absl::Status C10dExchange::LaunchOne(std::int32_t unit) {
  Gather& gather = At(unit);
  STOWAGE_ASSIGN_OR_RETURN(const std::span<const std::byte> shard,
                           store_->AcquireShard(unit, gather.step));
  gather.queued = false;
  if (plan_->parts() == 1) {
    std::memcpy(gather.buffer.data(), shard.data(), shard.size());
    store_->ReleaseShard(unit);
    gather.done = true;
    return absl::OkStatus();
  }
  for (const plan::ElemRange& range :
       plan::CutPieces(plan_->part_elems(unit),
                       options_.gather_bucket_elems / plan_->parts())) {
    Piece& piece = gather.pieces.emplace_back();
    piece.in_part = range;
    STOWAGE_RETURN_IF_ERROR(LaunchPiece(unit, shard, piece));
  }
  return absl::OkStatus();
}

absl::Status C10dExchange::LaunchPiece(std::int32_t unit,
                                       std::span<const std::byte> shard,
                                       Piece& piece) {
  Gather& gather = At(unit);
  const std::int64_t part_bytes = plan_->part_elems(unit) * width_;
  const auto begin = static_cast<std::size_t>(piece.in_part.begin * width_);
  const auto bytes = static_cast<std::size_t>(piece.in_part.elems() * width_);
  const std::size_t held =
      begin < shard.size() ? std::min(bytes, shard.size() - begin) : 0;
  if (!options_.all_gather) {
    // In place: this rank's piece is copied there, the others' arrive.
    std::memcpy(gather.buffer.data() + part_ * part_bytes + begin,
                shard.data() + begin, held);
    for (std::int32_t root = 0; root < plan_->parts(); ++root) {
      const plan::ElemRange of_root = plan_->Shard(unit, root);
      const auto root_bytes = static_cast<std::size_t>(
          std::max<std::int64_t>(0,
                                 std::min(of_root.elems(), piece.in_part.end) -
                                     piece.in_part.begin) *
          width_);
      if (root_bytes == 0) continue;
      STOWAGE_ASSIGN_OR_RETURN(
          std::unique_ptr<Pending> pending,
          gather_group_->Broadcast(
              gather.buffer.subspan(
                  static_cast<std::size_t>(root * part_bytes) + begin,
                  root_bytes),
              root));
      piece.pending.push_back(std::move(pending));
    }
    return absl::OkStatus();
  }
  std::span<const std::byte> mine =
      shard.subspan(std::min(begin, shard.size()), held);
  if (held < bytes) {
    // The last ranks' shards are shorter: what they send is as long.
    piece.mine = pool_.Take(static_cast<std::int64_t>(bytes));
    std::memcpy(piece.mine.data(), mine.data(), held);
    std::memset(piece.mine.data() + held, 0, bytes - held);
    mine = piece.mine;
  }
  std::span<std::byte> target = gather.buffer;
  if (piece.in_part.elems() < plan_->part_elems(unit)) {
    piece.staged =
        pool_.Take(static_cast<std::int64_t>(bytes) * plan_->parts());
    target = piece.staged;
  }
  STOWAGE_ASSIGN_OR_RETURN(std::unique_ptr<Pending> pending,
                           gather_group_->AllGather(target, mine));
  piece.pending.push_back(std::move(pending));
  return absl::OkStatus();
}

absl::Status C10dExchange::Complete(std::int32_t unit) {
  Gather& gather = At(unit);
  if (gather.done) return absl::OkStatus();
  const auto part_bytes =
      static_cast<std::size_t>(plan_->part_elems(unit) * width_);
  for (Piece& piece : gather.pieces) {
    for (const auto& pending : piece.pending) {
      STOWAGE_RETURN_IF_ERROR(pending->Wait());
    }
    if (!piece.staged.empty()) {
      const auto begin = static_cast<std::size_t>(piece.in_part.begin * width_);
      const auto bytes =
          static_cast<std::size_t>(piece.in_part.elems() * width_);
      for (std::size_t r = 0; r < static_cast<std::size_t>(plan_->parts());
           ++r) {
        std::memcpy(gather.buffer.data() + r * part_bytes + begin,
                    piece.staged.data() + r * bytes, bytes);
      }
      pool_.Give(piece.staged);
    }
    if (!piece.mine.empty()) pool_.Give(piece.mine);
  }
  gather.pieces.clear();
  gather.done = true;
  store_->ReleaseShard(unit);
  return absl::OkStatus();
}

absl::StatusOr<std::span<const std::byte>> C10dExchange::Fetch(
    std::int32_t unit, std::int64_t step) {
  const auto begin = Clock::now();
  Gather& gather = At(unit);
  if (!gather.buffer.empty() && gather.step != step) Release(unit);
  if (gather.buffer.empty()) Queue(unit, step);
  STOWAGE_RETURN_IF_ERROR(Launch(unit));
  STOWAGE_RETURN_IF_ERROR(Complete(unit));
  STOWAGE_RETURN_IF_ERROR(reducer_.Progress());
  params_seconds_ += SecondsSince(begin);
  const auto bytes = static_cast<std::size_t>(
      layout_->units()[static_cast<std::size_t>(unit)].elems * width_);
  return std::span<const std::byte>(gather.buffer.first(bytes));
}

FetchStart C10dExchange::StartFetch(std::int32_t unit, std::int64_t step) {
  Gather& gather = At(unit);
  if (!gather.buffer.empty() && gather.step == step) {
    return FetchStart::kStarted;
  }
  if (!gather.buffer.empty()) Release(unit);
  Queue(unit, step);
  // An error shows in the Fetch() that follows.
  Launch(-1).IgnoreError();
  return FetchStart::kStarted;
}

void C10dExchange::Release(std::int32_t unit) {
  Gather& gather = At(unit);
  if (gather.buffer.empty()) return;
  // What the other ranks have started must be taken part in.
  if (gather.queued) Launch(unit).IgnoreError();
  if (!Complete(unit).ok()) return;  // the buffer may still be written
  pool_.Give(gather.buffer);
  gather.buffer = {};
}

// ---------------------------------------------------------------------------
// Gradients

absl::StatusOr<std::span<std::byte>> C10dExchange::GradientTarget(
    std::int64_t /*step*/, std::int32_t /*micro*/, std::int32_t unit) {
  return reducer_.Target(unit);
}

absl::Status C10dExchange::GradientReady(std::int64_t step, std::int32_t micro,
                                         std::int32_t unit, bool empty) {
  STOWAGE_RETURN_IF_ERROR(Launch(-1));
  return reducer_.Ready(step, micro, unit, empty);
}

absl::StatusOr<Verdict> C10dExchange::Prepare(std::int64_t step,
                                              std::span<const double> scalars) {
  const auto begin = Clock::now();
  STOWAGE_RETURN_IF_ERROR(Launch(-1));
  STOWAGE_RETURN_IF_ERROR(reducer_.Finish());
  STOWAGE_ASSIGN_OR_RETURN(Verdict own, store_->Prepare(step, scalars));
  absl::StatusOr<Verdict> verdict =
      options_.verdict_ranks == reduce_group_->ranks()
          ? absl::StatusOr<Verdict>(std::move(own))
          : Combine(std::move(own), step, scalars);
  prepare_seconds_ += SecondsSince(begin);
  return verdict;
}

// Positions order parameters as the layout does, so that the first of several
// nodes' first non-finite ones is found.
std::int64_t C10dExchange::ParamPosition(const std::string& name) const {
  std::int64_t position = 0;
  for (const Layout::Unit& unit : layout_->units()) {
    for (const Layout::Param& param : unit.params) {
      // A node's name has its range appended in brackets.
      if (name.starts_with(param.name) && (name.size() == param.name.size() ||
                                           name[param.name.size()] == '[')) {
        return position;
      }
      ++position;
    }
  }
  return -1;
}

std::string C10dExchange::ParamName(std::int64_t position) const {
  for (const Layout::Unit& unit : layout_->units()) {
    for (const Layout::Param& param : unit.params) {
      if (position-- == 0) return param.name;
    }
  }
  return "";
}

absl::StatusOr<Verdict> C10dExchange::Combine(Verdict own, std::int64_t step,
                                              std::span<const double> scalars) {
  std::vector<double> values = {
      own.sum_of_squares,
      static_cast<double>(own.first_nonfinite_param.empty()
                              ? -1
                              : ParamPosition(own.first_nonfinite_param))};
  values.insert(values.end(), scalars.begin(), scalars.end());
  STOWAGE_ASSIGN_OR_RETURN(const std::vector<std::vector<double>> all,
                           reduce_group_->GatherValues(values));
  Verdict verdict;
  verdict.step = step;
  verdict.trust_ratios = own.trust_ratios;
  verdict.compression = own.compression;
  // Nobody has the sum of the stores' own gradients. What stands for its norm
  // is the root mean square of theirs, times the stores: never less.
  const bool own_gradients = store_->takes_own_gradients();
  const double weight =
      own_gradients ? static_cast<double>(all.size()) / options_.verdict_ranks
                    : 1;
  std::int64_t first = -1;
  for (std::size_t r = 0; r < all.size(); ++r) {
    verdict.rank_scalars.emplace_back(all[r].begin() + 2, all[r].end());
    const bool speaks =
        options_.replicated && !own_gradients
            ? r == 0
            : r % static_cast<std::size_t>(options_.verdict_ranks) == 0;
    if (!speaks) continue;
    verdict.sum_of_squares += weight * all[r][0];
    const auto position = static_cast<std::int64_t>(all[r][1]);
    if (position >= 0 && (first < 0 || position < first)) first = position;
  }
  if (first >= 0) verdict.first_nonfinite_param = ParamName(first);
  return verdict;
}

absl::Status C10dExchange::Apply(const ApplyArgs& args) {
  CrashPoint("before-apply");
  return store_->Apply(args);
}

absl::Status C10dExchange::SetForwardOrder(std::span<const std::int32_t> units,
                                           std::span<const std::int32_t> uses) {
  return store_->SetForwardOrder(units, uses);
}

// ---------------------------------------------------------------------------
// The rest

absl::Status C10dExchange::PutState(std::int32_t unit, std::int64_t begin_elems,
                                    std::span<const float> values) {
  return store_->PutState(unit, begin_elems, values);
}

absl::Status C10dExchange::FinishInitialization() {
  return store_->FinishInitialization();
}

absl::Status C10dExchange::ReadState(std::int32_t unit, StateKind kind,
                                     std::int64_t begin_elems,
                                     std::span<float> out) {
  return store_->ReadState(unit, kind, begin_elems, out);
}

absl::Status C10dExchange::Close(bool close_job) {
  // A rank that leaves early takes its connections with it.
  STOWAGE_RETURN_IF_ERROR(reduce_group_->GatherValues({{0.0}}).status());
  return store_->Close(close_job);
}

ExchangeTraffic C10dExchange::traffic() const {
  const CollectiveCounters& gathers = gather_group_->counters();
  const CollectiveCounters& reduces = reduce_group_->counters();
  return {.gathers = gathers.messages,
          .gather_bytes = gathers.sent_bytes,
          .reduces = reduces.messages,
          .reduce_bytes = reduces.sent_bytes,
          .largest_gather_bytes = gathers.largest_message_bytes,
          .largest_reduce_bytes = reduces.largest_message_bytes,
          .reduces_under_way_max = reducer_.counters().under_way_max,
          .gathered_bytes_peak = pool_.used_bytes_peak(),
          .reduce_bytes_peak = reducer_.buffers().used_bytes_peak()};
}

std::int64_t C10dExchange::held_bytes() const {
  return store_->held_bytes() + pool_.held_bytes() +
         reducer_.buffers().held_bytes() + reducer_.sum_bytes();
}

ExchangeWaits C10dExchange::TakeWaits() {
  return {std::exchange(params_seconds_, 0.0),
          std::exchange(prepare_seconds_, 0.0)};
}

}  // namespace stowage::engine
