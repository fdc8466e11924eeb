#include "server/rpc/stowage_service.h"

#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "proto/admin_codec.h"
#include "proto/checkpoint_codec.h"
#include "proto/grpc_status.h"
#include "server/rpc/session_handler.h"

namespace stowage::rpc {
namespace {

absl::Status Stopping() {
  return absl::UnavailableError("the server is stopping");
}

}  // namespace

grpc::Status StowageService::GetServerInfo(
    grpc::ServerContext* /*context*/,
    const v1::GetServerInfoRequest* /*request*/,
    v1::GetServerInfoResponse* response) {
  if (absl::Status turn = calls_pace_.Take(); !turn.ok()) {
    return proto::ToGrpcStatus(turn);
  }
  ServerInfo info = registry_.Info();
  info.protocol_version = kProtocolVersion;
  info.version = version_;
  proto::EncodeServerInfo(info, response);
  return grpc::Status::OK;
}

grpc::Status StowageService::RunSession(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<v1::ServerMessage, v1::ClientMessage>* stream) {
  if (absl::Status turn = sessions_pace_.Take(); !turn.ok()) {
    return proto::ToGrpcStatus(turn);
  }
  if (refusing_.load()) return proto::ToGrpcStatus(Stopping());
  if (absl::Status entered = EnterSession(); !entered.ok()) {
    return proto::ToGrpcStatus(entered);
  }
  const absl::Cleanup leave = [this] { LeaveSession(); };
  SessionHandler handler(registry_, watchdog_, *context, *stream);
  return proto::ToGrpcStatus(handler.Run());
}

absl::Status StowageService::EnterSession() {
  const MutexLock lock(mutex_);
  if (sessions_ < sessions_max_) {
    ++sessions_;
    return absl::OkStatus();
  }
  absl::Status status = absl::ResourceExhaustedError(absl::StrCat(
      "the server has its ", sessions_max_, " sessions (--max-sessions)"));
  if (!flood_logged_) {
    log::Warning("session_refused", {{"reason", status.message()}});
  }
  flood_logged_ = true;
  return status;
}

void StowageService::LeaveSession() {
  const MutexLock lock(mutex_);
  --sessions_;
  if (sessions_ < sessions_max_ / 2) flood_logged_ = false;
  session_ended_.NotifyAll();
}

void StowageService::WaitIdle(std::chrono::milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  const MutexLock lock(mutex_);
  for (auto now = std::chrono::steady_clock::now(); sessions_ > 0 && now < end;
       now = std::chrono::steady_clock::now()) {
    session_ended_.WaitFor(mutex_, end - now);
  }
}

grpc::Status StowageService::ListJobs(grpc::ServerContext* /*context*/,
                                      const v1::ListJobsRequest* /*request*/,
                                      v1::ListJobsResponse* response) {
  if (absl::Status turn = calls_pace_.Take(); !turn.ok()) {
    return proto::ToGrpcStatus(turn);
  }
  proto::EncodeJobs(registry_.List(), response);
  return grpc::Status::OK;
}

grpc::Status StowageService::DropJob(grpc::ServerContext* /*context*/,
                                     const v1::DropJobRequest* request,
                                     v1::DropJobResponse* /*response*/) {
  if (absl::Status turn = calls_pace_.Take(); !turn.ok()) {
    return proto::ToGrpcStatus(turn);
  }
  if (refusing_.load()) return proto::ToGrpcStatus(Stopping());
  absl::StatusOr<std::string> name = proto::DecodeDropJob(*request);
  if (!name.ok()) return proto::ToGrpcStatus(name.status());
  return proto::ToGrpcStatus(registry_.Drop(*name));
}

grpc::Status StowageService::RewindJob(grpc::ServerContext* /*context*/,
                                       const v1::RewindJobRequest* request,
                                       v1::RewindJobResponse* response) {
  if (absl::Status turn = calls_pace_.Take(); !turn.ok()) {
    return proto::ToGrpcStatus(turn);
  }
  if (refusing_.load()) return proto::ToGrpcStatus(Stopping());
  absl::StatusOr<proto::RewindArgs> args = proto::DecodeRewindJob(*request);
  if (!args.ok()) return proto::ToGrpcStatus(args.status());
  const auto begin = std::chrono::steady_clock::now();
  const absl::Status status = registry_.Rewind(args->name, args->step);
  response->set_seconds(
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
          .count());
  return proto::ToGrpcStatus(status);
}

grpc::Status StowageService::RollForward(
    grpc::ServerContext* /*context*/, const v1::RollForwardRequest* request,
    v1::RollForwardResponse* /*response*/) {
  if (absl::Status turn = calls_pace_.Take(); !turn.ok()) {
    return proto::ToGrpcStatus(turn);
  }
  if (refusing_.load()) return proto::ToGrpcStatus(Stopping());
  absl::StatusOr<proto::RollForwardArgs> args =
      proto::DecodeRollForward(*request);
  if (!args.ok()) return proto::ToGrpcStatus(args.status());
  return proto::ToGrpcStatus(registry_.RollForward(args->name, args->apply));
}

grpc::Status StowageService::SaveJob(grpc::ServerContext* /*context*/,
                                     const v1::SaveJobRequest* request,
                                     v1::SaveJobResponse* response) {
  if (absl::Status turn = calls_pace_.Take(); !turn.ok()) {
    return proto::ToGrpcStatus(turn);
  }
  if (refusing_.load()) return proto::ToGrpcStatus(Stopping());
  absl::StatusOr<SaveSpec> spec = proto::DecodeSaveJob(*request);
  if (!spec.ok()) return proto::ToGrpcStatus(spec.status());
  absl::StatusOr<SaveInfo> begun = registry_.Save(*spec);
  if (!begun.ok()) return proto::ToGrpcStatus(begun.status());
  proto::EncodeSaveInfo(*begun, response->mutable_save());
  return grpc::Status::OK;
}

grpc::Status StowageService::GetSave(grpc::ServerContext* /*context*/,
                                     const v1::GetSaveRequest* request,
                                     v1::GetSaveResponse* response) {
  if (absl::Status turn = calls_pace_.Take(); !turn.ok()) {
    return proto::ToGrpcStatus(turn);
  }
  absl::StatusOr<SaveInfo> save = registry_.LastSave(request->job());
  if (!save.ok()) return proto::ToGrpcStatus(save.status());
  proto::EncodeSaveInfo(*save, response->mutable_save());
  return grpc::Status::OK;
}

}  // namespace stowage::rpc
