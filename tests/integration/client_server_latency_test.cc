// What a prepare + apply with nothing to do costs beside a bare gRPC stream.
//
// The figure that users care about is absolute (80 us median on an idle
// machine, bench/), but it is mostly the machine's: where waking a thread on
// another core takes 40 us instead of 4, a bare round trip takes 150 us instead
// of 20. So the test compares the two in one run, and prints both.

#include <grpcpp/grpcpp.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>

#include "tests/integration/client_server_fixture.h"

#include "stowage/v1/service.grpc.pb.h"

namespace stowage::testing {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 2000;

double MicrosSince(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start)
      .count();
}

double Report(const char* what, std::vector<double> us) {
  std::sort(us.begin(), us.end());
  std::printf("%-16s min %.1f median %.1f p90 %.1f max %.1f us\n", what,
              us.front(), us[us.size() / 2], us[us.size() * 9 / 10], us.back());
  return us[us.size() / 2];
}

// Answers each prepare with a verdict, and does nothing else.
class Echo final : public v1::Stowage::Service {
  grpc::Status RunSession(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::ServerMessage, v1::ClientMessage>* stream)
      override {
    v1::ClientMessage message;
    v1::ServerMessage answer;
    while (stream->Read(&message)) {
      if (!message.has_prepare()) continue;
      answer.mutable_verdict()->set_step(message.prepare().step());
      stream->Write(answer);
    }
    return grpc::Status::OK;
  }
};

// Not a test by itself: the bare server, in a process of its own.
TEST(ClientServerChild, RunsAsAnEcho) {
  const char* address = std::getenv("STOWAGE_TEST_ECHO_AT");
  if (address == nullptr) GTEST_SKIP() << "run by the test below";
  Echo service;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  const auto server = builder.BuildAndStart();
  server->Wait();
}

std::vector<double> MeasureEcho(const std::string& address) {
  auto stub = v1::Stowage::NewStub(
      grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  auto stream = stub->RunSession(&context);
  std::vector<double> us;
  v1::ServerMessage answer;
  for (int i = 0; i < kRounds; ++i) {
    v1::ClientMessage message;
    message.mutable_notice()->set_step(i);
    stream->Write(message);
    const auto start = Clock::now();
    message.mutable_prepare()->set_step(i);
    stream->Write(message);
    EXPECT_TRUE(stream->Read(&answer));
    message.mutable_apply()->set_step(i);
    stream->Write(message);
    us.push_back(MicrosSince(start));
  }
  context.TryCancel();
  return us;
}

std::vector<double> MeasureSession(client::Session& session) {
  std::vector<double> us;
  ApplyArgs args;
  args.skip = true;
  args.groups.resize(1);
  for (std::int64_t step = 0; step < kRounds; ++step) {
    EXPECT_TRUE(session.Notice(step, 0, 0, /*empty=*/true).ok());
    EXPECT_TRUE(session.WaitLanded(0, step + 1).ok());
    const auto start = Clock::now();
    const auto verdict = session.Prepare(step, {});
    EXPECT_TRUE(verdict.ok()) << verdict.status();
    args.step = step;
    EXPECT_TRUE(session.Apply(args).ok());
    us.push_back(MicrosSince(start));
  }
  return us;
}

class ClientServerLatency : public ClientServerTest {};

TEST_F(ClientServerLatency, PrepareAndApplyCostLittleMoreThanABareStream) {
  const std::string address =
      absl::StrCat("unix:", ::testing::TempDir(), "stowage-echo-", ::getpid());
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG,
            SIGKILL);  // also where an assertion ends the test
    ::setenv("STOWAGE_TEST_ECHO_AT", address.c_str(), 1);
    ::execl("/proc/self/exe", "echo",
            "--gtest_filter=ClientServerChild.RunsAsAnEcho", nullptr);
    ::_exit(127);
  }
  StartServer();
  JobSpec job;
  job.name = "latency";
  job.layout.groups = {{"all", false}};
  job.layout.units = {{"unit", {{"weight", {64}, 0}}}};
  auto rank = ClientRank::Attach(server_->address(), job, SmallRun(1, 1), 0);
  ASSERT_TRUE(rank.ok()) << rank.status();
  ASSERT_TRUE((*rank)->Initialize().ok());
  const double bare = Report("bare stream", MeasureEcho(address));
  const double ours =
      Report("prepare + apply", MeasureSession((*rank)->session()));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::unlink(address.substr(5).c_str());
  // 80 us beside a round trip of 19 us is a factor of 4.
  EXPECT_LT(ours, 4 * bare);
  EXPECT_TRUE((*rank)->session().Close(true).ok());
}

}  // namespace
}  // namespace stowage::testing
