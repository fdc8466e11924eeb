// A program that does to a stowd whatever a client must not do, for a bounded
// time: what hostile_training_test runs beside a training job.
//
//   hostile_client ADDRESS SECONDS SEED
//
// Fault model: random bytes on the socket; opens with bad and good specs;
// sequences of random calls; segments of its own cut short and filled with
// garbage; floods of streams, of unary calls and of unread answers. It knows
// the socket, so it may say anything, but it is not in the job's own folder of
// names: it opens jobs of its own and asks to drop the trainer's.
//
// Prints one line of counts. Exit code: 0; 2 for bad arguments.

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/unique_fd.h"
#include "proto/job_codec.h"
#include "proto/session_codec.h"

#include "stowage/v1/service.grpc.pb.h"

namespace stowage {
namespace {

using Clock = std::chrono::steady_clock;
using Stream = grpc::ClientReaderWriter<v1::ClientMessage, v1::ServerMessage>;

class Hostile {
 public:
  Hostile(std::string address, std::uint64_t seed)
      : address_(std::move(address)),
        random_(seed),
        stub_(v1::Stowage::NewStub(grpc::CreateChannel(
            address_, grpc::InsecureChannelCredentials()))) {}

  void RunUntil(Clock::time_point end) {
    while (Clock::now() < end) {
      switch (random_() % 6) {
        case 0:
          Bytes();
          break;
        case 1:
          Unary();
          break;
        case 2:
          Streams();
          break;
        case 3:
          Unread();
          break;
        default:
          Calls();
      }
    }
    std::printf(
        "hostile: %lld bytes on the socket, %lld streams, %lld messages, "
        "%lld unary calls, %lld segments cut or filled\n",
        bytes_, streams_, messages_, unary_, segments_);
  }

 private:
  struct Session {
    std::unique_ptr<grpc::ClientContext> context =
        std::make_unique<grpc::ClientContext>();
    std::unique_ptr<Stream> stream;
    AttachInfo info;
  };

  std::uint64_t Below(std::uint64_t n) { return random_() % n; }
  std::int64_t Number(std::int64_t below) {
    return Below(8) == 0 ? static_cast<std::int64_t>(random_())
                         : static_cast<std::int64_t>(
                               Below(static_cast<std::uint64_t>(below)));
  }

