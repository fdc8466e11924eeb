// The payload of a rank without shared memory: parameters and gradients in this
// process's own memory, brought and sent over the session's stream in bounded
// chunks with checksums.
//
// A fetch asks for all its pieces at once; the server sends one chunk after the
// other and waits for each to be written, so that the transport's window is all
// that is ever under way. Gradients are written to the stream chunk by chunk,
// held back by its flow control. The layout of both memories is that of the
// segments (common/segment_format.h), so that the rest of a session does not
// know.
//
// Private to client/. Thread safety: one thread at a time.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "client/offload_client.h"
#include "client/session_stream.h"
#include "common/job_spec.h"
#include "common/layout.h"
#include "proto/payload_codec.h"

namespace stowage::client {

class RemoteTransfer {
 public:
  // All must outlive it. Memory: a parameter segment's and a gradient
  // segment's, touched only where this rank's ranges lie.
  RemoteTransfer(const Layout* layout, const AttachInfo* info,
                 SessionStream* stream, const SessionOptions& options);

  std::byte* param_bytes() const { return params_.get(); }
  std::byte* gradient_bytes() const { return gradients_.get(); }

  bool VersionReady(std::int32_t unit, std::int64_t step) const {
    return versions_[static_cast<std::size_t>(unit)] >= step;
  }
  // Brings this rank's range of the unit as of `step` committed steps; nothing
  // if it is here. Blocks: for the version and the transfer.
  absl::Status FetchParams(std::int32_t unit, std::int64_t step);
  // Sends this rank's range of `slot.data`, the unit's whole slot. Blocks: on
  // the stream's back-pressure.
  absl::Status SendGradient(const proto::GradientChunkArgs& slot);
  absl::Status AwaitLanded(std::int32_t unit, std::int64_t total);

  std::int64_t sent_bytes() const { return sent_bytes_; }
  std::int64_t received_bytes() const { return received_bytes_; }

 private:
  struct Unmap {
    std::int64_t bytes = 0;
    void operator()(std::byte* memory) const;
  };
  static std::unique_ptr<std::byte, Unmap> Reserve(std::int64_t bytes);
  // Bytes of the unit that are this rank's, within `limit_elems`.
  SessionOptions::Range RangeBytes(std::int32_t unit,
                                   std::int64_t limit_elems) const;

  const Layout* layout_;
  SessionStream* stream_;
  const std::vector<SessionOptions::Range> ranges_;
  const std::chrono::milliseconds wait_timeout_;
  std::unique_ptr<std::byte, Unmap> params_;
  std::unique_ptr<std::byte, Unmap> gradients_;
  std::vector<std::int64_t> versions_;  // by unit: of what is in params_
  std::atomic<std::int64_t> sent_bytes_{0};
  std::atomic<std::int64_t> received_bytes_{0};
};

}  // namespace stowage::client
