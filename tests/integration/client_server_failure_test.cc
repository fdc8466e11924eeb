// What users see when something is wrong, and what is left behind: nothing.
//
// Fault model: ranks and servers die at any instant (SIGKILL, a closed stream),
// addresses are wrong, jobs collide, memory is short, peers speak another
// version.

#include <grpcpp/grpcpp.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "gmock/gmock.h"
#include "tests/integration/client_server_fixture.h"

#include "stowage/v1/service.grpc.pb.h"

namespace stowage::testing {
namespace {

using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

std::string Text(const absl::Status& status) {
  return std::string(status.message());
}

class ClientServerFailure : public ClientServerTest {};

TEST_F(ClientServerFailure, UnreachableServersAreSaidPlainly) {
  client::ConnectOptions options;
  options.connect_timeout = std::chrono::milliseconds(300);
  struct Case {
    std::string address;
    absl::StatusCode code;
    const char* says;
  };
  for (const Case& c : std::vector<Case>{
           {"unix:/no/such/folder/s.sock", absl::StatusCode::kUnavailable,
            "there is no such socket"},
           {"127.0.0.1:1", absl::StatusCode::kUnavailable,
            "no stowd answers at 127.0.0.1:1"},
           {"nonsense", absl::StatusCode::kInvalidArgument,
            "expected unix:/path or host:port"}}) {
    const auto start = Clock::now();
    const auto client = client::OffloadClient::Connect(c.address, options);
    EXPECT_EQ(client.status().code(), c.code) << c.address;
    EXPECT_THAT(Text(client.status()), HasSubstr(c.says));
    EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  }
}

// A server of another version: the service, but another number.
class OtherVersion final : public v1::Stowage::Service {
  grpc::Status GetServerInfo(grpc::ServerContext*,
                             const v1::GetServerInfoRequest*,
                             v1::GetServerInfoResponse* response) override {
    response->set_protocol_version(kProtocolVersion + 1);
    return grpc::Status::OK;
  }
};

TEST_F(ClientServerFailure, AnotherProtocolVersionIsRefusedByBothSides) {
  OtherVersion service;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                           &port);
  builder.RegisterService(&service);
  const auto other = builder.BuildAndStart();
  const auto client =
      client::OffloadClient::Connect(absl::StrCat("127.0.0.1:", port), {});
  EXPECT_EQ(client.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Text(client.status()),
              HasSubstr("server speaks protocol version 2, this client 1"));

  StartServer();
  auto stub = v1::Stowage::NewStub(grpc::CreateChannel(
      server_->address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  auto stream = stub->RunSession(&context);
  v1::ClientMessage open;
  open.mutable_open()->set_protocol_version(kProtocolVersion + 1);
  stream->Write(open);
  v1::ServerMessage answer;
  EXPECT_FALSE(stream->Read(&answer));
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("this client 2"));
}

TEST_F(ClientServerFailure, ANameInUseAndADifferenceAreRefused) {
  StartServer();
  const JobSpec job = SmallJob("taken");
  auto first =
      ClientRank::Attach(server_->address(), job, SmallRun(1, 1, 'a'), 0);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second =
      ClientRank::Attach(server_->address(), job, SmallRun(1, 1, 'b'), 0);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Text(second.status()), HasSubstr("taken"));
  ASSERT_TRUE((*first)->Initialize().ok());
  EXPECT_TRUE((*first)->session().Close(false).ok());

