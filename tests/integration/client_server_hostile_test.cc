// Clients that send nonsense: their session ends, the server and the others
// stay well. (Coverage-guided fuzzing is a matter of its own: tests/fuzz.)

#include <grpcpp/grpcpp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <random>

#include "gmock/gmock.h"
#include "proto/session_codec.h"
#include "tests/integration/client_server_fixture.h"

#include "stowage/v1/service.grpc.pb.h"

namespace stowage::testing {
namespace {

using ::testing::HasSubstr;

// One stream without the client library's care.
class RawStream {
 public:
  explicit RawStream(const std::string& address)
      : stub_(v1::Stowage::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))),
        stream_(stub_->RunSession(&context_)) {}

  bool Send(const v1::ClientMessage& message) {
    return stream_->Write(message);
  }
  bool Open(const JobSpec& job, std::int32_t ranks = 1) {
    v1::ClientMessage message;
    proto::EncodeOpen(job, SmallRun(ranks, 1), 0, ::getpid(), "",
                      message.mutable_open());
    v1::ServerMessage answer;
    return Send(message) && stream_->Read(&answer) && answer.has_attached();
  }
  // Reads to the end. Returns: what the stream ended with.
  grpc::Status End() {
    v1::ServerMessage answer;
    while (stream_->Read(&answer)) {
      if (answer.has_failed()) WritesDone();
    }
    return stream_->Finish();
  }
  void WritesDone() {
    if (!std::exchange(writes_done_, true)) stream_->WritesDone();
  }

 private:
  bool writes_done_ = false;
  grpc::ClientContext context_;
  std::unique_ptr<v1::Stowage::Stub> stub_;
  std::unique_ptr<
      grpc::ClientReaderWriter<v1::ClientMessage, v1::ServerMessage>>
      stream_;
};

class ClientServerHostile : public ClientServerTest {
 protected:
  void SetUp() override {
    StartServer({"--max-sessions", "8"});
    // A neighbour at work: it must not notice anything.
    auto rank = ClientRank::Attach(server_->address(), SmallJob("neighbour"),
                                   SmallRun(1, 1, 'n'), 0);
    ASSERT_TRUE(rank.ok()) << rank.status();
    neighbour_ = *std::move(rank);
    ASSERT_TRUE(neighbour_->Initialize().ok());
    Neighbour();
  }
  void TearDown() override {
    if (neighbour_ == nullptr) return;
    Neighbour();
    EXPECT_TRUE(neighbour_->session().Close(true).ok());
  }
  void Neighbour() {
    const auto verdict = neighbour_->Step(step_++);
    ASSERT_TRUE(verdict.ok()) << verdict.status();
  }

  std::unique_ptr<ClientRank> neighbour_;
  std::int64_t step_ = 0;
};

TEST_F(ClientServerHostile, RandomBytesOnTheSocket) {
  const std::uint64_t seed = 20240801;
  std::mt19937_64 random(seed);
  for (int round = 0; round < 40; ++round) {
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    ASSERT_GE(fd, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, server_->address().c_str() + 5);
    ASSERT_EQ(
        ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)),
        0);
    std::string bytes;
    if (round % 2 == 0) bytes = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (int i = 0; i < 4096; ++i) {
      bytes += static_cast<char>(random() & 0xffU);
    }
    (void)::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    ::close(fd);
  }
  Neighbour();
}

TEST_F(ClientServerHostile, BadFirstMessages) {
  const std::vector<std::function<void(v1::ClientMessage*)>> firsts = {
      [](v1::ClientMessage*) {},
      [](v1::ClientMessage* m) { m->mutable_notice(); },
      [](v1::ClientMessage* m) { m->mutable_close(); },
      [](v1::ClientMessage* m) { m->mutable_open(); },
      [](v1::ClientMessage* m) {
        proto::EncodeOpen(SmallJob("../../etc"), SmallRun(1, 1), 0, 1, "",
                          m->mutable_open());
      },
      [](v1::ClientMessage* m) {
        proto::EncodeOpen(SmallJob("x"), SmallRun(1, 1), 3, 1, "",
                          m->mutable_open());
      }};
  for (const auto& first : firsts) {
    RawStream stream(server_->address());
    v1::ClientMessage message;
    first(&message);
    stream.Send(message);
    const grpc::Status status = stream.End();
    EXPECT_TRUE(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT ||
                status.error_code() == grpc::StatusCode::FAILED_PRECONDITION)
        << status.error_code() << status.error_message();
  }
  Neighbour();
}

