#include "engine/exchange/gradient_reducer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "common/dtype.h"
#include "common/status_macros.h"

namespace stowage::engine {
namespace {

// Elements converted at a time; the fp32 values stay in a core's L2 cache.
constexpr std::int64_t kBlockElems = 32768;
constexpr std::size_t kUnderWayMax = 2;

}  // namespace

GradientReducer::GradientReducer(const ReduceOptions& options,
                                 const Layout* layout,
                                 const plan::ShardPlan* plan, std::int32_t part,
                                 Collectives* group, ShardStore* store)
    : options_(options),
      layout_(layout),
      plan_(plan),
      part_(part),
      group_(group),
      store_(store),
      dtype_(layout->param_dtype()),
      width_(DtypeBytes(layout->param_dtype())),
      kernels_(optim::BestKernels()),
      buckets_(plan, options.bucket_elems) {
  units_.resize(static_cast<std::size_t>(layout->unit_count()));
  for (std::int32_t u = layout->unit_count() - 1; u >= 0; --u) {
    if (plan->gradient_elems(u) > 0) order_.push_back(u);
    if (options_.at_boundary && options_.micro_steps > 1) {
      At(u).sum.resize(static_cast<std::size_t>(plan->gradient_elems(u)));
    }
  }
}

absl::StatusOr<std::span<std::byte>> GradientReducer::Target(
    std::int32_t unit) {
  Unit& u = At(unit);
  if (!u.buffer.empty()) return u.buffer;
  u.buffer = pool_.Take(plan_->gradient_elems(unit) * width_);
  // What lies between parameters is summed with the rest: it must be zero.
  std::int64_t end = 0;
  const auto clear = [&](std::int64_t from, std::int64_t to) {
    if (from >= to) return;
    std::memset(u.buffer.data() + from * width_, 0,
                static_cast<std::size_t>((to - from) * width_));
  };
  for (const Layout::Param& param :
       layout_->units()[static_cast<std::size_t>(unit)].params) {
    if (param.frozen) continue;
    clear(end, param.begin_elems);
    end = param.begin_elems + param.elems;
  }
  clear(end, plan_->gradient_elems(unit));
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
    std::memset(zero.data(), 0, zero.size());
  }
  if (!u.sum.empty()) {
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
  const void* const part = u.buffer.data();
  kernels_.accumulate({&part, 1}, dtype_, /*first=*/!u.summed, u.sum.data(),
                      plan_->gradient_elems(unit));
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

void GradientReducer::PackSlice(const plan::BucketPiece& piece,
                                plan::ElemRange slice, Dtype wire_dtype,
                                std::byte* target) const {
  const Unit& u = units_[static_cast<std::size_t>(piece.unit)];
  const std::int64_t wire_width = DtypeBytes(wire_dtype);
  const float factor = static_cast<float>(1.0 / options_.divisor);
  if (u.sum.empty() && wire_dtype == dtype_ && factor == 1.0F) {
    std::memcpy(target, u.buffer.data() + slice.begin * width_,
                static_cast<std::size_t>(slice.elems() * width_));
    return;
  }
  std::vector<float> block(static_cast<std::size_t>(
      std::min(kBlockElems, std::max<std::int64_t>(slice.elems(), 0))));
  for (std::int64_t at = slice.begin; at < slice.end; at += kBlockElems) {
    const std::int64_t count = std::min(kBlockElems, slice.end - at);
    if (u.sum.empty()) {
      const void* const part = u.buffer.data() + at * width_;
      kernels_.accumulate({&part, 1}, dtype_, /*first=*/true, block.data(),
                          count);
    } else {
      std::copy_n(u.sum.data() + at, count, block.data());
    }
    if (factor != 1.0F) {
      for (std::int64_t i = 0; i < count; ++i) {
        block[static_cast<std::size_t>(i)] *= factor;
      }
    }
    kernels_.convert(block.data(), wire_dtype,
                     target + (at - slice.begin) * wire_width, count);
  }
}

void GradientReducer::Pack(const Message& message, std::int64_t stride_elems) {
  const std::int64_t wire_width = DtypeBytes(message.dtype);
  std::byte* target = message.send.data();
  for (std::int32_t part = 0; part < plan_->parts(); ++part) {
    std::byte* const begin = target;
    for (const plan::BucketPiece& piece : message.what.pieces) {
      const plan::ElemRange slice = SliceOf(piece, part);
      PackSlice(piece, slice, message.dtype, target);
      target += slice.elems() * wire_width;
    }
    if (stride_elems > 0) {
      std::byte* const end = begin + stride_elems * wire_width;
      std::memset(target, 0, static_cast<std::size_t>(end - target));
      target = end;
    }
  }
}

absl::Status GradientReducer::Send(std::int64_t step, std::int32_t micro,
                                   plan::BucketMessage what) {
  while (under_way_.size() >= kUnderWayMax) {
    STOWAGE_RETURN_IF_ERROR(Deliver(under_way_.front()));
    under_way_.pop_front();
  }
  Message& message = under_way_.emplace_back();
  message.what = std::move(what);
  message.step = step;
  message.micro = micro;
  // What does not travel is not rounded for it.
  const bool own = store_->takes_own_gradients();
  message.dtype =
      own ? (At(message.what.pieces.front().unit).sum.empty() ? dtype_
                                                              : Dtype::kFp32)
          : options_.wire_dtype;
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
                         first.in_part.begin == 0 && first.last &&
                         u.sum.empty() && message.dtype == dtype_ &&
                         options_.divisor == 1 && !equal_parts;
  if (message.send_is_unit) {
    message.send = u.buffer;
  } else {
    message.send = pool_.Take(total * wire_width);
    Pack(message, stride);
    for (const plan::BucketPiece& piece : message.what.pieces) {
      if (piece.last) DropBuffer(piece.unit);
    }
  }
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
    message.receive = pool_.Take(stride * wire_width);
    STOWAGE_ASSIGN_OR_RETURN(
        message.pending,
        group_->ReduceScatter(message.dtype, message.send.data(),
                              message.receive.data(), stride));
  } else {
    message.slices = plan_->parts();
    message.stride_elems = message.mine_elems;
    message.receive =
        pool_.Take(plan_->parts() * message.mine_elems * wire_width);
    STOWAGE_ASSIGN_OR_RETURN(
        message.pending,
        group_->ExchangeParts(message.dtype, message.send.data(), elems,
                              message.receive.data(), message.mine_elems));
  }
  if (message.pending != nullptr) ++counters_.messages;
  counters_.under_way_max = std::max(
      counters_.under_way_max, static_cast<std::int64_t>(under_way_.size()));
  return options_.overlap ? absl::OkStatus() : Finish();
}

absl::Status GradientReducer::Deliver(Message& message) {
  if (message.pending != nullptr) {
    STOWAGE_RETURN_IF_ERROR(message.pending->Wait());
  }
  const std::int64_t wire_width = DtypeBytes(message.dtype);
  std::vector<const void*> parts(static_cast<std::size_t>(message.slices));
  std::int64_t at = 0;
  for (const plan::BucketPiece& piece : message.what.pieces) {
    const plan::ElemRange slice = SliceOf(piece, part_);
    for (std::int32_t r = 0; r < message.slices; ++r) {
      parts[static_cast<std::size_t>(r)] =
          message.receive.data() + (r * message.stride_elems + at) * wire_width;
    }
    STOWAGE_RETURN_IF_ERROR(store_->AddGradient(
        message.step, message.micro, piece.unit,
        slice.begin - plan_->GradientShard(piece.unit, part_).begin, parts,
        message.dtype, slice.elems()));
    at += slice.elems();
    if (!piece.last) continue;
    ++counters_.units;
    STOWAGE_RETURN_IF_ERROR(store_->GradientDone(message.step, message.micro,
                                                 piece.unit, /*empty=*/false));
  }
  if (options_.scatter && plan_->parts() > 1) pool_.Give(message.receive);
  if (message.send_is_unit) {
    DropBuffer(message.what.pieces.front().unit);
  } else {
    pool_.Give(message.send);
  }
  return absl::OkStatus();
}

absl::Status GradientReducer::Progress() {
  while (!under_way_.empty()) {
    Message& first = under_way_.front();
    if (first.pending != nullptr && !first.pending->Done()) break;
    STOWAGE_RETURN_IF_ERROR(Deliver(first));
    under_way_.pop_front();
  }
  return absl::OkStatus();
}

absl::Status GradientReducer::Finish() {
  while (!under_way_.empty()) {
    STOWAGE_RETURN_IF_ERROR(Deliver(under_way_.front()));
    under_way_.pop_front();
  }
  return absl::OkStatus();
}

std::int64_t GradientReducer::sum_bytes() const {
  std::int64_t bytes = 0;
  for (const Unit& unit : units_) {
    bytes += static_cast<std::int64_t>(unit.sum.size() * sizeof(float));
  }
  return bytes;
}

}  // namespace stowage::engine
