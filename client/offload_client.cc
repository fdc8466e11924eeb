#include "client/offload_client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/connection.h"
#include "client/session.h"
#include "common/environment.h"
#include "common/status_macros.h"
#include "proto/admin_codec.h"
#include "proto/checkpoint_codec.h"
#include "proto/grpc_status.h"
#include "proto/job_codec.h"
#include "proto/session_codec.h"

#include "stowage/v1/service.grpc.pb.h"

namespace stowage::client {
namespace {

class OffloadClientImpl final : public OffloadClient {
 public:
  OffloadClientImpl(std::string address, const ConnectOptions& options,
                    std::shared_ptr<v1::Stowage::StubInterface> stub)
      : address_(std::move(address)),
        options_(options),
        stub_(std::move(stub)) {}

  absl::Status CheckServer() {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(std::chrono::system_clock::now() +
                         options_.connect_timeout);
    v1::GetServerInfoResponse response;
    const grpc::Status status = stub_->GetServerInfo(&context, {}, &response);
    if (!status.ok()) return ConnectError(status);
    absl::Status decoded = proto::DecodeServerInfo(response).status();
    if (decoded.ok()) return decoded;
    return {decoded.code(),
            absl::StrCat("stowd at ", address_, ": ", decoded.message())};
  }

  absl::StatusOr<std::unique_ptr<Session>> Attach(
      const JobSpec& job, const RunSpec& run, std::int32_t local_rank,
      const SessionOptions& options) override {
    AttachArgs args;
    args.address = address_;
    args.shm_dir = options_.shm_dir;
    if (args.shm_dir.empty()) args.shm_dir = Environment("STOWAGE_SHM_DIR");
    args.options = options;
    return AttachSession(stub_, args, job, run, local_rank);
  }

  absl::StatusOr<ServerInfo> GetServerInfo() override {
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::GetServerInfoResponse response;
    const grpc::Status status = stub_->GetServerInfo(&context, {}, &response);
    if (!status.ok()) return ToClientStatus(status, address_);
    return proto::DecodeServerInfo(response);
  }

  absl::StatusOr<std::vector<JobInfo>> ListJobs() override {
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::ListJobsResponse response;
    const grpc::Status status = stub_->ListJobs(&context, {}, &response);
    if (!status.ok()) return ToClientStatus(status, address_);
    return proto::DecodeJobs(response);
  }

  absl::Status DropJob(const std::string& name) override {
    STOWAGE_RETURN_IF_ERROR(proto::CheckJobName(name));
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::DropJobRequest request;
    request.set_name(name);
    v1::DropJobResponse response;
    return ToClientStatus(stub_->DropJob(&context, request, &response),
                          address_);
  }

  absl::Status RollForward(const std::string& name,
                           const ApplyArgs& args) override {
    STOWAGE_RETURN_IF_ERROR(proto::CheckJobName(name));
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::RollForwardRequest request;
    request.set_name(name);
    proto::EncodeApply(args, request.mutable_apply());
    v1::RollForwardResponse response;
    return ToClientStatus(stub_->RollForward(&context, request, &response),
                          address_);
  }

  absl::StatusOr<double> RewindJob(const std::string& name,
                                   std::int64_t step) override {
    STOWAGE_RETURN_IF_ERROR(proto::CheckJobName(name));
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::RewindJobRequest request;
    request.set_name(name);
    request.set_step(step);
    v1::RewindJobResponse response;
    STOWAGE_RETURN_IF_ERROR(ToClientStatus(
        stub_->RewindJob(&context, request, &response), address_));
    return response.seconds();
  }

  absl::StatusOr<SaveInfo> SaveJob(const SaveSpec& spec) override {
    STOWAGE_RETURN_IF_ERROR(proto::CheckJobName(spec.job));
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::SaveJobRequest request;
    proto::EncodeSaveJob(spec, &request);
    v1::SaveJobResponse response;
    STOWAGE_RETURN_IF_ERROR(
        ToClientStatus(stub_->SaveJob(&context, request, &response), address_));
    return proto::DecodeSaveInfo(response.save());
  }

  absl::StatusOr<SaveInfo> GetSave(const std::string& job) override {
    STOWAGE_RETURN_IF_ERROR(proto::CheckJobName(job));
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::GetSaveRequest request;
    request.set_job(job);
    v1::GetSaveResponse response;
    STOWAGE_RETURN_IF_ERROR(
        ToClientStatus(stub_->GetSave(&context, request, &response), address_));
    return proto::DecodeSaveInfo(response.save());
  }

 private:
  void SetDeadline(grpc::ClientContext* context) const {
    context->set_deadline(std::chrono::system_clock::now() +
                          options_.call_timeout);
  }

  absl::Status ConnectError(const grpc::Status& status) const {
    if (proto::IsFromServer(status)) return proto::FromGrpcStatus(status);
    if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED) {
      return absl::FailedPreconditionError(absl::StrCat(
          "at ", address_, " another gRPC service answers, not stowd"));
    }
    std::string why = ProbeAddress(address_);
    if (why.empty()) {
      why = "a process accepts connections there, but does not answer as stowd";
    }
    return absl::UnavailableError(absl::StrCat(
        "no stowd answers at ", address_, " (waited ",
        std::chrono::duration<double>(options_.connect_timeout).count(),
        " s): ", why, ". Start one with: stowd --listen ", address_));
  }

  const std::string address_;
  const ConnectOptions options_;
  const std::shared_ptr<v1::Stowage::StubInterface> stub_;  // with sessions
};

}  // namespace

absl::StatusOr<std::unique_ptr<OffloadClient>> OffloadClient::Connect(
    const std::string& address, const ConnectOptions& options) {
  STOWAGE_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                           MakeChannel(address));
  auto client = std::make_unique<OffloadClientImpl>(
      address, options, v1::Stowage::NewStub(channel));
  STOWAGE_RETURN_IF_ERROR(client->CheckServer());
  return std::unique_ptr<OffloadClient>(std::move(client));
}

}  // namespace stowage::client
