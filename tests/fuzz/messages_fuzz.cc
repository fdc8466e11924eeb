// Every message of the protocol, in both directions, as bytes of a peer.
//
// Input: a byte that names the message, then its wire bytes. A message that is
// accepted must be encoded and accepted again, with the same bytes.

#include <google/protobuf/message.h>

#include "common/layout.h"
#include "proto/address.h"
#include "proto/admin_codec.h"
#include "proto/job_codec.h"
#include "proto/job_record_codec.h"
#include "proto/round_codec.h"
#include "proto/session_codec.h"
#include "proto/storage_codec.h"
#include "tests/fuzz/fuzz_input.h"

#include "stowage/v1/service.pb.h"
#include "stowage/v1/session.pb.h"

namespace stowage::proto {
namespace {

// Decodes; what is accepted is encoded, decoded and encoded again: same bytes.
template <typename Message, typename Decode, typename Encode>
void RoundTrip(const std::string& bytes, const Decode& decode,
               const Encode& encode) {
  Message message;
  if (!message.ParseFromString(bytes)) return;
  const auto value = decode(message);
  if (!value.ok()) {
    STOWAGE_FUZZ_CHECK(!value.status().message().empty(), "a bare code");
    return;
  }
  Message once;
  encode(*value, &once);
  const auto again = decode(once);
  STOWAGE_FUZZ_CHECK(again.ok(), again.status().ToString());
  Message twice;
  encode(*again, &twice);
  STOWAGE_FUZZ_CHECK(once.SerializeAsString() == twice.SerializeAsString(),
                     "another message came back");
}

void OpenMessage(const std::string& bytes) {
  v1::Open message;
  if (!message.ParseFromString(bytes)) return;
  const auto args = DecodeOpen(message);
  if (!args.ok()) return;
  v1::Open again;
  EncodeOpen(args->job, args->run, args->local_rank, args->pid, args->host,
             &again);
  const auto same = DecodeOpen(again);
  STOWAGE_FUZZ_CHECK(same.ok(), same.status().ToString());
  // What a server does next with it, if it has a gigabyte.
  const LayoutLimits limits{.elems_max = std::int64_t{1} << 36};
  const auto layout = Layout::Create(args->job.layout, limits);
  if (!layout.ok()) return;
  STOWAGE_FUZZ_CHECK(layout->state_elems() >= 0, "");
  STOWAGE_FUZZ_CHECK(
      layout->fingerprint() ==
          Layout::Create(same->job.layout, limits)->fingerprint(),
      "another layout came back");
}

void PutStateMessage(const std::string& bytes) {
  v1::PutState message;
  if (!message.ParseFromString(bytes)) return;
  PutStateArgs args;
  if (!DecodePutState(message, &args).ok()) return;
  v1::PutState again;
  EncodePutState(args.unit, args.begin_elems, args.values, &again);
  STOWAGE_FUZZ_CHECK(DecodePutState(again, &args).ok(), "");
}

void StateChunkMessage(const std::string& bytes) {
  v1::StateChunk message;
  if (!message.ParseFromString(bytes)) return;
  StateChunkArgs args;
  if (!DecodeStateChunk(message, &args).ok()) return;
  v1::StateChunk again;
  EncodeStateChunk(args.unit, args.kind, args.begin_elems, args.values, &again);
  STOWAGE_FUZZ_CHECK(DecodeStateChunk(again, &args).ok(), "");
}

void ToServer(int which, const std::string& bytes) {
  switch (which) {
    case 0:
      return OpenMessage(bytes);
    case 1:
      return PutStateMessage(bytes);
    case 2:
      return RoundTrip<v1::SetForwardOrder>(
          bytes, DecodeForwardOrder,
          [](const ForwardOrderArgs& args, v1::SetForwardOrder* to) {
            EncodeForwardOrder(args.units, args.uses, to);
          });
    case 3:
      return RoundTrip<v1::Notice>(bytes, DecodeNotice, EncodeNotice);
    case 4:
      return RoundTrip<v1::Prepare>(
          bytes, DecodePrepare, [](const PrepareArgs& args, v1::Prepare* to) {
            EncodePrepare(args.step, args.scalars, to);
          });
    case 5:
      return RoundTrip<v1::Apply>(bytes, DecodeApply, EncodeApply);
    case 6:
      return RoundTrip<v1::ReadState>(bytes, DecodeReadState, EncodeReadState);
    case 7:
      return RoundTrip<v1::Lease>(bytes, DecodeLease, EncodeLease);
    case 8:
      return RoundTrip<v1::Unlease>(
          bytes, DecodeUnlease,
          [](std::int32_t unit, v1::Unlease* to) { to->set_unit(unit); });
    case 9: {
      v1::BeginRound begin;
      if (begin.ParseFromString(bytes)) (void)DecodeBeginRound(begin);
      v1::RoundResult result;
      if (result.ParseFromString(bytes)) (void)DecodeRoundResult(result);
      v1::RoundChunk chunk;
      if (chunk.ParseFromString(bytes)) (void)DecodeRoundChunk(chunk);
      v1::RoundHeld held;
      if (held.ParseFromString(bytes)) (void)DecodeRoundHeld(held);
      return;
    }
    case 10: {
      v1::DropJobRequest message;
      if (message.ParseFromString(bytes)) (void)DecodeDropJob(message);
      return;
    }
    default: {
      v1::RewindJobRequest message;
      if (message.ParseFromString(bytes)) (void)DecodeRewindJob(message);
      return;
    }
  }
}

void ToClient(int which, const std::string& bytes) {
  switch (which) {
    case 0:
      return RoundTrip<v1::Verdict>(bytes, DecodeVerdict, EncodeVerdict);
    case 1:
      return StateChunkMessage(bytes);
    case 2:
      return RoundTrip<v1::Leased>(bytes, DecodeLeased,
                                   [](const LeaseArgs& args, v1::Leased* to) {
                                     to->set_unit(args.unit);
                                     to->set_step(args.step);
                                   });
    case 3:
      return RoundTrip<v1::AttachInfo>(bytes, DecodeAttachInfo,
                                       EncodeAttachInfo);
    case 4:
      return RoundTrip<v1::ListJobsResponse>(bytes, DecodeJobs, EncodeJobs);
    case 5:
      return RoundTrip<v1::GetServerInfoResponse>(bytes, DecodeServerInfo,
                                                  EncodeServerInfo);
    case 6: {
      const auto record = DecodeJobRecord(bytes);
      if (!record.ok()) return;
      const std::string once = EncodeJobRecord(*record);
      const auto again = DecodeJobRecord(once);
      STOWAGE_FUZZ_CHECK(again.ok(), again.status().ToString());
      STOWAGE_FUZZ_CHECK(EncodeJobRecord(*again) == once, "");
      return;
    }
    default: {
      const auto address = ParseAddress(bytes);
      if (!address.ok()) return;
      const auto again = ParseAddress(address->ToString());
      STOWAGE_FUZZ_CHECK(again.ok(), again.status().ToString());
      return;
    }
  }
}

}  // namespace
}  // namespace stowage::proto

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  stowage::fuzz::Input input(data, size);
  const int which = input.Below(21);
  const std::string bytes = input.Rest();
  if (which < 12) {
    stowage::proto::ToServer(which, bytes);
  } else {
    stowage::proto::ToClient(which - 12, bytes);
  }
  return 0;
}
