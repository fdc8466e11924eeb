// The service's four calls, thin: limits, decode, core, encode.

#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "server/core/job_registry.h"
#include "server/rpc/watchdog.h"

#include "stowage/v1/service.grpc.pb.h"

namespace stowage::rpc {

// Thread safety: thread-safe. Requires: outlived by `registry`, outlives the
// gRPC server.
class StowageService final : public v1::Stowage::Service {
 public:
  StowageService(core::JobRegistry& registry, std::string version,
                 int sessions_max)
      : registry_(registry),
        version_(std::move(version)),
        sessions_max_(sessions_max) {}

  // From now on new sessions and changes get kUnavailable.
  void Refuse() { refusing_.store(true); }

  grpc::Status GetServerInfo(grpc::ServerContext* context,
                             const v1::GetServerInfoRequest* request,
                             v1::GetServerInfoResponse* response) override;
  grpc::Status RunSession(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::ServerMessage, v1::ClientMessage>* stream)
      override;
  grpc::Status ListJobs(grpc::ServerContext* context,
                        const v1::ListJobsRequest* request,
                        v1::ListJobsResponse* response) override;
  grpc::Status DropJob(grpc::ServerContext* context,
                       const v1::DropJobRequest* request,
                       v1::DropJobResponse* response) override;

 private:
  core::JobRegistry& registry_;
  const std::string version_;
  const int sessions_max_;
  Watchdog watchdog_;
  std::atomic<int> sessions_{0};
  std::atomic<bool> refusing_{false};
  // A flood is one line in the log, until it is over.
  std::atomic<bool> flood_logged_{false};
};

}  // namespace stowage::rpc
