#include "engine/exchange/gradient_reducer.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/dtype.h"
#include "common/status_macros.h"

namespace stowage::engine {
namespace {

// One that travels while the next is filled. Cut small, two leave the link idle
// whenever a rank computes: options.under_way_bytes.
constexpr std::size_t kUnderWayMin = 2;

}  // namespace

GradientReducer::GradientReducer(const ReduceOptions& options,
                                 const Layout* layout,
                                 const plan::ShardPlan* plan, std::int32_t part,
                                 Collectives* group, ShardStore* store,
                                 Device* device)
    : options_(options),
      layout_(layout),
      plan_(plan),
      part_(part),
      group_(group),
      store_(store),
      dtype_(layout->param_dtype()),
      width_(DtypeBytes(layout->param_dtype())),
      device_(device),
      ops_(BufferOps::Make(device)),
      sums_up_(options.at_boundary && options.micro_steps > 1),
      pool_(device),
      sums_(device),
      buckets_(plan, options.bucket_elems) {
  units_.resize(static_cast<std::size_t>(layout->unit_count()));
  for (std::int32_t u = layout->unit_count() - 1; u >= 0; --u) {
    if (plan->gradient_elems(u) > 0) order_.push_back(u);
  }
}

absl::StatusOr<std::span<std::byte>> GradientReducer::Target(
    std::int32_t unit) {
  Unit& u = At(unit);
  if (!u.buffer.empty()) return u.buffer;
  STOWAGE_ASSIGN_OR_RETURN(u.buffer,
                           pool_.Take(plan_->gradient_elems(unit) * width_));
  // What lies between parameters is summed with the rest: it must be zero.
  std::int64_t end = 0;
  const auto clear = [&](std::int64_t from, std::int64_t to) {
    return from < to ? ops_->Clear(u.buffer.data() + from * width_,
                                   (to - from) * width_)
                     : absl::OkStatus();
  };
  for (const Layout::Param& param :
       layout_->units()[static_cast<std::size_t>(unit)].params) {
    if (param.frozen) continue;
    STOWAGE_RETURN_IF_ERROR(clear(end, param.begin_elems));
    end = param.begin_elems + param.elems;
  }
  STOWAGE_RETURN_IF_ERROR(clear(end, plan_->gradient_elems(unit)));
  return u.buffer;
}

void GradientReducer::DropBuffer(std::int32_t unit) {
  Unit& u = At(unit);
  if (!u.buffer.empty()) pool_.Give(u.buffer);
  u.buffer = {};
}

absl::Status GradientReducer::Ready(std::int64_t step, std::int32_t micro,
                                    std::int32_t unit, bool empty) {
  Unit& u = At(unit);
  if (empty) {
    // The other ranks may have one: this rank's is zero.
    STOWAGE_ASSIGN_OR_RETURN(const std::span<std::byte> zero, Target(unit));
    STOWAGE_RETURN_IF_ERROR(
        ops_->Clear(zero.data(), static_cast<std::int64_t>(zero.size())));
  }
  if (sums_up_) {
    STOWAGE_RETURN_IF_ERROR(AddUp(step, micro, unit));
    if (!Last(micro)) return absl::OkStatus();
  }
  u.ready = true;
  return ReduceReady(step, micro);
}

// Stages 0 and 1 with several micro steps.
absl::Status GradientReducer::AddUp(std::int64_t step, std::int32_t micro,
                                    std::int32_t unit) {
  Unit& u = At(unit);
  const std::int64_t elems = plan_->gradient_elems(unit);
  if (u.sum.empty()) {
    STOWAGE_ASSIGN_OR_RETURN(
        u.sum, sums_.Take(elems * static_cast<std::int64_t>(sizeof(float))));
  }
  STOWAGE_RETURN_IF_ERROR(ops_->Accumulate(u.buffer.data(), dtype_,
                                           /*first=*/!u.summed, u.sum_data(),
                                           elems));
  u.summed = !Last(micro);
  DropBuffer(unit);
  if (Last(micro)) return absl::OkStatus();
  return store_->GradientDone(step, micro, unit, /*empty=*/true);
}

absl::Status GradientReducer::ReduceReady(std::int64_t step,
                                          std::int32_t micro) {
  while (next_ < order_.size() && At(order_[next_]).ready) {
    const std::int32_t unit = order_[next_++];
    At(unit).ready = false;
    for (plan::BucketMessage& message : buckets_.Add(unit)) {
      STOWAGE_RETURN_IF_ERROR(Send(step, micro, std::move(message)));
    }
  }
  if (next_ == order_.size()) {
    next_ = 0;
    for (plan::BucketMessage& message : buckets_.Flush()) {
      STOWAGE_RETURN_IF_ERROR(Send(step, micro, std::move(message)));
    }
    // A peer that waits for a slot of this micro step to land must not depend
    // on what this rank does next: all its notices go out first.
    return Finish();
  }
  return Progress();
}

// The elements of the unit that the piece has of a part.
plan::ElemRange GradientReducer::SliceOf(const plan::BucketPiece& piece,
                                         std::int32_t part) const {
  const plan::ElemRange shard = plan_->GradientShard(piece.unit, part);
  return {std::min(shard.begin + piece.in_part.begin, shard.end),
          std::min(shard.begin + piece.in_part.end, shard.end)};
}

absl::Status GradientReducer::PackSlice(const plan::BucketPiece& piece,
                                        plan::ElemRange slice, Dtype wire_dtype,
                                        std::byte* target) {
  if (slice.empty()) return absl::OkStatus();
  const Unit& u = At(piece.unit);
  const std::byte* const from =
      sums_up_ ? u.sum.data() + slice.begin * DtypeBytes(Dtype::kFp32)
               : u.buffer.data() + slice.begin * width_;
  return ops_->Convert(
      target, wire_dtype, from, sums_up_ ? Dtype::kFp32 : dtype_,
      static_cast<float>(1.0 / options_.divisor), slice.elems());
}

absl::Status GradientReducer::Pack(const Message& message,
                                   std::int64_t stride_elems) {
  const std::int64_t wire_width = DtypeBytes(message.dtype);
  std::byte* target = message.send.data();
  for (std::int32_t part = 0; part < plan_->parts(); ++part) {
    std::byte* const begin = target;
    for (const plan::BucketPiece& piece : message.what.pieces) {
      const plan::ElemRange slice = SliceOf(piece, part);
      STOWAGE_RETURN_IF_ERROR(PackSlice(piece, slice, message.dtype, target));
      target += slice.elems() * wire_width;
    }
    std::byte* const end = begin + stride_elems * wire_width;
    if (stride_elems > 0 && target < end) {
      STOWAGE_RETURN_IF_ERROR(ops_->Clear(target, end - target));
      target = end;
    }
  }
  return absl::OkStatus();
}

absl::Status GradientReducer::Send(std::int64_t step, std::int32_t micro,
                                   plan::BucketMessage what) {
  while (under_way_.size() >= kUnderWayMin &&
         under_way_bytes_ >= options_.under_way_bytes) {
    STOWAGE_RETURN_IF_ERROR(DeliverFirst());
  }
  Message& message = under_way_.emplace_back();
  message.what = std::move(what);
  message.step = step;
  message.micro = micro;
  // What does not travel is not rounded for it.
  const bool own = store_->takes_own_gradients();
  message.dtype =
      own ? (sums_up_ ? Dtype::kFp32 : dtype_) : options_.wire_dtype;
  const std::int64_t wire_width = DtypeBytes(message.dtype);
  std::vector<std::int64_t> elems(static_cast<std::size_t>(plan_->parts()));
  std::int64_t total = 0;
  for (std::int32_t part = 0; part < plan_->parts(); ++part) {
    std::int64_t& of_part = elems[static_cast<std::size_t>(part)];
    for (const plan::BucketPiece& piece : message.what.pieces) {
      of_part += SliceOf(piece, part).elems();
    }
    total += of_part;
  }
  message.mine_elems = elems[static_cast<std::size_t>(part_)];
  // NCCL scatters equal parts only.
  const bool equal_parts = options_.scatter && group_->backend() == "nccl";
  const std::int64_t stride =
      equal_parts ? *std::max_element(elems.begin(), elems.end()) : 0;
  if (equal_parts) total = stride * plan_->parts();
  const plan::BucketPiece& first = message.what.pieces.front();
  Unit& u = At(first.unit);
  // A whole unit by itself lies in its buffer just as it travels.
  message.send_is_unit = message.what.pieces.size() == 1 &&
                         first.in_part.begin == 0 && first.last && !sums_up_ &&
                         message.dtype == dtype_ && options_.divisor == 1 &&
                         !equal_parts;
  if (message.send_is_unit) {
    message.send = u.buffer;
  } else {
    STOWAGE_ASSIGN_OR_RETURN(message.send, pool_.Take(total * wire_width));
    STOWAGE_RETURN_IF_ERROR(Pack(message, stride));
    for (const plan::BucketPiece& piece : message.what.pieces) {
      if (piece.last) DropBuffer(piece.unit);
    }
  }
  under_way_bytes_ += static_cast<std::int64_t>(message.send.size());
  message.slices = 1;
  if (own) {
    STOWAGE_CHECK(plan_->parts() == 1);  // no rank has another's part
    message.receive = message.send;
  } else if (!options_.scatter || plan_->parts() == 1) {
    STOWAGE_ASSIGN_OR_RETURN(
        message.pending,
        group_->AllReduce(message.dtype, message.send.data(), total));
    // This rank's part lies in it.
    std::int64_t before = 0;
    for (std::int32_t part = 0; part < part_; ++part) {
      before += elems[static_cast<std::size_t>(part)];
    }
    message.receive =
        message.send.subspan(static_cast<std::size_t>(before * wire_width));
  } else if (equal_parts) {
    STOWAGE_ASSIGN_OR_RETURN(message.receive, pool_.Take(stride * wire_width));
    STOWAGE_ASSIGN_OR_RETURN(
        message.pending,
        group_->ReduceScatter(message.dtype, message.send.data(),
                              message.receive.data(), stride));
  } else {
    message.slices = plan_->parts();
    message.stride_elems = message.mine_elems;
    STOWAGE_ASSIGN_OR_RETURN(
        message.receive,
        pool_.Take(plan_->parts() * message.mine_elems * wire_width));
    STOWAGE_ASSIGN_OR_RETURN(
        message.pending,
        group_->ExchangeParts(message.dtype, message.send.data(), elems,
                              message.receive.data(), message.mine_elems));
  }
  if (message.pending != nullptr) ++counters_.messages;
  if (device_ != nullptr) {
    if (store_->has_gradient_places() &&
        (message.slices > 1 || message.dtype != dtype_)) {
      STOWAGE_ASSIGN_OR_RETURN(
          message.result,
          pool_.Take(std::max<std::int64_t>(1, message.mine_elems) * width_));
    }
    STOWAGE_ASSIGN_OR_RETURN(message.sent, device_->Mark());
  }
  counters_.under_way_max = std::max(
      counters_.under_way_max, static_cast<std::int64_t>(under_way_.size()));
  return options_.overlap ? absl::OkStatus() : Finish();
}

// ---------------------------------------------------------------------------
// What has arrived

// The ranks' parts of this rank's slices, from an element on.
std::vector<const void*> GradientReducer::PartsOf(
    const Message& message, std::int64_t begin_elems) const {
  const std::int64_t wire_width = DtypeBytes(message.dtype);
  std::vector<const void*> parts;
  for (std::int32_t r = 0; r < message.slices; ++r) {
    parts.push_back(message.receive.data() +
                    (r * message.stride_elems + begin_elems) * wire_width);
  }
  return parts;
}

absl::Status GradientReducer::PieceDone(const Message& message,
                                        const plan::BucketPiece& piece) {
  if (!piece.last) return absl::OkStatus();
  ++counters_.units;
  return store_->GradientDone(message.step, message.micro, piece.unit,
                              /*empty=*/false);
}

void GradientReducer::GiveBuffers(Message& message) {
  if (options_.scatter && plan_->parts() > 1) pool_.Give(message.receive);
  if (!message.result.empty()) pool_.Give(message.result);
  if (message.send_is_unit) {
    DropBuffer(message.what.pieces.front().unit);
  } else {
    pool_.Give(message.send);
  }
}

absl::Status GradientReducer::DeliverFromHost(Message& message) {
  if (message.pending != nullptr) {
    STOWAGE_RETURN_IF_ERROR(message.pending->Wait());
  }
  std::int64_t at = 0;
  for (const plan::BucketPiece& piece : message.what.pieces) {
    const plan::ElemRange slice = SliceOf(piece, part_);
    STOWAGE_RETURN_IF_ERROR(store_->AddGradient(
        message.step, message.micro, piece.unit,
        slice.begin - plan_->GradientShard(piece.unit, part_).begin,
        PartsOf(message, at), message.dtype, slice.elems()));
    at += slice.elems();
    STOWAGE_RETURN_IF_ERROR(PieceDone(message, piece));
  }
  GiveBuffers(message);
  return absl::OkStatus();
}

absl::Status GradientReducer::BeginDelivery(Message& message) {
  STOWAGE_RETURN_IF_ERROR(device_->Hold(CopyDirection::kOut, *message.sent));
  {
    const std::unique_ptr<DeviceScope> scope =
        device_->Enter(CopyDirection::kOut);
    if (message.pending != nullptr) {
      STOWAGE_RETURN_IF_ERROR(message.pending->Wait());
    }
  }
  message.leaving.resize(message.what.pieces.size());
  std::int64_t at = 0;
  for (std::size_t i = 0; i < message.what.pieces.size(); ++i) {
    STOWAGE_RETURN_IF_ERROR(BeginPiece(message, i, at));
    at += SliceOf(message.what.pieces[i], part_).elems();
    // A region of the store's is handed from one unit to the next.
    if (store_->info().gradient_regions > 0) {
      STOWAGE_RETURN_IF_ERROR(EndPiece(message, i));
    }
  }
  return absl::OkStatus();
}

absl::Status GradientReducer::BeginPiece(Message& message, std::size_t index,
                                         std::int64_t begin_elems) {
  const plan::BucketPiece& piece = message.what.pieces[index];
  const plan::ElemRange slice = SliceOf(piece, part_);
  if (slice.empty()) return absl::OkStatus();
  Leaving& leaving = message.leaving[index];
  const std::vector<const void*> parts = PartsOf(message, begin_elems);
  const auto copy_out = [&](std::byte* to, const void* from,
                            std::int64_t bytes) -> absl::Status {
    STOWAGE_ASSIGN_OR_RETURN(
        std::unique_ptr<DeviceCopy> copy,
        device_->CopyOut(to, static_cast<const std::byte*>(from), bytes));
    leaving.copies.push_back(std::move(copy));
    return absl::OkStatus();
  };
  std::byte* place = nullptr;
  if (store_->has_gradient_places()) {
    STOWAGE_ASSIGN_OR_RETURN(
        place,
        store_->GradientPlace(
            message.step, message.micro, piece.unit,
            slice.begin - plan_->GradientShard(piece.unit, part_).begin));
  }
  const std::unique_ptr<DeviceScope> scope =
      device_->Enter(CopyDirection::kOut);
  if (place != nullptr) {
    const void* from = parts.front();
    if (!message.result.empty()) {
      std::byte* const sum = message.result.data() + begin_elems * width_;
      STOWAGE_RETURN_IF_ERROR(
          ops_->Sum(sum, dtype_, parts, message.dtype, slice.elems()));
      from = sum;
    }
    return copy_out(place, from, slice.elems() * width_);
  }
  const std::int64_t bytes = slice.elems() * DtypeBytes(message.dtype);
  STOWAGE_ASSIGN_OR_RETURN(
      leaving.staged,
      staging_.Take(bytes * static_cast<std::int64_t>(parts.size())));
  std::byte* to = leaving.staged.data();
  for (const void* const part : parts) {
    STOWAGE_RETURN_IF_ERROR(copy_out(to, part, bytes));
    to += bytes;
  }
  return absl::OkStatus();
}

absl::Status GradientReducer::EndPiece(Message& message, std::size_t index) {
  Leaving& leaving = message.leaving[index];
  const plan::BucketPiece& piece = message.what.pieces[index];
  for (const auto& copy : leaving.copies) {
    STOWAGE_RETURN_IF_ERROR(copy->Wait());
  }
  leaving.copies.clear();
  if (!leaving.staged.empty()) {
    const plan::ElemRange slice = SliceOf(piece, part_);
    const std::int64_t bytes = slice.elems() * DtypeBytes(message.dtype);
    std::vector<const void*> parts;
    for (std::int32_t r = 0; r < message.slices; ++r) {
      parts.push_back(leaving.staged.data() + r * bytes);
    }
    STOWAGE_RETURN_IF_ERROR(store_->AddGradient(
        message.step, message.micro, piece.unit,
        slice.begin - plan_->GradientShard(piece.unit, part_).begin, parts,
        message.dtype, slice.elems()));
    staging_.Give(std::exchange(leaving.staged, {}));
  }
  return PieceDone(message, piece);
}

bool GradientReducer::HasLeft(const Message& message) {
  for (const Leaving& leaving : message.leaving) {
    for (const auto& copy : leaving.copies) {
      if (!copy->Done()) return false;
    }
  }
  return true;
}

absl::Status GradientReducer::EndDelivery(Message& message) {
  if (store_->info().gradient_regions == 0) {
    for (std::size_t i = 0; i < message.leaving.size(); ++i) {
      STOWAGE_RETURN_IF_ERROR(EndPiece(message, i));
    }
  }
  GiveBuffers(message);
  return absl::OkStatus();
}

absl::Status GradientReducer::DeliverFirst() {
  Message& first = under_way_.front();
  const auto bytes = static_cast<std::int64_t>(first.send.size());
  STOWAGE_RETURN_IF_ERROR(Deliver(first));
  under_way_bytes_ -= bytes;
  under_way_.pop_front();
  return absl::OkStatus();
}

absl::Status GradientReducer::Deliver(Message& message) {
  if (device_ == nullptr) return DeliverFromHost(message);
  if (message.leaving.empty()) STOWAGE_RETURN_IF_ERROR(BeginDelivery(message));
  return EndDelivery(message);
}

absl::Status GradientReducer::Progress() {
  if (device_ != nullptr) {
    for (Message& message : under_way_) {
      if (!message.leaving.empty()) continue;
      if (message.pending != nullptr && !message.pending->Done()) break;
      STOWAGE_RETURN_IF_ERROR(BeginDelivery(message));
    }
  }
  while (!under_way_.empty()) {
    Message& first = under_way_.front();
    const bool ready = device_ != nullptr
                           ? !first.leaving.empty() && HasLeft(first)
                           : first.pending == nullptr || first.pending->Done();
    if (!ready) break;
    STOWAGE_RETURN_IF_ERROR(DeliverFirst());
  }
  return absl::OkStatus();
}

absl::Status GradientReducer::Finish() {
  if (device_ != nullptr) {
    for (Message& message : under_way_) {
      if (message.leaving.empty()) {
        STOWAGE_RETURN_IF_ERROR(BeginDelivery(message));
      }
    }
  }
  while (!under_way_.empty()) STOWAGE_RETURN_IF_ERROR(DeliverFirst());
  return absl::OkStatus();
}

}  // namespace stowage::engine