  JobSpec other = job;
  other.layout.units[1].params[0].shape = {128, 301};
  const auto third =
      ClientRank::Attach(server_->address(), other, SmallRun(1, 1, 'c'), 0);
  EXPECT_EQ(third.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Text(third.status()), HasSubstr("block.0.fc.weight"));
  EXPECT_THAT(Text(third.status()), HasSubstr("301"));
  EXPECT_TRUE(Connect()->DropJob("taken").ok());
  EXPECT_EQ(Connect()->DropJob("taken").code(), absl::StatusCode::kNotFound);
}

TEST_F(ClientServerFailure, AJobThatDoesNotFitIsRefusedWithFigures) {
  StartServer();
  JobSpec job;
  job.name = "huge";
  job.layout.groups = {{"all", false}};
  job.layout.units = {{"unit", {{"weight", {1 << 14, 1 << 14}, 0}}}};
  const auto rank =
      ClientRank::Attach(server_->address(), job, SmallRun(1, 1), 0);
  EXPECT_EQ(rank.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Text(rank.status()), HasSubstr("256.0 MiB"));
  EXPECT_THAT(Text(rank.status()), HasSubstr("GiB"));
  EXPECT_TRUE(Connect()->ListJobs()->empty());
  EXPECT_EQ(FilesIn(shm_.path()).size(), 1U);  // the server's own mark
}

TEST_F(ClientServerFailure, ALostRankIsNamedToTheOthersWithinTenSeconds) {
  StartServer();
  const JobSpec job = SmallJob("lost");
  auto survivor =
      ClientRank::Attach(server_->address(), job, SmallRun(2, 1), 0);
  ASSERT_TRUE(survivor.ok()) << survivor.status();
  // The other rank is a process of its own, which SIGKILL ends.
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    // gRPC does not survive a fork: a fresh program, this one, as the rank.
    ::setenv("STOWAGE_TEST_RANK_OF", server_->address().c_str(), 1);
    ::execl("/proc/self/exe", "rank",
            "--gtest_filter=ClientServerChild.RunsAsARank", nullptr);
    ::_exit(127);
  }
  // Wait until it is attached, then end it while the survivor is in Prepare.
  const auto client = Connect();
  for (int i = 0; i < 500; ++i) {
    const auto jobs = client->ListJobs();
    ASSERT_TRUE(jobs.ok());
    if (jobs->at(0).live_sessions == 2) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  std::thread killer([child] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    ::kill(child, SIGKILL);
  });
  const auto start = Clock::now();
  const absl::Status status = (*survivor)->Initialize();
  killer.join();
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(10));
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(Text(status), HasSubstr("rank 1"));
  EXPECT_THAT(Text(status), HasSubstr(absl::StrCat("pid ", child)));
  // Everything after it says the same.
  EXPECT_EQ((*survivor)->session().WaitVersion(0, 9), status);
  EXPECT_EQ((*survivor)->session().Notice(0, 0, 0, true), status);
  EXPECT_EQ((*survivor)->session().status(), status);
  ::waitpid(child, nullptr, 0);
}

// Not a test by itself: the rank that the test above kills.
TEST(ClientServerChild, RunsAsARank) {
  const char* address = std::getenv("STOWAGE_TEST_RANK_OF");
  if (address == nullptr) GTEST_SKIP() << "run by the test above";
  auto rank = ClientRank::Attach(address, SmallJob("lost"), SmallRun(2, 1), 1);
  ASSERT_TRUE(rank.ok()) << rank.status();
  std::this_thread::sleep_for(std::chrono::seconds(60));
}

TEST_F(ClientServerFailure, AKilledServerIsSaidToWhoeverWaits) {
  StartServer();
  auto rank = ClientRank::Attach(server_->address(), SmallJob("orphan"),
                                 SmallRun(1, 1), 0);
  ASSERT_TRUE(rank.ok()) << rank.status();
  ASSERT_TRUE((*rank)->Initialize().ok());
  std::thread killer([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    ::kill(server_->pid(), SIGKILL);
  });
  const auto start = Clock::now();
  const absl::Status status = (*rank)->session().WaitVersion(0, 5);
  killer.join();
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(
      Text(status),
      HasSubstr(absl::StrCat("stowd at ", server_->address(), " went away")));
  EXPECT_EQ((*rank)->session().Prepare(0, {}).status(), status);
  EXPECT_EQ((*rank)->session().Close(true), status);
  const auto again = (*rank)->client().ListJobs();
  EXPECT_EQ(again.status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ClientServerFailure, AStoppingServerSaysSo) {
  StartServer();
  auto rank = ClientRank::Attach(server_->address(), SmallJob("stopped"),
                                 SmallRun(1, 1), 0);
  ASSERT_TRUE(rank.ok()) << rank.status();
  std::thread stopper([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    server_->Stop();
  });
  const absl::Status status = (*rank)->session().WaitVersion(0, 5);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(status), HasSubstr("stopping"));
  stopper.join();
}

