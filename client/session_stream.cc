#include "client/session_stream.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/connection.h"
#include "common/status_macros.h"
#include "proto/grpc_status.h"
#include "proto/job_codec.h"

namespace stowage::client {
namespace {

// For the reason of a write that failed, which comes with the stream's end.
constexpr std::chrono::seconds kReasonLimit{5};
// The watcher looks this often, and reads if nobody has for as long: bad news
// reach a computing rank within two of them.
constexpr std::chrono::milliseconds kWatchPeriod{100};

absl::Status Unexpected(const char* what) {
  return absl::InternalError(
      absl::StrCat("the server sent what nobody asked for: ", what));
}

}  // namespace

SessionStream::SessionStream(v1::Stowage::StubInterface& stub,
                             std::string address)
    : address_(std::move(address)), stream_(stub.RunSession(&context_)) {
  watcher_ = std::thread([this] { Watch(); });
}

SessionStream::~SessionStream() {
  {
    const MutexLock lock(mutex_);
    if (!ended_) context_.TryCancel();
    stop_ = true;
    stop_changed_.NotifyAll();
  }
  watcher_.join();
}

absl::Status SessionStream::Send(const v1::ClientMessage& message) {
  STOWAGE_RETURN_IF_ERROR(status());
  bool written = false;
  {
    const MutexLock lock(write_mutex_);
    written = !writes_ended_ && stream_->Write(message);
  }
  if (written) return absl::OkStatus();
  const MutexLock lock(mutex_);
  WaitUntil(kReasonLimit, "write", [] { return false; }).IgnoreError();
  return BreakLocked(absl::UnavailableError(
      absl::StrCat("stowd at ", address_, " went away")));
}

absl::StatusOr<AttachedAnswer> SessionStream::WaitAttached(
    std::chrono::milliseconds timeout) {
  const MutexLock lock(mutex_);
  STOWAGE_RETURN_IF_ERROR(
      WaitUntil(timeout, "attach",
                [this]() REQUIRES(mutex_) { return attached_.has_value(); }));
  return *attached_;
}

absl::Status SessionStream::WaitInitialized(std::chrono::milliseconds timeout) {
  const MutexLock lock(mutex_);
  return WaitUntil(timeout, "finish_initialization",
                   [this]() REQUIRES(mutex_) { return initialized_; });
}

absl::StatusOr<Verdict> SessionStream::WaitVerdict(
    std::chrono::milliseconds timeout) {
  const MutexLock lock(mutex_);
  STOWAGE_RETURN_IF_ERROR(
      WaitUntil(timeout, "prepare (a rank may be missing)",
                [this]() REQUIRES(mutex_) { return verdict_.has_value(); }));
  Verdict verdict = std::move(*verdict_);
  verdict_.reset();
  return verdict;
}

absl::Status SessionStream::WaitLeased(std::int32_t unit, std::int64_t step,
                                       std::chrono::milliseconds timeout) {
  const MutexLock lock(mutex_);
  STOWAGE_RETURN_IF_ERROR(WaitUntil(timeout, "lease", [&]() REQUIRES(mutex_) {
    return leased_.has_value() && leased_->unit == unit &&
           leased_->step == step;
  }));
  leased_.reset();
  return absl::OkStatus();
}

absl::Status SessionStream::WaitLanded(std::int32_t unit, std::int64_t total,
                                       std::chrono::milliseconds timeout) {
  const MutexLock lock(mutex_);
  STOWAGE_RETURN_IF_ERROR(
      WaitUntil(timeout, "landed micro steps", [&]() REQUIRES(mutex_) {
        return landed_.has_value() && landed_->unit == unit &&
               landed_->total == total;
      }));
  landed_.reset();
  return absl::OkStatus();
}

void SessionStream::ExpectParams(std::int32_t unit, std::int64_t step,
                                 std::int64_t begin_bytes,
                                 std::span<std::byte> into) {
  const MutexLock lock(mutex_);
  params_ = PendingParams{unit, step, begin_bytes, into, 0};
}

absl::Status SessionStream::WaitParams(std::chrono::milliseconds timeout) {
  const MutexLock lock(mutex_);
  absl::Status status =
      WaitUntil(timeout, "parameters", [this]() REQUIRES(mutex_) {
        return params_->filled_bytes ==
               static_cast<std::int64_t>(params_->into.size());
      });
  params_.reset();  // the caller's memory is its own again
  return status;
}

absl::Status SessionStream::TakeParams(const v1::ParamChunk& message) {
  STOWAGE_ASSIGN_OR_RETURN(const proto::ParamChunkArgs chunk,
                           proto::DecodeParamChunk(message));
  const MutexLock lock(mutex_);
  const auto bytes = static_cast<std::int64_t>(chunk.data.size());
  if (!params_.has_value() || chunk.unit != params_->unit ||
      chunk.step != params_->step ||
      chunk.begin_bytes != params_->begin_bytes + params_->filled_bytes ||
      bytes > static_cast<std::int64_t>(params_->into.size()) -
                  params_->filled_bytes) {
    return Unexpected("a chunk of parameters out of order");
  }
  std::copy(chunk.data.begin(), chunk.data.end(),
            params_->into.begin() + params_->filled_bytes);
  params_->filled_bytes += bytes;
  return absl::OkStatus();
}

void SessionStream::ExpectRound(std::int64_t step, std::int32_t round) {
  const MutexLock lock(mutex_);
  round_ = PendingRound{step, round, -1, {}};
}

absl::StatusOr<std::vector<std::byte>> SessionStream::WaitRound(
    std::chrono::milliseconds timeout) {
  const MutexLock lock(mutex_);
  const absl::Status status =
      WaitUntil(timeout, "begin_round", [this]() REQUIRES(mutex_) {
        return static_cast<std::int64_t>(round_->bytes.size()) ==
               round_->total_bytes;
      });
  std::vector<std::byte> bytes = std::move(round_->bytes);
  round_.reset();
  if (!status.ok()) return status;
  return bytes;
}

absl::Status SessionStream::WaitRoundHeld(std::int64_t step, std::int32_t round,
                                          std::chrono::milliseconds timeout) {
  const MutexLock lock(mutex_);
  STOWAGE_RETURN_IF_ERROR(
      WaitUntil(timeout, "round result", [&]() REQUIRES(mutex_) {
        return round_held_.has_value() && round_held_->step == step &&
               round_held_->round == round;
      }));
  round_held_.reset();
  return absl::OkStatus();
}

absl::Status SessionStream::TakeRound(const v1::RoundChunk& message) {
  STOWAGE_ASSIGN_OR_RETURN(const proto::RoundPiece piece,
                           proto::DecodeRoundChunk(message));
  const MutexLock lock(mutex_);
  if (!round_.has_value() || piece.step != round_->step ||
      piece.round != round_->round ||
      piece.begin_bytes != static_cast<std::int64_t>(round_->bytes.size()) ||
      (round_->total_bytes >= 0 && piece.total_bytes != round_->total_bytes)) {
    return Unexpected("a round's chunk out of order");
  }
  round_->total_bytes = piece.total_bytes;
  round_->bytes.insert(round_->bytes.end(), piece.data.begin(),
                       piece.data.end());
  return absl::OkStatus();
}

absl::Status SessionStream::WaitClosed(std::chrono::milliseconds timeout) {
  const MutexLock lock(mutex_);
  return WaitUntil(timeout, "close",
                   [this]() REQUIRES(mutex_) { return closed_ && ended_; });
}

void SessionStream::ExpectState(const proto::ReadStateArgs& args,
                                std::span<float> out) {
  const MutexLock lock(mutex_);
  read_ = PendingRead{args, out, 0};
}

absl::Status SessionStream::WaitState(std::chrono::milliseconds timeout) {
  const MutexLock lock(mutex_);
  absl::Status status =
      WaitUntil(timeout, "read_state", [this]() REQUIRES(mutex_) {
        return read_->filled_elems == read_->args.elems;
      });
  read_.reset();  // the caller's memory is its own again
  return status;
}

absl::Status SessionStream::Break(const absl::Status& status) {
  const MutexLock lock(mutex_);
  return BreakLocked(status);
}

absl::Status SessionStream::BreakLocked(const absl::Status& status) {
  if (status_.ok()) {
    status_ = status;
    broken_.store(true);
    changed_.NotifyAll();
  }
  return status_;
}

absl::Status SessionStream::status() const {
  if (!broken_.load(std::memory_order_acquire)) return absl::OkStatus();
  const MutexLock lock(mutex_);
  return status_;
}

template <typename Done>
absl::Status SessionStream::WaitUntil(std::chrono::milliseconds timeout,
                                      const char* what, Done done) {
  const Waiting waiting{what, timeout, Clock::now() + timeout};
  while (!done()) {
    if (!status_.ok()) return status_;
    const auto now = Clock::now();
    if (now >= waiting.deadline) return TooLate(waiting);
    if (reading_) {
      changed_.WaitFor(mutex_, waiting.deadline - now);
    } else {
      waiting_ = waiting;
      ReadOne();
      waiting_.reset();
    }
  }
  return absl::OkStatus();
}

absl::Status SessionStream::TooLate(const Waiting& waiting) {
  return BreakLocked(absl::DeadlineExceededError(absl::StrCat(
      "stowd at ", address_, ": no answer to ", waiting.what, " within ",
      std::chrono::duration<double>(waiting.timeout).count(), " s")));
}

void SessionStream::Watch() {
  const MutexLock lock(mutex_);
  while (!ended_) {
    if (!stop_) stop_changed_.WaitFor(mutex_, kWatchPeriod);
    const auto now = Clock::now();
    if (reading_) {
      // A Read in progress returns when the call is cancelled.
      if (waiting_.has_value() && now > waiting_->deadline && status_.ok()) {
        TooLate(*waiting_).IgnoreError();
        context_.TryCancel();
      }
      if (stop_) changed_.WaitFor(mutex_, kWatchPeriod);
    } else if (stop_ || now - last_read_ > kWatchPeriod) {
      ReadOne();
    }
  }
}

// Takes the right to read for one message, or for the end of the stream.
void SessionStream::ReadOne() {
  if (ended_) return;
  reading_ = true;
  mutex_.Unlock();
  const bool got = stream_->Read(&message_);
  absl::Status taken;
  grpc::Status finished;
  if (got) {
    taken = Take(message_);
  }
  if (!got || !taken.ok()) EndWrites();
  if (!got) finished = stream_->Finish();
  mutex_.Lock();
  reading_ = false;
  last_read_ = Clock::now();
  if (!taken.ok()) BreakLocked(taken).IgnoreError();
  if (!got) End(finished);
  changed_.NotifyAll();
}

void SessionStream::End(const grpc::Status& finished) {
  ended_ = true;
  stop_changed_.NotifyAll();
  if (closed_ && finished.ok()) {
    BreakLocked(absl::FailedPreconditionError("the session is closed"))
        .IgnoreError();
  } else if (finished.ok()) {
    BreakLocked(absl::UnavailableError(
                    absl::StrCat("stowd at ", address_, " ended the session")))
        .IgnoreError();
  } else {
    BreakLocked(ToClientStatus(finished, address_)).IgnoreError();
  }
}

absl::Status SessionStream::Take(const v1::ServerMessage& message) {
  switch (message.kind_case()) {
    case v1::ServerMessage::kVerdict: {
      STOWAGE_ASSIGN_OR_RETURN(Verdict verdict,
                               proto::DecodeVerdict(message.verdict()));
      const MutexLock lock(mutex_);
      verdict_ = std::move(verdict);
      return absl::OkStatus();
    }
    case v1::ServerMessage::kStateChunk:
      return TakeChunk(message.state_chunk());
    case v1::ServerMessage::kParamChunk:
      return TakeParams(message.param_chunk());
    case v1::ServerMessage::kRoundChunk:
      return TakeRound(message.round_chunk());
    case v1::ServerMessage::kRoundHeld: {
      STOWAGE_ASSIGN_OR_RETURN(const proto::RoundHeldArgs held,
                               proto::DecodeRoundHeld(message.round_held()));
      const MutexLock lock(mutex_);
      round_held_ = held;
      break;
    }
    case v1::ServerMessage::kLanded: {
      STOWAGE_ASSIGN_OR_RETURN(const proto::LandedArgs landed,
                               proto::DecodeLanded(message.landed()));
      const MutexLock lock(mutex_);
      landed_ = landed;
      break;
    }
    case v1::ServerMessage::kAttached: {
      AttachedAnswer answer;
      STOWAGE_ASSIGN_OR_RETURN(
          answer.info, proto::DecodeAttachInfo(message.attached().info()));
      answer.layout_fingerprint = message.attached().layout_fingerprint();
      const MutexLock lock(mutex_);
      if (attached_.has_value()) return Unexpected("attached");
      attached_ = std::move(answer);
      break;
    }
    case v1::ServerMessage::kInitialized: {
      const MutexLock lock(mutex_);
      initialized_ = true;
      break;
    }
    case v1::ServerMessage::kLeased: {
      STOWAGE_ASSIGN_OR_RETURN(const proto::LeaseArgs leased,
                               proto::DecodeLeased(message.leased()));
      const MutexLock lock(mutex_);
      leased_ = leased;
      break;
    }
    case v1::ServerMessage::kClosed: {
      const MutexLock lock(mutex_);
      closed_ = true;
      break;
    }
    case v1::ServerMessage::kFailed:
      return proto::StatusFromWire(message.failed().code(),
                                   message.failed().message());
    case v1::ServerMessage::KIND_NOT_SET:
      return Unexpected("a message of no known kind");
  }
  return absl::OkStatus();
}

absl::Status SessionStream::TakeChunk(const v1::StateChunk& message) {
  STOWAGE_RETURN_IF_ERROR(proto::DecodeStateChunk(message, &chunk_));
  const MutexLock lock(mutex_);
  const auto elems = static_cast<std::int64_t>(chunk_.values.size());
  if (!read_.has_value() || chunk_.unit != read_->args.unit ||
      chunk_.kind != read_->args.kind ||
      chunk_.begin_elems != read_->args.begin_elems + read_->filled_elems ||
      elems > read_->args.elems - read_->filled_elems) {
    return Unexpected("a state chunk out of order");
  }
  std::copy(chunk_.values.begin(), chunk_.values.end(),
            read_->out.begin() + read_->filled_elems);
  read_->filled_elems += elems;
  return absl::OkStatus();
}

void SessionStream::EndWrites() {
  const MutexLock lock(write_mutex_);
  if (writes_ended_) return;
  writes_ended_ = true;
  stream_->WritesDone();
}

}  // namespace stowage::client
