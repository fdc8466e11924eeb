// A real stowd in a process of its own, and trainers' ranks that reach it
// through the client library: for the tests of client and server together.
//
// STOWAGE_BIN_DIR names the folder of stowd (ctest sets it).

#pragma once

#include <dirent.h>
#include <sys/types.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/offload_client.h"
#include "client/private_server.h"
#include "common/check.h"
#include "common/dtype.h"
#include "common/job_spec.h"
#include "gtest/gtest.h"
#include "tests/support/fake_rank.h"

namespace stowage::testing {

inline std::string StowdBinary() {
  const char* folder = std::getenv("STOWAGE_BIN_DIR");
  STOWAGE_CHECK(folder != nullptr);
  return absl::StrCat(folder, "/stowd");
}

// Names in a folder; empty if there is no such folder.
inline std::vector<std::string> FilesIn(const std::string& folder) {
  std::vector<std::string> names;
  DIR* open = ::opendir(folder.c_str());
  if (open == nullptr) return names;
  while (const dirent* entry = ::readdir(open)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  ::closedir(open);
  return names;
}

inline std::string FolderOfSocket(const std::string& address) {
  return address.substr(std::strlen("unix:"),
                        address.rfind('/') - std::strlen("unix:"));
}

// A small model: two groups, one of them frozen, three units.
inline JobSpec SmallJob(const std::string& name, Dtype dtype = Dtype::kBf16) {
  JobSpec job;
  job.name = name;
  job.layout.param_dtype = dtype;
  job.layout.groups = {{"decay", false}, {"no_decay", false}, {"frozen", true}};
  job.layout.units = {
      {"embed", {{"embed.weight", {97, 33}, 0}, {"embed.table", {50}, 2}}},
      {"block.0",
       {{"block.0.fc.weight", {128, 300}, 0}, {"block.0.fc.bias", {300}, 1}}},
      {"head", {{"head.weight", {40, 70}, 0}, {"head.norm", {70}, 1}}}};
  return job;
}

inline RunSpec SmallRun(std::int32_t ranks, std::int32_t micro_steps,
                        char nonce = 'a') {
  RunSpec run;
  run.nonce = std::string(16, nonce);
  run.world_size = ranks;
  run.local_ranks = ranks;
  run.micro_steps = micro_steps;
  return run;
}

inline float InitialValue(std::int32_t unit, std::int64_t element) {
  return HashedValue(1, unit, element);
}

inline float BatchGradient(std::int64_t step, std::int32_t batch,
                           std::int32_t unit, std::int64_t element) {
  return HashedValue(static_cast<std::uint64_t>(100 + step * 64 + batch), unit,
                     element);
}

inline ApplyArgs ApplyFor(std::int64_t step, std::int32_t groups = 3) {
  ApplyArgs args;
  args.step = step;
  args.gradient_factor = 0.25;
  args.groups.assign(static_cast<std::size_t>(groups),
                     GroupStep{0.01, 0.9, 0.999, 1e-8, 0.1});
  args.client_state = absl::StrCat("state after ", step + 1);
  return args;
}

class ClientServerTest : public ::testing::Test {
 protected:
  void StartServer(std::vector<std::string> extra_args = {}) {
    client::PrivateServer::Options options;
    options.binary = StowdBinary();
    options.shm_dir = shm_.path();
    options.threads = 2;
    options.extra_args = {"--memory-limit", "256MiB", "--log-level", "info"};
    options.extra_args.insert(options.extra_args.end(), extra_args.begin(),
                              extra_args.end());
    auto server = client::PrivateServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  std::unique_ptr<client::OffloadClient> Connect() {
    auto client = client::OffloadClient::Connect(server_->address(), {});
    EXPECT_TRUE(client.ok()) << client.status();
    return client.ok() ? *std::move(client) : nullptr;
  }

  ShmFolder shm_;
  std::unique_ptr<client::PrivateServer> server_;
};

// One rank over the client library, as a trainer would drive it.
class ClientRank {
 public:
  static absl::StatusOr<std::unique_ptr<ClientRank>> Attach(
      const std::string& address, const JobSpec& job, const RunSpec& run,
      std::int32_t local_rank) {
    auto rank = std::make_unique<ClientRank>();
    auto client = client::OffloadClient::Connect(address, {});
    if (!client.ok()) return client.status();
    rank->client_ = *std::move(client);
    client::SessionOptions options;
    options.wait_timeout = std::chrono::seconds(60);
    auto session = rank->client_->Attach(job, run, local_rank, options);
    if (!session.ok()) return session.status();
    rank->session_ = *std::move(session);
    rank->run_ = run;
    return rank;
  }

  client::Session& session() { return *session_; }
  client::OffloadClient& client() { return *client_; }
  void Drop() { session_.reset(); }  // a rank that dies

  absl::Status Initialize() {
    if (session_->local_rank() == 0) {
      for (std::int32_t u = 0; u < session_->layout().unit_count(); ++u) {
        std::vector<float> values(static_cast<std::size_t>(UnitOf(u).elems));
        for (const Layout::Param& param : UnitOf(u).params) {
          for (std::int64_t i = param.begin_elems;
               i < param.begin_elems + param.elems; ++i) {
            values[static_cast<std::size_t>(i)] = InitialValue(u, i);
          }
        }
        absl::Status s = session_->PutState(u, 0, values);
        if (!s.ok()) return s;
      }
    }
    return session_->FinishInitialization();
  }

  // One step: wait for the parameters, write gradients, prepare, apply.
  absl::StatusOr<Verdict> Step(std::int64_t step) {
    for (std::int32_t u = 0; u < session_->layout().unit_count(); ++u) {
      if (absl::Status s = session_->WaitVersion(u, step); !s.ok()) return s;
    }
    for (std::int32_t micro = 0; micro < run_.micro_steps; ++micro) {
      for (std::int32_t u = session_->layout().unit_count() - 1; u >= 0; --u) {
        if (absl::Status s = Gradient(step, micro, u); !s.ok()) return s;
      }
    }
    absl::StatusOr<Verdict> verdict =
        session_->Prepare(step, std::vector<double>{0.5});
    if (!verdict.ok()) return verdict;
    if (absl::Status s = session_->Apply(ApplyFor(step)); !s.ok()) return s;
    return verdict;
  }

  absl::Status Gradient(std::int64_t step, std::int32_t micro, std::int32_t u) {
    if (session_->info().slots_are_ring) {
      absl::Status s = session_->WaitLanded(u, step * run_.micro_steps + micro);
      if (!s.ok()) return s;
    }
    const std::int32_t batch =
        micro * run_.local_ranks + session_->local_rank();
    std::byte* slot = session_->gradient_slot(micro, u).data();
    for (const Layout::Param& param : UnitOf(u).params) {
      if (param.frozen) continue;
      for (std::int64_t i = param.begin_elems;
           i < param.begin_elems + param.elems; ++i) {
        const float value = BatchGradient(step, batch, u, i);
        if (session_->layout().param_dtype() == Dtype::kFp32) {
          reinterpret_cast<float*>(slot)[i] = value;
        } else {
          reinterpret_cast<std::uint16_t*>(slot)[i] = FloatToBf16(value);
        }
      }
    }
    return session_->Notice(step, micro, u, /*empty=*/false);
  }

  // Masters, moments and parameters, in FakeRank::ReadEverything's order.
  std::vector<float> ReadEverything() {
    std::vector<float> all;
    for (const StateKind kind : {StateKind::kMaster, StateKind::kMoment1,
                                 StateKind::kMoment2, StateKind::kParam}) {
      for (std::int32_t u = 0; u < session_->layout().unit_count(); ++u) {
        std::vector<float> part(static_cast<std::size_t>(
            kind == StateKind::kParam ? UnitOf(u).elems
                                      : UnitOf(u).trainable_elems));
        const absl::Status s = session_->ReadState(u, kind, 0, part);
        EXPECT_TRUE(s.ok()) << s;
        all.insert(all.end(), part.begin(), part.end());
      }
    }
    return all;
  }

 private:
  const Layout::Unit& UnitOf(std::int32_t u) const {
    return session_->layout().units()[static_cast<std::size_t>(u)];
  }

  std::unique_ptr<client::OffloadClient> client_;
  std::unique_ptr<client::Session> session_;
  RunSpec run_;
};

}  // namespace stowage::testing
