// The server's compute threads: a parallel loop over chunks, nothing else.
//
// A job's thread calls ParallelFor() and works on the chunks itself; helpers
// join as they wake. Chunks are claimed one by one from an atomic counter in
// ascending order, and the call returns when all chunks are *done*, not when
// all helpers have checked in: a helper that the kernel schedules late costs
// nothing. Several jobs may call at once; helpers then serve whatever is open.
// Which thread runs a chunk is left to chance, so nothing that a chunk computes
// may depend on it.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace stowage::core {

// Thread safety: thread-safe.
// Shutdown: the destructor joins the helpers; no ParallelFor may be running.
class ComputeTeam {
 public:
  // `threads` compute at once for one caller: the caller and threads - 1
  // helpers. Requires: threads >= 1.
  explicit ComputeTeam(int threads);
  ComputeTeam(const ComputeTeam&) = delete;
  ComputeTeam& operator=(const ComputeTeam&) = delete;
  ~ComputeTeam();

  int threads() const { return threads_; }

  // Runs body(i) once for each i in [0, count), on several threads.
  // Requires: count < 2^31; body does not throw.
  // Blocks: until all are done. Allocates nothing.
  template <typename Body>
  void ParallelFor(std::int64_t count, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    Run(
        count,
        [](void* context, std::int64_t index) {
          (*static_cast<Plain*>(context))(index);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Function = void (*)(void* context, std::int64_t index);

  // One loop in progress. `claim` holds (generation << 32 | next index); it is
  // what makes a late helper harmless: it reads the other fields, then claims
  // an index by compare-and-swap, which fails if the slot has been reused
  // since.
  struct alignas(64) Task {
    std::atomic<std::uint64_t> claim{0};
    std::atomic<std::uint32_t> count{0};
    std::atomic<Function> function{nullptr};
    std::atomic<void*> context{nullptr};
    std::atomic<bool> taken{false};  // by a caller
    alignas(64) std::atomic<std::uint32_t> done{0};
    std::atomic<std::uint32_t> caller_sleeps{0};
  };
  static constexpr int kTasksMax = 16;  // more callers work alone

  void Run(std::int64_t count, Function function, void* context);
  Task* TakeTask();
  // Works on `task` until nothing is left to claim; returns if it did any.
  static bool Work(Task& task);
  static void WaitDone(Task& task, std::uint32_t count);
  void HelperMain();

  const int threads_;
  std::array<Task, kTasksMax> tasks_;
  // Bumped for every new task; helpers sleep on it.
  alignas(64) std::atomic<std::uint32_t> news_{0};
  std::atomic<std::uint32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> helpers_;
};

}  // namespace stowage::core
