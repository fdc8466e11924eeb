// A rank's session: stream, segments and the checks around them.
//
// Private to client/; the public face is Session in client/offload_client.h.

#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "client/offload_client.h"
#include "client/segment.h"
#include "client/session_stream.h"
#include "common/mutex.h"

namespace stowage::client {

struct AttachArgs {
  std::string address;
  std::string shm_dir;  // override; empty: the server's
  SessionOptions options;
};

// Opens, attaches and maps. Errors: as OffloadClient::Attach.
absl::StatusOr<std::unique_ptr<Session>> AttachSession(
    std::shared_ptr<v1::Stowage::StubInterface> stub, const AttachArgs& args,
    const JobSpec& job, const RunSpec& run, std::int32_t local_rank);

}  // namespace stowage::client
