#include "client/session.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/remote_transfer.h"
#include "common/check.h"
#include "common/segment_format.h"
#include "common/status_macros.h"
#include "proto/job_codec.h"

namespace stowage::client {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class SessionImpl final : public Session {
 public:
  SessionImpl(std::shared_ptr<v1::Stowage::StubInterface> stub,
              const AttachArgs& args, Layout layout, const RunSpec& run,
              std::int32_t local_rank)
      : layout_(std::move(layout)),
        local_rank_(local_rank),
        micro_steps_(run.micro_steps),
        wait_timeout_(args.options.wait_timeout),
        stub_(std::move(stub)),
        stream_(*stub_, args.address) {}
  ~SessionImpl() override = default;

  absl::Status Attach(const AttachArgs& args, const JobSpec& job,
                      const RunSpec& run) {
    v1::ClientMessage message;
    // In a container a pid alone may name two processes.
    const std::string host = args.shm_dir.empty() ? "" : HostName();
    proto::EncodeOpen(job, run, local_rank_, ::getpid(), host,
                      message.mutable_open());
    if (message.ByteSizeLong() >
        static_cast<std::size_t>(proto::kMessageBytesMax)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "layout: its names take ", message.ByteSizeLong(),
          " bytes on the wire, at most ", proto::kMessageBytesMax));
    }
    STOWAGE_RETURN_IF_ERROR(stream_.Send(message));
    STOWAGE_ASSIGN_OR_RETURN(AttachedAnswer answer,
                             stream_.WaitAttached(wait_timeout_));
    if (answer.layout_fingerprint != layout_.fingerprint()) {
      return absl::InternalError(
          "server and client compute different digests of this layout");
    }
    info_ = std::move(answer.info);
    return FindPayload(args);
  }

  const Layout& layout() const override { return layout_; }
  const AttachInfo& info() const override { return info_; }
  std::int32_t local_rank() const override { return local_rank_; }

  std::span<const std::byte> unit_params(std::int32_t unit) const override {
    const std::int64_t bytes =
        UnitAt(unit).elems * DtypeBytes(layout_.param_dtype());
    if (remote_ != nullptr) {
      return {param_bytes_ + UnitParamOffsetBytes(layout_, unit),
              static_cast<std::size_t>(bytes)};
    }
    const std::int64_t offset =
        UnitParamOffsetBytes(layout_, unit, Words(unit));
    STOWAGE_CHECK(offset >= ParamDataOffsetBytes(layout_) &&
                  offset + bytes <= params_.size_bytes());
    return {param_bytes_ + offset, static_cast<std::size_t>(bytes)};
  }

  std::span<std::byte> gradient_slot(std::int32_t micro,
                                     std::int32_t unit) override {
    const Layout::Unit& u = UnitAt(unit);
    STOWAGE_CHECK(micro >= 0 && micro < micro_steps_);
    if (info_.gradient_regions > 0) return RegionSpan(unit);
    // Kept slots: as many as micro steps, so the remainder is micro itself.
    const std::int32_t slot = micro % info_.slots_per_rank;
    return {gradient_bytes_ + UnitGradientOffsetBytes(layout_, slot, unit),
            static_cast<std::size_t>(u.trainable_elems *
                                     DtypeBytes(layout_.param_dtype()))};
  }

  absl::Status ClaimRegion(std::int32_t unit) override {
    UnitAt(unit);
    const MutexLock lock(regions_mutex_);
    if (region_of_[static_cast<std::size_t>(unit)] >= 0) {
      return absl::OkStatus();
    }
    while (free_regions_.empty()) {
      if (noticed_.empty()) {
        return absl::ResourceExhaustedError(absl::StrCat(
            "unit \"", UnitAt(unit).name, "\": all ", info_.gradient_regions,
            " gradient regions hold units whose gradients are not complete; "
            "raise stowage.memory_budget"));
      }
      const Noticed first = noticed_.front();
      noticed_.pop_front();
      STOWAGE_RETURN_IF_ERROR(WaitLanded(first.unit, first.micro_steps_total));
      free_regions_.push_back(first.region);
    }
    region_of_[static_cast<std::size_t>(unit)] = free_regions_.back();
    free_regions_.pop_back();
    ClearPadding(unit);
    return absl::OkStatus();
  }

  absl::Status PutState(std::int32_t unit, std::int64_t begin_elems,
                        std::span<const float> values) override {
    const auto elems = static_cast<std::int64_t>(values.size());
    STOWAGE_RETURN_IF_ERROR(CheckRange("put_state", unit, begin_elems, elems));
    v1::ClientMessage message;
    for (std::int64_t done = 0; done < elems; done += proto::kChunkValuesMax) {
      const std::int64_t part = std::min(elems - done, proto::kChunkValuesMax);
      proto::EncodePutState(unit, begin_elems + done,
                            values.subspan(static_cast<std::size_t>(done),
                                           static_cast<std::size_t>(part)),
                            message.mutable_put_state());
      STOWAGE_RETURN_IF_ERROR(stream_.Send(message));
    }
    return absl::OkStatus();
  }

  absl::Status FinishInitialization() override {
    v1::ClientMessage message;
    message.mutable_finish_initialization();
    STOWAGE_RETURN_IF_ERROR(stream_.Send(message));
    return stream_.WaitInitialized(wait_timeout_);
  }

  absl::Status SetForwardOrder(std::span<const std::int32_t> units,
                               std::span<const std::int32_t> uses) override {
    v1::ClientMessage message;
    proto::EncodeForwardOrder(units, uses, message.mutable_set_forward_order());
    return stream_.Send(message);
  }

  absl::Status Lease(std::int32_t unit, std::int64_t step) override {
    const auto start = Clock::now();
    v1::ClientMessage message;
    proto::EncodeLease({unit, step}, message.mutable_lease());
    STOWAGE_RETURN_IF_ERROR(stream_.Send(message));
    absl::Status status = stream_.WaitLeased(unit, step, wait_timeout_);
    const MutexLock lock(counters_mutex_);
    counters_.version_waits += 1;
    counters_.version_wait_seconds += SecondsSince(start);
    return status;
  }

  absl::Status Unlease(std::int32_t unit) override {
    v1::ClientMessage message;
    message.mutable_unlease()->set_unit(unit);
    return stream_.Send(message);
  }

  bool VersionReady(std::int32_t unit, std::int64_t step) const override {
    if (remote_) return remote_->VersionReady(unit, step);
    return WordReached(Words(unit).version.load(std::memory_order_acquire),
                       static_cast<std::uint32_t>(step));
  }

  absl::Status WaitVersion(std::int32_t unit, std::int64_t step) override {
    if (remote_) {
      const auto start = Clock::now();
      absl::Status status = remote_->FetchParams(unit, step);
      const MutexLock lock(counters_mutex_);
      counters_.version_waits += 1;
      counters_.version_wait_seconds += SecondsSince(start);
      return status;
    }
    return WaitWord("version", unit, Words(unit).version, step);
  }

  absl::Status WaitLanded(std::int32_t unit,
                          std::int64_t micro_steps_total) override {
    if (remote_) return remote_->AwaitLanded(unit, micro_steps_total);
    return WaitWord("landed micro steps", unit, Words(unit).landed,
                    micro_steps_total);
  }

  absl::Status Notice(std::int64_t step, std::int32_t micro, std::int32_t unit,
                      bool empty) override {
    v1::ClientMessage message;
    std::span<const std::byte> slot;
    if (remote_ && !empty) slot = gradient_slot(micro, unit);
    const std::int32_t region =
        info_.gradient_regions > 0 ? GiveRegion(step, micro, unit, empty) : 0;
    if (!slot.empty()) {
      STOWAGE_RETURN_IF_ERROR(
          remote_->SendGradient({micro, unit, region, 0, slot}));
    }
    proto::EncodeNotice({step, micro, unit, empty, region},
                        message.mutable_notice());
    notices_.fetch_add(1, std::memory_order_relaxed);
    return stream_.Send(message);
  }

  absl::StatusOr<Verdict> Prepare(std::int64_t step,
                                  std::span<const double> scalars) override {
    const auto start = Clock::now();
    v1::ClientMessage message;
    proto::EncodePrepare(step, scalars, message.mutable_prepare());
    STOWAGE_RETURN_IF_ERROR(stream_.Send(message));
    absl::StatusOr<Verdict> verdict = stream_.WaitVerdict(wait_timeout_);
    if (verdict.ok() && verdict->step != step) {
      return stream_.Break(absl::InternalError(
          absl::StrCat("asked for the verdict of step ", step,
                       ", got that of step ", verdict->step)));
    }
    const MutexLock lock(counters_mutex_);
    counters_.prepare_seconds += SecondsSince(start);
    return verdict;
  }

  absl::StatusOr<std::vector<std::byte>> BeginRound(
      const ApplyArgs& args, std::int32_t round) override {
    v1::ClientMessage message;
    proto::EncodeBeginRound(args, round, message.mutable_begin_round());
    stream_.ExpectRound(args.step, round);
    STOWAGE_RETURN_IF_ERROR(stream_.Send(message));
    return stream_.WaitRound(wait_timeout_);
  }

  absl::Status GiveRound(std::int64_t step, std::int32_t round,
                         std::span<const std::byte> result) override {
    absl::Status sent;
    proto::ForPieces(result,
                     [&](std::int64_t begin, std::span<const std::byte> piece) {
                       v1::ClientMessage message;
                       proto::EncodeRoundResult({step, round, begin, 0, piece},
                                                message.mutable_round_result());
                       sent = stream_.Send(message);
                       return sent.ok();
                     });
    STOWAGE_RETURN_IF_ERROR(sent);
    return stream_.WaitRoundHeld(step, round, wait_timeout_);
  }

  absl::Status Apply(const ApplyArgs& args) override {
    if (static_cast<std::int64_t>(args.client_state.size()) >
        kClientStateBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("client state of ", args.client_state.size(),
                       " bytes, at most ", kClientStateBytesMax));
    }
    v1::ClientMessage message;
    proto::EncodeApply(args, message.mutable_apply());
    return stream_.Send(message);
  }

  absl::Status ReadState(std::int32_t unit, StateKind kind,
                         std::int64_t begin_elems,
                         std::span<float> out) override {
    const auto elems = static_cast<std::int64_t>(out.size());
    STOWAGE_RETURN_IF_ERROR(CheckRange("read_state", unit, begin_elems, elems));
    if (elems == 0) return absl::OkStatus();
    const proto::ReadStateArgs args{unit, kind, begin_elems, elems};
    v1::ClientMessage message;
    proto::EncodeReadState(args, message.mutable_read_state());
    stream_.ExpectState(args, out);
    if (absl::Status sent = stream_.Send(message); !sent.ok()) return sent;
    return stream_.WaitState(wait_timeout_);
  }

  absl::Status Close(bool close_job) override {
    v1::ClientMessage message;
    message.mutable_close()->set_close_job(close_job);
    STOWAGE_RETURN_IF_ERROR(stream_.Send(message));
    return stream_.WaitClosed(wait_timeout_);
  }

  absl::Status status() const override { return stream_.status(); }

  SessionCounters counters() const override {
    SessionCounters counters;
    {
      const MutexLock lock(counters_mutex_);
      counters = counters_;
    }
    counters.notices = notices_.load(std::memory_order_relaxed);
    if (remote_) {
      counters.payload_bytes_sent = remote_->sent_bytes();
      counters.payload_bytes_received = remote_->received_bytes();
    }
    return counters;
  }

 private:
  static std::string HostName() {
    std::array<char, 256> name{};
    if (::gethostname(name.data(), name.size() - 1) != 0) return "";
    return name.data();
  }

  // Segments where they can be mapped, else memory of our own that the stream
  // fills and empties.
  absl::Status FindPayload(const AttachArgs& args) {
    using Payload = SessionOptions::Payload;
    absl::Status mapped =
        args.options.payload == Payload::kStream
            ? absl::FailedPreconditionError("asked for a stream")
            : MapSegments(args.shm_dir.empty() ? info_.shm_dir : args.shm_dir);
    if (mapped.ok()) {
      param_bytes_ = params_.data();
      gradient_bytes_ = gradients_.data();
      return mapped;
    }
    if (args.options.payload == Payload::kSegments ||
        (args.options.payload == Payload::kAuto && !args.shm_dir.empty())) {
      return mapped;  // a folder was named: it is to be the right one
    }
    if (info_.params_leased) {
      return absl::UnimplementedError(absl::StrCat(
          "parameters lie on NVMe and are leased, which needs the server's "
          "segments: ",
          mapped.message()));
    }
    info_.remote = true;
    remote_ = std::make_unique<RemoteTransfer>(&layout_, &info_, &stream_,
                                               args.options);
    param_bytes_ = remote_->param_bytes();
    gradient_bytes_ = remote_->gradient_bytes();
    why_remote_ = std::string(mapped.message());
    InitializeRegions();
    return absl::OkStatus();
  }

  absl::Status MapSegments(const std::string& folder) {
    STOWAGE_ASSIGN_OR_RETURN(
        params_,
        MappedSegment::Map(
            absl::StrCat(folder, "/", info_.param_segment),
            {.bytes = ParamSegmentBytes(layout_),
             .or_longer = info_.params_leased},
            {kParamSegmentMagic, info_.job_id, layout_.fingerprint()}));
    STOWAGE_ASSIGN_OR_RETURN(
        gradients_,
        MappedSegment::Map(
            absl::StrCat(folder, "/", info_.gradient_segment),
            {.bytes =
                 info_.gradient_regions > 0
                     ? GradientRegionsBytes(layout_, info_.gradient_regions)
                     : GradientSegmentBytes(layout_, info_.slots_per_rank),
             .writable = true},
            {kGradientSegmentMagic, info_.job_id, layout_.fingerprint()}));
    InitializeRegions();
    return absl::OkStatus();
  }

  void InitializeRegions() {
    const MutexLock lock(regions_mutex_);
    region_of_.assign(static_cast<std::size_t>(layout_.unit_count()), -1);
    for (std::int32_t r = info_.gradient_regions; r > 0; --r) {
      free_regions_.push_back(r - 1);
    }
  }

  std::span<std::byte> RegionSpan(std::int32_t unit) {
    const MutexLock lock(regions_mutex_);
    return RegionSpanLocked(unit);
  }

  std::span<std::byte> RegionSpanLocked(std::int32_t unit)
      REQUIRES(regions_mutex_) {
    const std::int32_t region = region_of_[static_cast<std::size_t>(unit)];
    STOWAGE_CHECK(region >= 0);  // claimed
    return {gradient_bytes_ + GradientRegionOffsetBytes(layout_, region),
            static_cast<std::size_t>(UnitAt(unit).trainable_elems *
                                     DtypeBytes(layout_.param_dtype()))};
  }

  // Another unit's gradient was here: what is between parameters must be zero.
  void ClearPadding(std::int32_t unit) REQUIRES(regions_mutex_) {
    const std::span<std::byte> bytes = RegionSpanLocked(unit);
    const std::int64_t width = DtypeBytes(layout_.param_dtype());
    std::int64_t end = 0;
    const auto clear = [&](std::int64_t begin_elems, std::int64_t end_elems) {
      if (begin_elems >= end_elems) return;
      std::memset(bytes.data() + begin_elems * width, 0,
                  static_cast<std::size_t>((end_elems - begin_elems) * width));
    };
    for (const Layout::Param& param : UnitAt(unit).params) {
      if (param.frozen) continue;
      clear(end, param.begin_elems);
      end = param.begin_elems + param.elems;
    }
    clear(end, UnitAt(unit).trainable_elems);
  }

  // The region that goes with a notice; it is free again once that has landed,
  // or at once if there is nothing in it.
  std::int32_t GiveRegion(std::int64_t step, std::int32_t micro,
                          std::int32_t unit, bool empty) {
    const MutexLock lock(regions_mutex_);
    const std::int32_t region =
        std::exchange(region_of_[static_cast<std::size_t>(unit)], -1);
    if (region < 0) return 0;
    if (empty) {
      free_regions_.push_back(region);
      return 0;
    }
    noticed_.push_back({unit, step * micro_steps_ + micro + 1, region});
    return region;
  }

  const Layout::Unit& UnitAt(std::int32_t unit) const {
    STOWAGE_CHECK(unit >= 0 && unit < layout_.unit_count());
    return layout_.units()[static_cast<std::size_t>(unit)];
  }

  const UnitWords& Words(std::int32_t unit) const {
    STOWAGE_CHECK(unit >= 0 && unit < layout_.unit_count());
    return reinterpret_cast<const UnitWords*>(params_.data() +
                                              ParamWordsOffsetBytes())[unit];
  }

  absl::Status CheckRange(const char* what, std::int32_t unit,
                          std::int64_t begin_elems, std::int64_t elems) const {
    if (unit < 0 || unit >= layout_.unit_count()) {
      return absl::InvalidArgumentError(absl::StrCat(
          what, ": unit ", unit, " of a job of ", layout_.unit_count()));
    }
    const std::int64_t unit_elems = UnitAt(unit).elems;
    if (begin_elems < 0 || begin_elems > unit_elems ||
        elems > unit_elems - begin_elems) {
      return absl::InvalidArgumentError(absl::StrCat(
          what, ": ", elems, " elements from ", begin_elems, " of unit \"",
          UnitAt(unit).name, "\", which has ", unit_elems));
    }
    return absl::OkStatus();
  }

  absl::Status WaitWord(const char* what, std::int32_t unit,
                        const std::atomic<std::uint32_t>& word,
                        std::int64_t target) {
    const auto target_word = static_cast<std::uint32_t>(target);
    if (WordReached(word.load(std::memory_order_acquire), target_word)) {
      return absl::OkStatus();
    }
    const auto start = Clock::now();
    auto* header = reinterpret_cast<SegmentHeader*>(gradients_.data());
    absl::Status status =
        WaitForWord(word, target_word, header->waiters, wait_timeout_,
                    [this] { return stream_.status(); });
    if (absl::IsDeadlineExceeded(status) && stream_.status().ok()) {
      status = stream_.Break(absl::DeadlineExceededError(absl::StrCat(
          "unit \"", UnitAt(unit).name, "\" did not reach ", what, " ", target,
          " within ",
          std::chrono::duration_cast<std::chrono::seconds>(wait_timeout_)
              .count(),
          " s")));
    }
    const MutexLock lock(counters_mutex_);
    counters_.version_waits += 1;
    counters_.version_wait_seconds += SecondsSince(start);
    return status;
  }

  const Layout layout_;
  const std::int32_t local_rank_;
  const std::int32_t micro_steps_;
  const std::chrono::milliseconds wait_timeout_;
  AttachInfo info_;  // constant after Attach, as are the mappings
  MappedSegment params_;
  MappedSegment gradients_;
  // Of the segments, or of remote_.
  std::byte* param_bytes_ = nullptr;
  std::byte* gradient_bytes_ = nullptr;
  std::string why_remote_;
  std::atomic<std::int64_t> notices_{0};
  // Gradient regions: whose they are. A claim waits under the lock: what it
  // waits for needs none of this.
  struct Noticed {
    std::int32_t unit = 0;
    std::int64_t micro_steps_total = 0;
    std::int32_t region = 0;
  };
  Mutex regions_mutex_;
  std::vector<std::int32_t> region_of_ GUARDED_BY(regions_mutex_);  // by unit
  std::vector<std::int32_t> free_regions_ GUARDED_BY(regions_mutex_);
  std::deque<Noticed> noticed_ GUARDED_BY(regions_mutex_);  // in order
  mutable Mutex counters_mutex_;
  SessionCounters counters_ GUARDED_BY(counters_mutex_);
  std::shared_ptr<v1::Stowage::StubInterface> stub_;  // shared with the client
  std::unique_ptr<RemoteTransfer> remote_;  // before stream_, which fills it
  SessionStream stream_;  // last: its reader ends before the rest goes
};

}  // namespace

absl::StatusOr<std::unique_ptr<Session>> AttachSession(
    std::shared_ptr<v1::Stowage::StubInterface> stub, const AttachArgs& args,
    const JobSpec& job, const RunSpec& run, std::int32_t local_rank) {
  STOWAGE_RETURN_IF_ERROR(proto::CheckJobName(job.name));
  STOWAGE_ASSIGN_OR_RETURN(Layout layout, Layout::Create(job.layout));
  auto session = std::make_unique<SessionImpl>(
      std::move(stub), args, std::move(layout), run, local_rank);
  STOWAGE_RETURN_IF_ERROR(session->Attach(args, job, run));
  return std::unique_ptr<Session>(std::move(session));
}

}  // namespace stowage::client
