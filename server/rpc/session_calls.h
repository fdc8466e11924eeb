// What a message of an attached session does: decode, call the core.
//
// Apart from the stream on purpose: here is all that a hostile client's
// messages can reach after Open, so this is what tests/fuzz drives.

#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "proto/session_codec.h"
#include "server/core/job_registry.h"

#include "stowage/v1/session.pb.h"

namespace stowage::rpc {

// Thread safety: one thread, the session's.
class SessionCalls {
 public:
  // Sends an answer and waits until it is on its way.
  // Returns: false if the client can no longer be reached.
  using Send = std::function<bool(v1::ServerMessage)>;

  // `session` must live as long as this. `connected`: false once nobody is
  // there to wait for an answer.
  SessionCalls(core::JobSession& session, std::int64_t local_ranks, Send send,
               std::function<bool()> connected)
      : session_(session),
        local_ranks_(local_ranks),
        send_(std::move(send)),
        connected_(std::move(connected)) {}

  // Acts on any message but Close, which is the stream's.
  // Errors: kInvalidArgument naming field and value, or the core's; the session
  //   is then over.
  // Blocks: while the core does; for back-pressure of ReadState's answers.
  absl::Status Handle(const v1::ClientMessage& message);

 private:
  absl::Status HandlePrepare(const v1::Prepare& message);
  absl::Status HandleReadState(const v1::ReadState& message);
  absl::Status HandleBeginRound(const v1::BeginRound& message);
  absl::Status HandleRoundResult(const v1::RoundResult& message);
  absl::Status HandleFetchParams(const v1::FetchParams& message);
  absl::Status HandleAwaitLanded(const v1::AwaitLanded& message);

  core::JobSession& session_;
  const std::int64_t local_ranks_;  // of the run
  const Send send_;
  const std::function<bool()> connected_;
  proto::PutStateArgs put_;  // reused: keeps their buffers
  std::vector<float> read_;
};

}  // namespace stowage::rpc