// The whole program and its server end on Ctrl-C's signal, in any phase, and
// leave no process, socket or segment.
TEST_F(ClientServerFailure, NothingIsLeftBehind) {
  StartServer();
  auto rank = ClientRank::Attach(server_->address(), SmallJob("segments"),
                                 SmallRun(1, 1), 0);
  ASSERT_TRUE(rank.ok()) << rank.status();
  // The server's own mark, the job's parameters, the rank's gradients.
  EXPECT_EQ(FilesIn(shm_.path()).size(), 3U);
  const std::string folder = FolderOfSocket(server_->address());
  struct stat info {};
  ASSERT_EQ(::stat(folder.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777U, 0700U);
  const int pid = server_->pid();
  const auto start = Clock::now();
  ASSERT_EQ(::kill(pid, SIGINT), 0);
  int code = 0;
  ASSERT_EQ(::waitpid(pid, &code, 0), pid);
  EXPECT_TRUE(WIFEXITED(code)) << code;
  EXPECT_EQ(WEXITSTATUS(code), 0);
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  EXPECT_TRUE(FilesIn(shm_.path()).empty());
  EXPECT_NE(::stat(folder.c_str(), &info), 0);
}

// The parent is killed: its server ends by itself, with everything it made.
TEST_F(ClientServerFailure, APrivateServerEndsWithItsParent) {
  int words[2];
  ASSERT_EQ(::pipe(words), 0);
  const pid_t parent = ::fork();
  ASSERT_GE(parent, 0);
  if (parent == 0) {
    ::setenv("STOWAGE_TEST_PARENT_FD", absl::StrCat(words[1]).c_str(), 1);
    ::setenv("STOWAGE_TEST_SHM", shm_.path().c_str(), 1);
    ::execl("/proc/self/exe", "parent",
            "--gtest_filter=ClientServerChild.RunsAsAParent", nullptr);
    ::_exit(127);
  }
  ::close(words[1]);
  char text[256] = {};
  ASSERT_GT(::read(words[0], text, sizeof(text) - 1), 0);
  const std::string said = text;  // "<pid> <address>"
  const int server_pid = std::atoi(said.c_str());
  const std::string address = said.substr(said.find(' ') + 1);
  ASSERT_EQ(::kill(server_pid, 0), 0);
  ::kill(parent, SIGKILL);
  ::waitpid(parent, nullptr, 0);
  // stowd's end closes our pipe's last writer; EOF is its death notice.
  bool gone = false;
  for (int i = 0; i < 500 && !gone; ++i) {
    struct stat info {};
    gone = ::stat(FolderOfSocket(address).c_str(), &info) != 0;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_TRUE(gone);
  EXPECT_TRUE(FilesIn(shm_.path()).empty());
  ::close(words[0]);
}

// Not a test by itself: the parent that the test above kills.
TEST(ClientServerChild, RunsAsAParent) {
  const char* fd = std::getenv("STOWAGE_TEST_PARENT_FD");
  if (fd == nullptr) GTEST_SKIP() << "run by the test above";
  client::PrivateServer::Options options;
  options.binary = StowdBinary();
  options.shm_dir = std::getenv("STOWAGE_TEST_SHM");
  auto server = client::PrivateServer::Start(options);
  ASSERT_TRUE(server.ok()) << server.status();
  auto rank = ClientRank::Attach((*server)->address(), SmallJob("segments"),
                                 SmallRun(1, 1), 0);
  ASSERT_TRUE(rank.ok()) << rank.status();
  const std::string said =
      absl::StrCat((*server)->pid(), " ", (*server)->address());
  ASSERT_GT(::write(std::atoi(fd), said.data(), said.size()), 0);
  std::this_thread::sleep_for(std::chrono::seconds(60));
}

TEST_F(ClientServerFailure, APrivateServerThatCannotStartSaysWhy) {
  client::PrivateServer::Options options;
  options.binary = "/no/such/stowd";
  auto server = client::PrivateServer::Start(options);
  EXPECT_EQ(server.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Text(server.status()), HasSubstr("/no/such/stowd"));
  options.binary = StowdBinary();
  options.shm_dir = "/proc/no/segments";
  server = client::PrivateServer::Start(options);
  EXPECT_EQ(server.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(server.status()), HasSubstr("/proc/no/segments"));
}

}  // namespace
}  // namespace stowage::testing
