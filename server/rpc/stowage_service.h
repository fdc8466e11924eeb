// The service's calls, thin: limits, decode, core, encode.

#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

#include "common/mutex.h"
#include "server/core/job_registry.h"
#include "server/rpc/pace.h"
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
        sessions_max_(sessions_max),
        // All ranks of a node may come at once.
        sessions_pace_({.what = "new sessions",
                        .per_second = kSessionsPerSecond,
                        .burst = sessions_max,
                        .waiting_max = sessions_max}),
        calls_pace_({.what = "calls",
                     .per_second = kCallsPerSecond,
                     .burst = kCallsPerSecond}) {}

  // From now on new sessions and changes get kUnavailable.
  void Refuse() {
    refusing_.store(true);
    sessions_pace_.Stop();
    calls_pace_.Stop();
  }

  // Blocks until no session is left, at most for `limit`.
  void WaitIdle(std::chrono::milliseconds limit);

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
  grpc::Status RewindJob(grpc::ServerContext* context,
                         const v1::RewindJobRequest* request,
                         v1::RewindJobResponse* response) override;
  grpc::Status RollForward(grpc::ServerContext* context,
                           const v1::RollForwardRequest* request,
                           v1::RollForwardResponse* response) override;
  grpc::Status SaveJob(grpc::ServerContext* context,
                       const v1::SaveJobRequest* request,
                       v1::SaveJobResponse* response) override;
  grpc::Status GetSave(grpc::ServerContext* context,
                       const v1::GetSaveRequest* request,
                       v1::GetSaveResponse* response) override;

 private:
  // Beyond what trainers and people do, far below what a core can.
  static constexpr int kSessionsPerSecond = 20;
  static constexpr int kCallsPerSecond = 200;

  absl::Status EnterSession();
  void LeaveSession();

  core::JobRegistry& registry_;
  const std::string version_;
  const int sessions_max_;
  Pace sessions_pace_;
  Pace calls_pace_;
  Watchdog watchdog_;
  std::atomic<bool> refusing_{false};
  Mutex mutex_;
  CondVar session_ended_;
  int sessions_ GUARDED_BY(mutex_) = 0;
  // A flood is one line in the log, until it is over.
  bool flood_logged_ GUARDED_BY(mutex_) = false;
};

}  // namespace stowage::rpc
