// Payload of a rank without shared memory: gradients to stowd and parameters
// back over a session's stream, against a plain gRPC stream that carries the
// same chunks in the same messages. Alternating; prints one JSON object.
//
//   remote_bench [--parameters 64000000] [--rounds 7] [--steps 3]
//
// The plain side copies each chunk out of memory into its message and drops it
// at the other end: no checksums, nothing looked at, nothing put anywhere. Ours
// ends when the server has landed all gradients (their norm included), and when
// all parameters lie in the rank's memory. Both over a Unix socket, each server
// in a process of its own.

#include <grpcpp/grpcpp.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/micro/spread.h"
#include "client/offload_client.h"
#include "client/private_server.h"
#include "common/check.h"
#include "common/dtype.h"
#include "proto/payload_codec.h"
#include <CLI/CLI.hpp>

#include "stowage/v1/service.grpc.pb.h"

namespace stowage {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kUnits = 12;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// GB/s of both directions, one value a round.
struct Rates {
  std::vector<double> send;   // gradients to the server
  std::vector<double> fetch;  // parameters from it
};

// Takes chunks and forgets them; sends as many as are asked for.
class PlainService final : public v1::Stowage::Service {
  grpc::Status RunSession(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::ServerMessage, v1::ClientMessage>* stream)
      override {
    const std::vector<char> source(
        static_cast<std::size_t>(proto::kFetchBytesMax), 'p');
    v1::ClientMessage message;
    while (stream->Read(&message)) {
      if (message.has_fetch_params()) {
        const std::int64_t bytes = message.fetch_params().bytes();
        for (std::int64_t at = 0; at < bytes; at += proto::kPayloadBytesMax) {
          v1::ServerMessage answer;
          answer.mutable_param_chunk()->set_data(
              source.data() + at, static_cast<std::size_t>(std::min(
                                      proto::kPayloadBytesMax, bytes - at)));
          if (!stream->Write(answer)) break;
        }
      } else if (message.has_await_landed()) {
        v1::ServerMessage answer;
        answer.mutable_landed();
        stream->Write(answer);
      }
    }
    return grpc::Status::OK;
  }
};

// In a child of its own, before this process has threads.
pid_t StartPlainServer(const std::string& address) {
  const pid_t child = ::fork();
  STOWAGE_CHECK(child >= 0);
  if (child > 0) return child;
  PlainService service;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  const auto server = builder.BuildAndStart();
  if (server == nullptr) ::_exit(1);
  server->Wait();
  ::_exit(0);
}

class Plain {
 public:
  Plain(const std::string& address, std::int64_t bytes)
      : stub_(v1::Stowage::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))),
        source_(static_cast<std::size_t>(bytes), 'g') {
    context_.set_wait_for_ready(true);
    stream_ = stub_->RunSession(&context_);
  }
  ~Plain() { context_.TryCancel(); }

  double Send() {
    const auto begin = Clock::now();
    v1::ClientMessage message;
    const auto bytes = static_cast<std::int64_t>(source_.size());
    for (std::int64_t at = 0; at < bytes; at += proto::kPayloadBytesMax) {
      message.mutable_gradient_chunk()->set_data(
          source_.data() + at, static_cast<std::size_t>(std::min(
                                   proto::kPayloadBytesMax, bytes - at)));
      STOWAGE_CHECK(stream_->Write(message));
    }
    message.mutable_await_landed();
    STOWAGE_CHECK(stream_->Write(message));
    v1::ServerMessage answer;
    STOWAGE_CHECK(stream_->Read(&answer));
    return Rate(begin);
  }

  double Fetch() {
    const auto begin = Clock::now();
    const auto bytes = static_cast<std::int64_t>(source_.size());
    v1::ClientMessage message;
    for (std::int64_t at = 0; at < bytes; at += proto::kFetchBytesMax) {
      message.mutable_fetch_params()->set_bytes(
          std::min(proto::kFetchBytesMax, bytes - at));
      STOWAGE_CHECK(stream_->Write(message));
    }
    v1::ServerMessage answer;
    for (std::int64_t got = 0; got < bytes;) {
      STOWAGE_CHECK(stream_->Read(&answer));
      got += static_cast<std::int64_t>(answer.param_chunk().data().size());
    }
    return Rate(begin);
  }

 private:
  double Rate(Clock::time_point begin) const {
    return static_cast<double>(source_.size()) / SecondsSince(begin) / 1e9;
  }

  std::unique_ptr<v1::Stowage::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<
      grpc::ClientReaderWriter<v1::ClientMessage, v1::ServerMessage>>
      stream_;
  std::vector<char> source_;
};

