// Sums gradients over the ranks: from units that autograd has filled to this
// rank's reduced shard in a ShardStore.
//
// Units are reduced in one fixed order, the reverse of the layout's, so that
// ranks in which they become ready in another order (an unused module on one of
// them) still start the same collectives: a unit that is ready early waits for
// those before it. Ready units are joined to buckets (plan/bucket_plan.h), sent
// in one message each, and when a message has arrived its slices go to the
// store, which adds the ranks' parts in rank order.
//
// Stages 0 and 1 add micro steps up in fp32 here and reduce once, at the last;
// stages 2 and 3 reduce every micro step and keep nothing.
//
// On a device buffers are its memory. What has arrived is summed there on the
// copy-out stream, which waits for the message and not for the backward that
// goes on, and copied to its place in the store; the store is told when the
// copy is done.
//
// Thread safety: one thread at a time.

#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "common/layout.h"
#include "engine/device/device.h"
#include "engine/exchange/buffer_ops.h"
#include "engine/exchange/buffer_pool.h"
#include "engine/exchange/collectives.h"
#include "engine/exchange/shard_store.h"
#include "engine/plan/bucket_plan.h"
#include "engine/plan/shard_plan.h"

namespace stowage::engine {

struct ReduceOptions {
  std::int64_t bucket_elems = 500'000'000;
  // Messages are waited for at the end, with two of them under way, or as many
  // small ones as begin below under_way_bytes; false: each at once.
  bool overlap = true;
  std::int64_t under_way_bytes = plan::kReduceUnderWayBytes;
  // Each rank gets its part only; false: an all-reduce, of which it takes it.
  bool scatter = true;
  Dtype wire_dtype = Dtype::kFp32;
  // Gradients are divided by this before they travel.
  double divisor = 1;
  std::int32_t micro_steps = 1;
  bool at_boundary = false;  // stages 0 and 1
};

struct ReduceCounters {
  std::int64_t messages = 0;
  std::int64_t units = 0;          // reduced
  std::int64_t under_way_max = 0;  // messages at one time
};

class GradientReducer {
 public:
  // `part`: this rank's in `plan`; all must outlive the reducer. `device`:
  // where gradients are, null for the host.
  GradientReducer(const ReduceOptions& options, const Layout* layout,
                  const plan::ShardPlan* plan, std::int32_t part,
                  Collectives* group, ShardStore* store,
                  Device* device = nullptr);

  // As Exchange::GradientTarget and GradientReady.
  absl::StatusOr<std::span<std::byte>> Target(std::int32_t unit);
  absl::Status Ready(std::int64_t step, std::int32_t micro, std::int32_t unit,
                     bool empty);

  // Hands over what has arrived, without waiting.
  absl::Status Progress();
  // Waits for all that was started.
  absl::Status Finish();

  const ReduceCounters& counters() const { return counters_; }
  const BufferPool& buffers() const { return pool_; }
  std::int64_t sum_bytes() const { return sums_.held_bytes(); }

 private:
  struct Unit {
    std::span<std::byte> buffer;  // this micro step's gradient
    bool ready = false;
    std::span<std::byte> sum;  // in fp32; at_boundary with several micro steps
    bool summed = false;

    float* sum_data() const { return reinterpret_cast<float*>(sum.data()); }
  };
  // A piece of a message on its way from the device to the store.
  struct Leaving {
    std::vector<std::unique_ptr<DeviceCopy>> copies;
    // Where the store adds up itself: the ranks' parts, one after the other.
    std::span<std::byte> staged;
  };
  struct Message {
    plan::BucketMessage what;
    std::int64_t step = 0;
    std::int32_t micro = 0;
    std::span<std::byte> send;
    bool send_is_unit = false;  // the unit's own buffer
    std::span<std::byte> receive;
    std::int64_t mine_elems = 0;       // of this rank's slice, from each rank
    std::int64_t stride_elems = 0;     // between the ranks' slices in `receive`
    std::int32_t slices = 0;           // in `receive`
    Dtype dtype{};                     // in `send` and `receive`
    std::unique_ptr<Pending> pending;  // null: nothing travels
    // On a device.
    std::span<std::byte>
        result;  // sums of this rank's slices; empty: `receive`
    std::unique_ptr<DeviceMark> sent;  // what was computed before it was sent
    std::vector<Leaving> leaving;      // by piece; empty: not begun
  };

  Unit& At(std::int32_t unit) { return units_[static_cast<std::size_t>(unit)]; }
  bool Last(std::int32_t micro) const {
    return micro + 1 == options_.micro_steps;
  }
  plan::ElemRange SliceOf(const plan::BucketPiece& piece,
                          std::int32_t part) const;
  absl::Status AddUp(std::int64_t step, std::int32_t micro, std::int32_t unit);
  absl::Status ReduceReady(std::int64_t step, std::int32_t micro);
  absl::Status Send(std::int64_t step, std::int32_t micro,
                    plan::BucketMessage what);
  absl::Status Pack(const Message& message, std::int64_t stride_elems);
  absl::Status PackSlice(const plan::BucketPiece& piece, plan::ElemRange slice,
                         Dtype wire_dtype, std::byte* target);
  std::vector<const void*> PartsOf(const Message& message,
                                   std::int64_t begin_elems) const;
  absl::Status DeliverFirst();
  absl::Status Deliver(Message& message);
  absl::Status DeliverFromHost(Message& message);
  // On a device: starts the copies, and ends the delivery when they are done.
  absl::Status BeginDelivery(Message& message);
  absl::Status BeginPiece(Message& message, std::size_t index,
                          std::int64_t begin_elems);
  absl::Status EndPiece(Message& message, std::size_t index);
  absl::Status EndDelivery(Message& message);
  static bool HasLeft(const Message& message);
  absl::Status PieceDone(const Message& message,
                         const plan::BucketPiece& piece);
  void GiveBuffers(Message& message);
  void DropBuffer(std::int32_t unit);

  const ReduceOptions options_;
  const Layout* layout_;
  const plan::ShardPlan* plan_;
  const std::int32_t part_;
  Collectives* group_;
  ShardStore* store_;
  const Dtype dtype_;
  const std::int64_t width_;
  Device* const device_;
  const std::unique_ptr<BufferOps> ops_;
  const bool sums_up_;  // at_boundary with several micro steps
  BufferPool pool_;
  BufferPool sums_;
  BufferPool staging_;  // in the host's memory
  plan::BucketPlan buckets_;
  std::vector<Unit> units_;
  std::vector<std::int32_t> order_;  // trainable units
  std::size_t next_ = 0;             // of order_, in this micro step
  std::deque<Message> under_way_;
  std::int64_t under_way_bytes_ = 0;  // what these send
  ReduceCounters counters_;
};

}  // namespace stowage::engine
