// A client that asks for much and reads slowly: what the server holds for it
// stays bounded, and all of it arrives.

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

#include "proto/payload_codec.h"
#include "proto/session_codec.h"
#include "tests/integration/client_server_fixture.h"

#include "stowage/v1/service.grpc.pb.h"

namespace stowage::testing {
namespace {

using std::chrono::milliseconds;

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr std::int64_t kUnitElems = 8 * kMiB;  // 32 MiB of fp32
constexpr int kFetches = 64;                   // of 16 MiB each: 1 GiB
// The stream's window, a chunk as it is, as a message and as it is written, and
// what the allocator keeps of them. Whoever queued what is asked for would hold
// a hundred times as much. AddressSanitizer puts guards around every block.
#ifdef __SANITIZE_ADDRESS__
constexpr std::int64_t kBoundBytes = 16 * kMiB;
#else
constexpr std::int64_t kBoundBytes = 8 * kMiB;
#endif

std::int64_t AnonymousBytes(int pid) {
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  for (std::string line; std::getline(status, line);) {
    long long kilobytes = 0;
    if (std::sscanf(line.c_str(), "RssAnon: %lld", &kilobytes) == 1) {
      return kilobytes * 1024;
    }
  }
  return -1;
}

// The most that a process held while this object lived.
class Peak {
 public:
  explicit Peak(int pid) : before_(AnonymousBytes(pid)), peak_(before_) {
    watcher_ = std::jthread([this, pid](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        peak_ = std::max(peak_.load(), AnonymousBytes(pid));
        std::this_thread::sleep_for(milliseconds(5));
      }
    });
  }
  std::int64_t grown_bytes() const { return peak_ - before_; }

 private:
  std::int64_t before_;
  std::atomic<std::int64_t> peak_;
  std::jthread watcher_;
};

class ClientServerSlowReader : public ClientServerTest {};

TEST_F(ClientServerSlowReader, CostsTheServerABoundedAmount) {
#ifdef __SANITIZE_ADDRESS__
  // AddressSanitizer keeps 256 MiB of freed memory, to see who still uses it.
  const char* given = std::getenv("ASAN_OPTIONS");
  const std::string options =
      absl::StrCat(given == nullptr ? "" : given, ":quarantine_size_mb=1");
  ASSERT_EQ(::setenv("ASAN_OPTIONS", options.c_str(), 1), 0);
#endif
  StartServer();
  JobSpec job;
  job.name = "slow";
  job.layout.param_dtype = Dtype::kFp32;
  job.layout.groups = {{"all", false}};
  job.layout.units = {{"unit", {{"weight", {kUnitElems}, 0}}}};
  {
    auto rank = ClientRank::Attach(server_->address(), job, SmallRun(1, 1), 0);
    ASSERT_TRUE(rank.ok()) << rank.status();
    ASSERT_TRUE((*rank)->Initialize().ok());
    ASSERT_TRUE((*rank)->session().Close(/*close_job=*/false).ok());
  }
  const auto stub = v1::Stowage::NewStub(grpc::CreateChannel(
      server_->address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  const auto stream = stub->RunSession(&context);
  v1::ClientMessage message;
  v1::ServerMessage answer;
  proto::EncodeOpen(job, SmallRun(1, 1, 'b'), 0, ::getpid(), "",
                    message.mutable_open());
  ASSERT_TRUE(stream->Write(message) && stream->Read(&answer));
  ASSERT_TRUE(answer.has_attached());

  const Peak peak(server_->pid());
  for (int i = 0; i < kFetches; ++i) {
    proto::EncodeFetchParams(
        {0, 0, (i % 2) * proto::kFetchBytesMax, proto::kFetchBytesMax},
        message.mutable_fetch_params());
    ASSERT_TRUE(stream->Write(message));
  }
  // Nothing is read for a while, then a little at a time, then the rest.
  std::this_thread::sleep_for(milliseconds(1500));
  const std::int64_t while_nothing_is_read = peak.grown_bytes();
  constexpr std::int64_t kAll = kFetches * proto::kFetchBytesMax;
  std::int64_t got = 0;
  for (int chunks = 0; got < kAll; ++chunks) {
    ASSERT_TRUE(stream->Read(&answer)) << "after " << got << " bytes";
    const auto chunk = proto::DecodeParamChunk(answer.param_chunk());
    ASSERT_TRUE(chunk.ok()) << chunk.status();
    EXPECT_EQ(chunk->begin_bytes, got % (2 * proto::kFetchBytesMax));
    got += static_cast<std::int64_t>(chunk->data.size());
    if (chunks < 256) std::this_thread::sleep_for(milliseconds(5));
  }
  EXPECT_EQ(got, kAll);
  std::printf(
      "asked for %lld MiB: the server grew by %.1f MiB while nothing was read, "
      "%.1f MiB in all\n",
      static_cast<long long>(kAll / kMiB),
      static_cast<double>(while_nothing_is_read) / kMiB,
      static_cast<double>(peak.grown_bytes()) / kMiB);
  EXPECT_LT(peak.grown_bytes(), kBoundBytes);
  context.TryCancel();
}

}  // namespace
}  // namespace stowage::testing
