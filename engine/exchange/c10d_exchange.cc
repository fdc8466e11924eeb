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
      info_(store_->info()),
      part_(plan->parts() == 1 ? 0 : gather_group_->rank()),
      width_(DtypeBytes(layout->param_dtype())),
      ops_(BufferOps::Make(options.device)),
      pool_(options.device, BufferPool::Use::kCopyIn),
      gathers_(static_cast<std::size_t>(layout->unit_count())),
      reducer_(options.reduce, layout, plan, part_, reduce_group_.get(),
               store_.get(), options.device) {
  if (options.leased_elems_max) {
    info_.params_leased = true;
    info_.leased_elems_max = *options.leased_elems_max;
  }
  if (options.device == nullptr) return;
  device_shards_ = std::make_unique<DeviceShards>(
      DeviceShards::Options{
          .part = part_, .width_bytes = width_, .keep = options.keep_shards},
      options.device, store_.get(), plan);
}

C10dExchange::~C10dExchange() {
  // After an error collectives may be under way: their threads end before the
  // buffers that they use.
  gather_group_.reset();
  reduce_group_.reset();
}

// ---------------------------------------------------------------------------
// Parameters

absl::Status C10dExchange::Queue(std::int32_t unit, std::int64_t step) {
  Gather& gather = At(unit);
  STOWAGE_CHECK(gather.buffer.empty());
  STOWAGE_ASSIGN_OR_RETURN(gather.buffer,
                           pool_.Take(plan_->gathered_elems(unit) * width_));
  gather.step = step;
  gather.queued = true;
  gather.done = false;
  queue_.push_back(unit);
  return absl::OkStatus();
}

absl::Status C10dExchange::Launch(std::int32_t until) {
  if (launched_.ok()) launched_ = TryLaunch(until);
  return launched_;
}

absl::Status C10dExchange::TryLaunch(std::int32_t until) {
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

std::unique_ptr<DeviceScope> C10dExchange::EnterCopyIn() const {
  return options_.device == nullptr
             ? nullptr
             : options_.device->Enter(CopyDirection::kIn);
}

absl::Status C10dExchange::ReleaseShard(std::int32_t unit) {
  if (device_shards_ != nullptr) return device_shards_->Release(unit);
  store_->ReleaseShard(unit);
  return absl::OkStatus();
}

absl::Status C10dExchange::LaunchLone(std::int32_t unit) {
  Gather& gather = At(unit);
  if (device_shards_ != nullptr && !options_.keep_shards) {
    // Complete() makes the compute stream wait for it.
    STOWAGE_RETURN_IF_ERROR(
        device_shards_->AcquireInto(unit, gather.step, gather.buffer));
    gather.queued = false;
    return absl::OkStatus();
  }
  STOWAGE_ASSIGN_OR_RETURN(const std::span<const std::byte> shard,
                           device_shards_ != nullptr
                               ? device_shards_->Acquire(unit, gather.step)
                               : store_->AcquireShard(unit, gather.step));
  gather.queued = false;
  // A kept shard stays, and the compute stream must wait for it.
  if (device_shards_ != nullptr) STOWAGE_RETURN_IF_ERROR(ReleaseShard(unit));
  STOWAGE_RETURN_IF_ERROR(ops_->Copy(gather.buffer.data(), shard.data(),
                                     static_cast<std::int64_t>(shard.size())));
  if (device_shards_ == nullptr) store_->ReleaseShard(unit);
  gather.done = true;
  return absl::OkStatus();
}

absl::Status C10dExchange::LaunchOne(std::int32_t unit) {
  if (plan_->parts() == 1) return LaunchLone(unit);
  Gather& gather = At(unit);
  STOWAGE_ASSIGN_OR_RETURN(const std::span<const std::byte> shard,
                           device_shards_ != nullptr
                               ? device_shards_->Acquire(unit, gather.step)
                               : store_->AcquireShard(unit, gather.step));
  gather.queued = false;
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
    const std::unique_ptr<DeviceScope> scope = EnterCopyIn();
    if (held > 0) {
      STOWAGE_RETURN_IF_ERROR(
          ops_->Copy(gather.buffer.data() + part_ * part_bytes + begin,
                     shard.data() + begin, static_cast<std::int64_t>(held)));
    }
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
    // The last ranks' shards are shorter: what they send is as long. (On a
    // device DeviceShards has done so.)
    STOWAGE_ASSIGN_OR_RETURN(piece.mine,
                             pool_.Take(static_cast<std::int64_t>(bytes)));
    if (held > 0) std::memcpy(piece.mine.data(), mine.data(), held);
    std::memset(piece.mine.data() + held, 0, bytes - held);
    mine = piece.mine;
  }
  std::span<std::byte> target = gather.buffer;
  if (piece.in_part.elems() < plan_->part_elems(unit)) {
    STOWAGE_ASSIGN_OR_RETURN(
        piece.staged,
        pool_.Take(static_cast<std::int64_t>(bytes) * plan_->parts()));
    target = piece.staged;
  }
  const std::unique_ptr<DeviceScope> scope = EnterCopyIn();
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
        STOWAGE_RETURN_IF_ERROR(ops_->Copy(
            gather.buffer.data() + r * part_bytes + begin,
            piece.staged.data() + r * bytes, static_cast<std::int64_t>(bytes)));
      }
      pool_.Give(piece.staged);
    }
    if (!piece.mine.empty()) pool_.Give(piece.mine);
  }
  gather.pieces.clear();
  gather.done = true;
  return ReleaseShard(unit);
}