TEST_F(ClientServerHostile, NumbersOutOfRangeEndTheSessionOnly) {
  using M = v1::ClientMessage;
  const std::vector<std::function<void(M*)>> bads = {
      [](M*) {},
      [](M* m) { m->mutable_open(); },
      [](M* m) { m->mutable_notice()->set_unit(3); },
      [](M* m) { m->mutable_notice()->set_unit(-1); },
      [](M* m) { m->mutable_notice()->set_micro(1); },
      [](M* m) { m->mutable_notice()->set_step(7); },
      [](M* m) { m->mutable_prepare()->set_step(1); },
      [](M* m) { m->mutable_prepare(); },  // before initialization
      [](M* m) { m->mutable_apply(); },
      [](M* m) { m->mutable_apply()->set_step(1LL << 62); },
      [](M* m) { m->mutable_set_forward_order()->add_units(3); },
      [](M* m) {
        m->mutable_set_forward_order()->add_units(1);
        m->mutable_set_forward_order()->add_units(1);
      },
      [](M* m) { m->mutable_finish_initialization(); },  // nothing was put
      [](M* m) {
        m->mutable_put_state()->set_unit(2);
        m->mutable_put_state()->set_begin_elems(1LL << 40);
        m->mutable_put_state()->set_values_fp32("1234");
      },
      [](M* m) {
        m->mutable_put_state()->set_unit(65535);
        m->mutable_put_state()->set_values_fp32("1234");
      },
      [](M* m) {
        m->mutable_read_state()->set_unit(0);
        m->mutable_read_state()->set_kind(v1::STATE_KIND_MASTER);
        m->mutable_read_state()->set_elems(1LL << 40);
      },
      [](M* m) {
        m->mutable_read_state()->set_unit(40000);
        m->mutable_read_state()->set_kind(v1::STATE_KIND_PARAM);
        m->mutable_read_state()->set_elems(1);
      }};
  for (std::size_t i = 0; i < bads.size(); ++i) {
    SCOPED_TRACE(i);
    RawStream stream(server_->address());
    ASSERT_TRUE(stream.Open(SmallJob("bad")));
    M message;
    bads[i](&message);
    stream.Send(message);
    const grpc::Status status = stream.End();
    EXPECT_NE(status.error_code(), grpc::StatusCode::OK);
    EXPECT_NE(status.error_code(), grpc::StatusCode::INTERNAL);
    EXPECT_NE(status.error_code(), grpc::StatusCode::UNKNOWN);
    EXPECT_EQ(status.error_details(), "stowage.v1") << status.error_message();
    // An empty job ends with its last rank; the next round opens it anew.
    const absl::Status dropped = neighbour_->client().DropJob("bad");
    EXPECT_TRUE(dropped.ok() || absl::IsNotFound(dropped)) << dropped;
  }
  Neighbour();
}

TEST_F(ClientServerHostile, RandomSequencesOfCalls) {
  std::mt19937_64 random(7);
  const auto number = [&random](std::int64_t max) {
    return random() % 8 == 0 ? static_cast<std::int64_t>(random())
                             : static_cast<std::int64_t>(
                                   random() % static_cast<std::uint64_t>(max));
  };
  for (int round = 0; round < 30; ++round) {
    RawStream stream(server_->address());
    ASSERT_TRUE(stream.Open(SmallJob("random")));
    for (int i = 0; i < 20; ++i) {
      v1::ClientMessage m;
      const auto unit = static_cast<std::int32_t>(number(3));
      switch (random() % 7) {
        case 0:
          m.mutable_notice()->set_step(number(2));
          m.mutable_notice()->set_unit(unit);
          m.mutable_notice()->set_empty(random() % 2 == 0);
          break;
        case 1:
          m.mutable_prepare()->set_step(number(2));
          break;
        case 2:
          m.mutable_apply()->set_step(number(2));
          m.mutable_apply()->set_skip(random() % 2 == 0);
          break;
        case 3:
          m.mutable_put_state()->set_unit(unit);
          m.mutable_put_state()->set_begin_elems(number(2048));
          m.mutable_put_state()->set_values_fp32(
              std::string(4 * (1 + random() % 2048), '\x3f'));
          break;
        case 4:
          m.mutable_finish_initialization();
          break;
        case 5:
          m.mutable_read_state()->set_unit(unit);
          m.mutable_read_state()->set_kind(v1::STATE_KIND_PARAM);
          m.mutable_read_state()->set_elems(1 + number(2048));
          break;
        default:
          m.mutable_close()->set_close_job(random() % 2 == 0);
          break;
      }
      if (!stream.Send(m)) break;
    }
    stream.WritesDone();
    stream.End();
    (void)neighbour_->client().DropJob("random");
  }
  Neighbour();
}

TEST_F(ClientServerHostile, TooManySessionsAreRefusedEarly) {
  std::vector<std::unique_ptr<RawStream>> streams;
  for (int i = 0; i < 7; ++i) {  // the neighbour has one of the eight
    streams.push_back(std::make_unique<RawStream>(server_->address()));
    ASSERT_TRUE(streams.back()->Open(SmallJob(absl::StrCat("many", i))));
  }
  RawStream more(server_->address());
  EXPECT_FALSE(more.Open(SmallJob("more")));
  const grpc::Status status = more.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("--max-sessions"));
  Neighbour();
  streams.clear();
}

// A client that asks for much and reads nothing is cut off; nobody else waits.
TEST_F(ClientServerHostile, AClientThatDoesNotReadIsCutOff) {
  auto stream = std::make_unique<RawStream>(server_->address());
  JobSpec job;
  job.name = "deaf";
  job.layout.param_dtype = Dtype::kFp32;
  job.layout.groups = {{"all", false}};
  job.layout.units = {{"unit", {{"weight", {3000, 1000}, 0}}}};
  ASSERT_TRUE(stream->Open(job));
  for (std::int64_t begin = 0; begin < 3000000; begin += 250000) {
    v1::ClientMessage put;
    put.mutable_put_state()->set_begin_elems(begin);
    put.mutable_put_state()->set_values_fp32(std::string(1000000, '\0'));
    ASSERT_TRUE(stream->Send(put));
  }
  v1::ClientMessage finish;
  finish.mutable_finish_initialization();
  ASSERT_TRUE(stream->Send(finish));
  v1::ClientMessage read;
  read.mutable_read_state()->set_kind(v1::STATE_KIND_MASTER);
  read.mutable_read_state()->set_elems(3000000);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(stream->Send(read));
  // 48 MB of answers, none read: the write limit is 10 s.
  bool gone = false;
  for (int i = 0; i < 200 && !gone; ++i) {
    Neighbour();
    gone = true;
    const auto jobs = neighbour_->client().ListJobs();
    ASSERT_TRUE(jobs.ok()) << jobs.status();
    for (const JobInfo& info : *jobs) {
      if (info.name == "deaf" && info.live_sessions > 0) gone = false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  EXPECT_TRUE(gone);
}

}  // namespace
}  // namespace stowage::testing