  void Bytes() {
    const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un to{};
    to.sun_family = AF_UNIX;
    std::strncpy(to.sun_path, address_.c_str() + 5, sizeof(to.sun_path) - 1);
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)) !=
        0) {
      return;
    }
    std::string bytes = Below(2) == 0 ? "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" : "";
    for (int i = 0; i < 8192; ++i) bytes += static_cast<char>(random_());
    (void)::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    bytes_ += static_cast<long long>(bytes.size());
  }

  void Unary() {
    for (int i = 0; i < 50; ++i) {
      grpc::ClientContext context;
      ++unary_;
      if (Below(2) == 0) {
        v1::ListJobsResponse jobs;
        (void)stub_->ListJobs(&context, {}, &jobs);
        continue;
      }
      v1::DropJobRequest drop;
      drop.set_name(Below(2) == 0 ? "victim" : absl::StrCat("x", random_()));
      v1::DropJobResponse answer;
      (void)stub_->DropJob(&context, drop, &answer);
    }
  }

  bool Open(Session* session, const JobSpec& job) {
    session->stream = stub_->RunSession(session->context.get());
    ++streams_;
    RunSpec run;
    run.nonce = absl::StrCat("hostile-nonce-", random_());
    v1::ClientMessage open;
    proto::EncodeOpen(job, run, 0, 4711, "hostile", open.mutable_open());
    v1::ServerMessage answer;
    if (!session->stream->Write(open) || !session->stream->Read(&answer)) {
      return false;
    }
    if (!answer.has_attached()) return false;
    auto info = proto::DecodeAttachInfo(answer.attached().info());
    if (info.ok()) session->info = *std::move(info);
    return info.ok();
  }

  JobSpec Job(const std::string& name) {
    JobSpec job;
    job.name = name;
    job.layout.param_dtype = Dtype::kBf16;
    job.layout.groups = {{.name = "g"}};
    job.layout.units = {
        {.name = "u",
         .params = {{.name = "w",
                     .shape = {static_cast<std::int64_t>(1 + Below(70000))},
                     .group_index = 0}}}};
    return job;
  }

  // Attaches under the trainer's name, with a layout that claims everything,
  // and to more than there are sessions for.
  void Streams() {
    std::vector<std::unique_ptr<Session>> sessions;
    for (int i = 0; i < 20; ++i) {
      sessions.push_back(std::make_unique<Session>());
      JobSpec job = Job(Below(4) == 0 ? "victim" : absl::StrCat("h", i));
      if (Below(8) == 0) {
        job.layout.units[0].params[0].shape = {std::int64_t{1} << 40};
      }
      (void)Open(sessions.back().get(), job);
    }
    for (auto& session : sessions) session->context->TryCancel();
    for (auto& session : sessions) (void)session->stream->Finish();
  }

  void Segment(const Session& session) {
    const std::string path =
        absl::StrCat(session.info.shm_dir, "/", session.info.gradient_segment);
    const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (!fd.valid()) return;
    ++segments_;
    if (Below(2) == 0) {
      (void)!::ftruncate(fd.get(), static_cast<off_t>(Below(10000)));
      return;
    }
    std::string garbage(4096, '\0');
    for (char& c : garbage) c = static_cast<char>(random_());
    (void)!::pwrite(fd.get(), garbage.data(), garbage.size(),
                    static_cast<off_t>(Below(100000)));
  }

  v1::ClientMessage Message() {
    v1::ClientMessage m;
    switch (Below(9)) {
      case 0:
        m.mutable_notice()->set_step(Number(2));
        m.mutable_notice()->set_unit(static_cast<std::int32_t>(Number(2)));
        break;
      case 1:
        m.mutable_prepare()->set_step(Number(2));
        break;
      case 2:
        m.mutable_apply()->set_step(Number(2));
        m.mutable_apply()->set_gradient_factor(1);
        m.mutable_apply()->add_groups()->set_lr(1e-3);
        break;
      case 3:
        m.mutable_put_state()->set_begin_elems(Number(70000));
        m.mutable_put_state()->set_values_fp32(
            std::string(4 * (1 + Below(65536)), '\x3f'));
        break;
      case 4:
        m.mutable_finish_initialization();
        break;
      case 6:
        m.mutable_begin_round()->mutable_apply()->set_step(Number(2));
        m.mutable_begin_round()->mutable_apply()->add_groups();
        m.mutable_begin_round()->set_round(
            static_cast<std::int32_t>(Number(2)));
        break;
      case 7:
        m.mutable_round_result()->set_step(Number(2));
        m.mutable_round_result()->set_data(std::string(64, '\x7f'));
        break;
      case 5:
        m.mutable_read_state()->set_kind(v1::STATE_KIND_MASTER);
        m.mutable_read_state()->set_elems(1 + Number(70000));
        break;
      default:
        m.mutable_set_forward_order()->add_units(
            static_cast<std::int32_t>(Number(2)));
    }
    ++messages_;
    return m;
  }

  void Calls() {
    Session session;
    if (Open(&session, Job("calls"))) {
      for (int i = 0; i < 30; ++i) {
        if (Below(6) == 0) Segment(session);
        if (!session.stream->Write(Message())) break;
      }
      session.stream->WritesDone();
    }
    session.context->TryCancel();
    (void)session.stream->Finish();
  }

  // Asks for much and reads nothing, for a moment.
  void Unread() {
    Session session;
    if (Open(&session, Job("unread"))) {
      v1::ClientMessage m;
      m.mutable_put_state()->set_values_fp32(std::string(1 << 20, '\0'));
      for (int i = 0; i < 4; ++i) (void)session.stream->Write(m);
      m.mutable_read_state()->set_kind(v1::STATE_KIND_MASTER);
      m.mutable_read_state()->set_elems(1);
      for (int i = 0; i < 200; ++i) {
        if (!session.stream->Write(m)) break;
        ++messages_;
      }
    }
    session.context->TryCancel();
    (void)session.stream->Finish();
  }

  const std::string address_;
  std::mt19937_64 random_;
  std::unique_ptr<v1::Stowage::Stub> stub_;
  long long bytes_ = 0;
  long long streams_ = 0;
  long long messages_ = 0;
  long long unary_ = 0;
  long long segments_ = 0;
};

}  // namespace
}  // namespace stowage

int main(int argc, char** argv) {
  if (argc != 4 || std::strncmp(argv[1], "unix:", 5) != 0) {
    std::fprintf(stderr, "usage: hostile_client unix:PATH SECONDS SEED\n");
    return 2;
  }
  stowage::Hostile(argv[1], std::strtoull(argv[3], nullptr, 10))
      .RunUntil(stowage::Clock::now() +
                std::chrono::milliseconds(
                    static_cast<std::int64_t>(1e3 * std::atof(argv[2]))));
  return 0;
}