absl::StatusOr<std::span<const std::byte>> C10dExchange::Fetch(
    std::int32_t unit, std::int64_t step) {
  const auto begin = Clock::now();
  Gather& gather = At(unit);
  if (!gather.buffer.empty() && gather.step != step) Release(unit);
  if (gather.buffer.empty()) STOWAGE_RETURN_IF_ERROR(Queue(unit, step));
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
  // An error shows in the Fetch() that follows.
  if (!Queue(unit, step).ok()) return FetchStart::kNo;
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
  if (device_shards_ != nullptr) {
    // The step changes what is being copied.
    STOWAGE_RETURN_IF_ERROR(device_shards_->Finish());
  }
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
  if (device_shards_ != nullptr) {
    STOWAGE_RETURN_IF_ERROR(device_shards_->Close());
  }
  return store_->Close(close_job);
}

ExchangeTraffic C10dExchange::traffic() const {
  const CollectiveCounters& gathers = gather_group_->counters();
  const CollectiveCounters& reduces = reduce_group_->counters();
  const DeviceCounters copies = options_.device == nullptr
                                    ? DeviceCounters{}
                                    : options_.device->counters();
  return {.gathers = gathers.messages,
          .gather_bytes = gathers.sent_bytes,
          .reduces = reduces.messages,
          .reduce_bytes = reduces.sent_bytes,
          .largest_gather_bytes = gathers.largest_message_bytes,
          .largest_reduce_bytes = reduces.largest_message_bytes,
          .reduces_under_way_max = reducer_.counters().under_way_max,
          .gathered_bytes_peak = pool_.used_bytes_peak(),
          .reduce_bytes_peak = reducer_.buffers().used_bytes_peak(),
          .copied_in_bytes = copies.bytes_in,
          .copied_out_bytes = copies.bytes_out};
}

std::int64_t C10dExchange::held_bytes() const {
  return store_->held_bytes() + pool_.held_bytes() +
         reducer_.buffers().held_bytes() + reducer_.sum_bytes() +
         (device_shards_ == nullptr ? 0 : device_shards_->held_bytes());
}

ExchangeWaits C10dExchange::TakeWaits() {
  return {std::exchange(params_seconds_, 0.0),
          std::exchange(prepare_seconds_, 0.0)};
}

}  // namespace stowage::engine
