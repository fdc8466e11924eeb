#include "client/remote_transfer.h"

#include <sys/mman.h>

#include <algorithm>

#include "common/check.h"
#include "common/dtype.h"
#include "common/segment_format.h"
#include "common/status_macros.h"

namespace stowage::client {

void RemoteTransfer::Unmap::operator()(std::byte* memory) const {
  ::munmap(memory, static_cast<std::size_t>(bytes));
}

// Address space that has pages only where it is touched; zero at first, as a
// new segment is.
std::unique_ptr<std::byte, RemoteTransfer::Unmap> RemoteTransfer::Reserve(
    std::int64_t bytes) {
  void* memory =
      ::mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  STOWAGE_CHECK(memory != MAP_FAILED);
  return {static_cast<std::byte*>(memory), Unmap{bytes}};
}

RemoteTransfer::RemoteTransfer(const Layout* layout, const AttachInfo* info,
                               SessionStream* stream,
                               const SessionOptions& options)
    : layout_(layout),
      stream_(stream),
      ranges_(options.ranges),
      wait_timeout_(options.wait_timeout),
      params_(Reserve(ParamSegmentBytes(*layout))),
      gradients_(
          Reserve(info->gradient_regions > 0
                      ? GradientRegionsBytes(*layout, info->gradient_regions)
                      : GradientSegmentBytes(*layout, info->slots_per_rank))),
      versions_(static_cast<std::size_t>(layout->unit_count()), -1) {
  STOWAGE_CHECK(ranges_.empty() || ranges_.size() == versions_.size());
}

SessionOptions::Range RemoteTransfer::RangeBytes(
    std::int32_t unit, std::int64_t limit_elems) const {
  SessionOptions::Range range{0, limit_elems};
  if (!ranges_.empty()) range = ranges_[static_cast<std::size_t>(unit)];
  const std::int64_t width = DtypeBytes(layout_->param_dtype());
  const std::int64_t end = std::min(range.end_elems, limit_elems);
  return {std::min(range.begin_elems, end) * width, end * width};
}

absl::Status RemoteTransfer::FetchParams(std::int32_t unit, std::int64_t step) {
  std::int64_t& version = versions_[static_cast<std::size_t>(unit)];
  if (version >= step) return absl::OkStatus();
  const SessionOptions::Range range =
      RangeBytes(unit, layout_->units()[static_cast<std::size_t>(unit)].elems);
  const std::int64_t begin = range.begin_elems;
  const std::int64_t bytes = range.end_elems - begin;
  if (bytes <= 0) {
    version = step;
    return absl::OkStatus();
  }
  stream_->ExpectParams(
      unit, step, begin,
      {params_.get() + UnitParamOffsetBytes(*layout_, unit) + begin,
       static_cast<std::size_t>(bytes)});
  v1::ClientMessage message;
  for (std::int64_t asked = 0; asked < bytes;) {
    const std::int64_t piece = std::min(proto::kFetchBytesMax, bytes - asked);
    proto::EncodeFetchParams({unit, step, begin + asked, piece},
                             message.mutable_fetch_params());
    STOWAGE_RETURN_IF_ERROR(stream_->Send(message));
    asked += piece;
  }
  STOWAGE_RETURN_IF_ERROR(stream_->WaitParams(wait_timeout_));
  received_bytes_ += bytes;
  version = step;
  return absl::OkStatus();
}

absl::Status RemoteTransfer::SendGradient(
    const proto::GradientChunkArgs& slot) {
  const SessionOptions::Range range = RangeBytes(
      slot.unit,
      layout_->units()[static_cast<std::size_t>(slot.unit)].trainable_elems);
  v1::ClientMessage message;
  for (std::int64_t at = range.begin_elems; at < range.end_elems;
       at += proto::kPayloadBytesMax) {
    const std::int64_t bytes =
        std::min(proto::kPayloadBytesMax, range.end_elems - at);
    proto::EncodeGradientChunk(
        {slot.micro, slot.unit, slot.region, at,
         slot.data.subspan(static_cast<std::size_t>(at),
                           static_cast<std::size_t>(bytes))},
        message.mutable_gradient_chunk());
    STOWAGE_RETURN_IF_ERROR(stream_->Send(message));
    sent_bytes_ += bytes;
  }
  return absl::OkStatus();
}

absl::Status RemoteTransfer::AwaitLanded(std::int32_t unit,
                                         std::int64_t total) {
  v1::ClientMessage message;
  proto::EncodeAwaitLanded({unit, total}, message.mutable_await_landed());
  STOWAGE_RETURN_IF_ERROR(stream_->Send(message));
  return stream_->WaitLanded(unit, total, wait_timeout_);
}

}  // namespace stowage::client
