// Addresses, statuses and the admin messages: the small parts of proto/.

#include <cstdlib>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/address.h"
#include "proto/admin_codec.h"
#include "proto/grpc_status.h"

namespace stowage::proto {
namespace {

using ::testing::HasSubstr;

TEST(Address, ReadsWhatItPrints) {
  for (const char* text : {"unix:/run/stowage/stowd.sock", "127.0.0.1:7070",
                           "localhost:0", "[::1]:65535", "node-3.lan:80"}) {
    const auto address = ParseAddress(text);
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(address->ToString(), text);
  }
  EXPECT_EQ(ParseAddress("unix:///run/s")->ToString(), "unix:/run/s");
}

TEST(Address, KnowsLoopback) {
  for (const char* text :
       {"unix:/a", "127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1"}) {
    EXPECT_TRUE(ParseAddress(text)->IsLoopback()) << text;
  }
  for (const char* text :
       {"0.0.0.0:1", "10.0.0.1:1", "127.evil.example:1", "[::]:1", "host:1"}) {
    EXPECT_FALSE(ParseAddress(text)->IsLoopback()) << text;
  }
}

TEST(Address, RefusesTheRest) {
  for (const std::string& text : std::vector<std::string>{
           "", "unix:", "unix:/", "unix:relative/path", "unix:/folder/",
           "unix:/" + std::string(107, 'p'), std::string("unix:/a\0b", 9),
           "host", "host:", ":80", "host:port", "host:65536", "host:-1",
           "host:+1", "host: 1", "a b:1", "::1:80", "http://host:80",
           std::string(300, 'h') + ":1"}) {
    const auto address = ParseAddress(text);
    EXPECT_EQ(address.status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
  EXPECT_TRUE(ParseAddress("unix:/" + std::string(106, 'p')).ok());
}

TEST(GrpcStatus, CodesAndMessagesPassBothWays) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    const grpc::Status sent = ToGrpcStatus(status);
    EXPECT_EQ(static_cast<int>(sent.error_code()), code);
    EXPECT_EQ(FromGrpcStatus(sent), status);
    EXPECT_EQ(IsFromServer(sent), code != 0);
  }
  EXPECT_FALSE(IsFromServer({grpc::StatusCode::UNAVAILABLE, "Socket closed"}));
}

TEST(GrpcStatus, LongMessagesAreCutBetweenCharacters) {
  std::string text(kStatusMessageBytesMax - 1, 'a');
  text += "\xe2\x82\xac and more";  // a euro sign across the border
  const std::string sent =
      ToGrpcStatus(absl::InternalError(text)).error_message();
  EXPECT_EQ(sent, std::string(kStatusMessageBytesMax - 1, 'a') + " ...");
}

TEST(GrpcStatus, FailedMessageIsNeverOk) {
  EXPECT_EQ(StatusFromWire(0, "x").code(), absl::StatusCode::kInternal);
  EXPECT_EQ(StatusFromWire(-1, "x").code(), absl::StatusCode::kInternal);
  EXPECT_EQ(StatusFromWire(17, "x").code(), absl::StatusCode::kInternal);
  EXPECT_EQ(StatusFromWire(14, "x").code(), absl::StatusCode::kUnavailable);
}

TEST(AdminCodec, ServerInfoComesBackAsItWas) {
  ServerInfo info;
  info.version = "0.1.0";
  info.protocol_version = kProtocolVersion;
  info.pid = 5;
  info.isa = "avx2";
  info.threads = 2;
  info.memory_limit_bytes = 1;
  info.pinned_bytes = 2;
  info.locked_bytes = 3;
  info.huge_page_bytes = 4;
  info.rss_bytes = 6;
  info.uptime_seconds = 7.5;
  info.shm_dir = "/dev/shm/s";
  v1::GetServerInfoResponse message;
  EncodeServerInfo(info, &message);
  const auto decoded = DecodeServerInfo(message);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->version, info.version);
  EXPECT_EQ(decoded->pid, 5);
  EXPECT_EQ(decoded->isa, "avx2");
  EXPECT_EQ(decoded->threads, 2);
  EXPECT_EQ(decoded->memory_limit_bytes, 1);
  EXPECT_EQ(decoded->pinned_bytes, 2);
  EXPECT_EQ(decoded->locked_bytes, 3);
  EXPECT_EQ(decoded->huge_page_bytes, 4);
  EXPECT_EQ(decoded->rss_bytes, 6);
  EXPECT_EQ(decoded->uptime_seconds, 7.5);
  EXPECT_EQ(decoded->shm_dir, "/dev/shm/s");
  message.set_protocol_version(9);
  EXPECT_EQ(DecodeServerInfo(message).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(DecodeServerInfo(message).status().message()),
              HasSubstr("server speaks protocol version 9, this client 1"));
}

TEST(AdminCodec, JobsAndDropNeedProperNames) {
  JobInfo job;
  job.name = "a";
  v1::ListJobsResponse jobs;
  EncodeJobs({job, job}, &jobs);
  EXPECT_EQ(DecodeJobs(jobs)->size(), 2U);
  jobs.mutable_jobs(1)->clear_name();
  EXPECT_FALSE(DecodeJobs(jobs).ok());
  v1::DropJobRequest drop;
  EXPECT_FALSE(DecodeDropJob(drop).ok());
  drop.set_name("../x");
  EXPECT_FALSE(DecodeDropJob(drop).ok());
  drop.set_name("x");
  EXPECT_EQ(*DecodeDropJob(drop), "x");
}

TEST(AdminCodec, RewindNamesAJobAndAStep) {
  v1::RewindJobRequest rewind;
  rewind.set_step(3);
  EXPECT_FALSE(DecodeRewindJob(rewind).ok());
  rewind.set_name("x");
  EXPECT_EQ(DecodeRewindJob(rewind)->name, "x");
  EXPECT_EQ(DecodeRewindJob(rewind)->step, 3);
  rewind.set_step(-1);
  EXPECT_THAT(std::string(DecodeRewindJob(rewind).status().message()),
              HasSubstr("step -1"));
}

TEST(AdminCodec, AJobOnNvmeComesBackAsItWas) {
  JobInfo job;
  job.name = "a";
  job.nvme_paths = {"/d/one", "/d/two"};
  job.durability = "power";
  job.kept_steps = {3, 4, 5};
  job.disk_bytes = 6;
  job.cache_bytes = 7;
  job.disk_bytes_read = 8;
  job.disk_bytes_written = 9;
  job.params_leased = true;
  job.param_limit_bytes = 10;
  job.io = "io_uring";
  v1::ListJobsResponse jobs;
  EncodeJobs({job}, &jobs);
  EXPECT_EQ(DecodeJobs(jobs)->front(), job);
}

}  // namespace
}  // namespace stowage::proto