// One rank of a real stowd, payload over the stream.
class Ours {
 public:
  Ours(client::OffloadClient& client, std::int64_t parameters) {
    JobSpec job;
    job.name = "remote";
    job.layout.param_dtype = Dtype::kBf16;
    job.layout.groups = {{"all", false}};
    for (int u = 0; u < kUnits; ++u) {
      const std::string number = std::to_string(u);
      job.layout.units.push_back(
          {"unit" + number, {{"w" + number, {parameters / kUnits}, 0}}});
    }
    RunSpec run;
    run.nonce = "remote-bench-0123456789abcdef";
    client::SessionOptions options;
    options.payload = client::SessionOptions::Payload::kStream;
    session_ = client.Attach(job, run, 0, options).value();
    const std::vector<float> zeros(
        static_cast<std::size_t>(parameters / kUnits));
    for (std::int32_t u = 0; u < kUnits; ++u) {
      STOWAGE_CHECK_OK(session_->PutState(u, 0, zeros));
      auto* slot = reinterpret_cast<std::uint16_t*>(
          session_->gradient_slot(0, u).data());
      std::fill_n(slot, parameters / kUnits, FloatToBf16(0.01F));
      bytes_ +=
          session_->layout().units()[static_cast<std::size_t>(u)].elems * 2;
    }
    STOWAGE_CHECK_OK(session_->FinishInitialization());
    Fetch();  // touches its memory once
  }

  std::int64_t bytes() const { return bytes_; }

  double Send() {
    const auto begin = Clock::now();
    for (std::int32_t u = 0; u < kUnits; ++u) {
      STOWAGE_CHECK_OK(session_->Notice(step_, 0, u, /*empty=*/false));
    }
    for (std::int32_t u = 0; u < kUnits; ++u) {
      STOWAGE_CHECK_OK(session_->WaitLanded(u, step_ + 1));
    }
    return Rate(begin);
  }

  // Ends the step without an update, then brings all parameters.
  double Fetch() {
    if (step_ >= 0) {
      STOWAGE_CHECK_OK(session_->Prepare(step_, {}).status());
      ApplyArgs args;
      args.step = step_;
      args.skip = true;
      args.groups.resize(1);
      STOWAGE_CHECK_OK(session_->Apply(args));
    }
    ++step_;
    const auto begin = Clock::now();
    for (std::int32_t u = 0; u < kUnits; ++u) {
      STOWAGE_CHECK_OK(session_->WaitVersion(u, step_));
    }
    return Rate(begin);
  }

  absl::Status Close() { return session_->Close(/*close_job=*/true); }

 private:
  double Rate(Clock::time_point begin) const {
    return static_cast<double>(bytes_) / SecondsSince(begin) / 1e9;
  }

  std::unique_ptr<client::Session> session_;
  std::int64_t bytes_ = 0;
  std::int64_t step_ = -1;  // the first Fetch() makes it 0
};

template <typename Side>
void Round(Side& side, int steps, Rates* rates) {
  std::vector<double> send;
  std::vector<double> fetch;
  for (int i = 0; i < steps; ++i) {
    send.push_back(side.Send());
    fetch.push_back(side.Fetch());
  }
  rates->send.push_back(Median(send));
  rates->fetch.push_back(Median(fetch));
}

std::string Row(const char* name, const std::vector<double>& ours,
                const std::vector<double>& plain) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    ratios.push_back(ours[i] / plain[i]);
  }
  return std::string("\"") + name + "\": {\"ours_gb_s\": " + Spread(ours) +
         ", \"plain_gb_s\": " + Spread(plain) +
         ", \"ours_over_plain\": " + Spread(ratios) + "}";
}

int Main(int argc, char** argv) {
  std::int64_t parameters = 64'000'000;
  int rounds = 7;
  int steps = 3;
  CLI::App app("Payload of remote ranks against a plain gRPC stream");
  app.add_option("--parameters", parameters)->capture_default_str();
  app.add_option("--rounds", rounds)->capture_default_str();
  app.add_option("--steps", steps, "of a round; their median counts")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  char folder[] = "/tmp/stowage-remote-XXXXXX";
  STOWAGE_CHECK(::mkdtemp(folder) != nullptr);
  const std::string address = std::string("unix:") + folder + "/plain";
  const pid_t child = StartPlainServer(address);
  Rates ours_rates;
  Rates plain_rates;
  std::int64_t bytes = 0;
  {
    const std::unique_ptr<client::PrivateServer> server =
        client::PrivateServer::Start({}).value();
    const std::unique_ptr<client::OffloadClient> client =
        client::OffloadClient::Connect(server->address(), {}).value();
    Ours ours(*client, parameters);
    bytes = ours.bytes();
    Plain plain(address, bytes);
    for (int round = -1; round < rounds; ++round) {
      Rates warm_up;
      Rates* const of_plain = round < 0 ? &warm_up : &plain_rates;
      Rates* const of_ours = round < 0 ? &warm_up : &ours_rates;
      if (round % 2 == 0) Round(plain, steps, of_plain);
      Round(ours, steps, of_ours);
      if (round % 2 != 0) Round(plain, steps, of_plain);
    }
    STOWAGE_CHECK_OK(ours.Close());
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::unlink(address.c_str() + 5);
  ::rmdir(folder);
  std::printf("{\"bytes\": %lld, \"chunk_bytes\": %lld,\n %s,\n %s}\n",
              static_cast<long long>(bytes),
              static_cast<long long>(proto::kPayloadBytesMax),
              Row("send", ours_rates.send, plain_rates.send).c_str(),
              Row("fetch", ours_rates.fetch, plain_rates.fetch).c_str());
  return 0;
}

}  // namespace
}  // namespace stowage

int main(int argc, char** argv) { return stowage::Main(argc, argv); }
