#include "tests/support/nvme_job.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace stowage::testing {
namespace {

struct FreeDeleter {
  void operator()(std::byte* memory) const { std::free(memory); }
};

struct Payload {
  std::unique_ptr<std::byte, FreeDeleter> memory;
  std::span<std::byte> bytes;
};

Payload MakePayload(std::int64_t bytes) {
  Payload payload;
  const auto size = static_cast<std::size_t>(bytes);
  payload.memory.reset(static_cast<std::byte*>(std::aligned_alloc(4096, size)));
  payload.bytes = {payload.memory.get(), size};
  return payload;
}

std::byte ParamByte(std::int64_t step, std::int32_t unit, std::size_t i) {
  return static_cast<std::byte>(static_cast<std::uint64_t>(step) * 31 +
                                static_cast<std::uint64_t>(unit) * 7 + i * 131 +
                                (i >> 12));
}

}  // namespace

NvmeJob::NvmeJob(int copies) {
  LayoutSpec spec;
  spec.param_dtype = Dtype::kBf16;
  spec.groups = {
      {.name = "decay"}, {.name = "plain"}, {.name = "ice", .frozen = true}};
  for (int copy = 0; copy < copies; ++copy) {
    const std::string c = absl::StrCat(copy);
    spec.units.push_back(
        {.name = "embed" + c,
         .params = {{.name = "e.w" + c, .shape = {500, 257}, .group_index = 0},
                    {.name = "e.b" + c, .shape = {257}, .group_index = 1}}});
    spec.units.push_back(
        {.name = "wide" + c,
         .params = {{.name = "w.w" + c, .shape = {450, 513}, .group_index = 0},
                    {.name = "w.f" + c, .shape = {900}, .group_index = 2}}});
    spec.units.push_back(
        {.name = "ice" + c,
         .params = {{.name = "i" + c, .shape = {3000}, .group_index = 2}}});
    spec.units.push_back(
        {.name = "norm" + c,
         .params = {{.name = "n" + c, .shape = {17}, .group_index = 1}}});
    spec.units.push_back(
        {.name = "head" + c,
         .params = {{.name = "h" + c, .shape = {100, 200}, .group_index = 0}}});
  }
  layout_ = *Layout::Create(spec);
  for (std::size_t c = 0; c < layout_.chunks().size(); ++c) {
    order_.push_back(static_cast<std::int32_t>(c));
  }
}

float NvmeJob::Value(std::int64_t step, int array, std::int64_t chunk,
                     std::int64_t element) {
  return static_cast<float>(step * 1000 + std::int64_t{array} * 100 + chunk) +
         static_cast<float>(element % 1024) / 1024;
}

storage::CommitRecord NvmeJob::Record(std::int64_t step) {
  return {.step = step,
          .applied_steps = step,
          .client_state = absl::StrCat("state of step ", step)};
}

absl::Status NvmeJob::WriteParams(storage::NvmeStore& store,
                                  std::int64_t step) const {
  if (store.params() == nullptr) return absl::OkStatus();
  for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
    const std::int64_t bytes = store.params()->payload_bytes(u);
    const Payload payload = MakePayload(bytes);
    for (std::size_t i = 0; i < payload.bytes.size(); ++i) {
      payload.bytes[i] = ParamByte(step, u, i);
    }
    STOWAGE_RETURN_IF_ERROR(store.params()->StartWrite(u, payload.bytes));
    STOWAGE_RETURN_IF_ERROR(store.params()->Await(u));
  }
  return absl::OkStatus();
}

absl::Status NvmeJob::Initialize(storage::NvmeStore& store) const {
  for (std::size_t c = 0; c < layout_.chunks().size(); ++c) {
    const Layout::Chunk& chunk = layout_.chunks()[c];
    std::vector<float> values(static_cast<std::size_t>(chunk.elems));
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = Value(0, 0, static_cast<std::int64_t>(c),
                        static_cast<std::int64_t>(i));
    }
    STOWAGE_RETURN_IF_ERROR(
        store.Put(chunk.unit_index, chunk.begin_elems, values));
  }
  STOWAGE_RETURN_IF_ERROR(WriteParams(store, 0));
  return store.Commit(Record(0));
}

absl::Status NvmeJob::UpdateState(storage::NvmeStore& store,
                                  std::int64_t* wrong) const {
  const std::int64_t step = store.committed().step;
  STOWAGE_RETURN_IF_ERROR(store.BeginUpdate(order_));
  for (;;) {
    STOWAGE_ASSIGN_OR_RETURN(const storage::UpdateWindow window,
                             store.AcquireNext());
    if (window.empty()) break;
    for (std::int64_t at = window.begin; at < window.end; ++at) {
      const std::int32_t c = order_[static_cast<std::size_t>(at)];
      const Layout::Chunk& chunk =
          layout_.chunks()[static_cast<std::size_t>(c)];
      STOWAGE_RETURN_IF_ERROR(store.VerifyChunk(at));
      const storage::StateView view = store.View(at);
      float* const arrays[] = {view.master, view.moment1, view.moment2};
      for (int a = 0; a < 3; ++a) {
        for (std::int64_t i = 0; i < chunk.elems; ++i) {
          const float was = step == 0 && a > 0 ? 0.0F : Value(step, a, c, i);
          if (arrays[a][i] != was) ++*wrong;
          arrays[a][i] = Value(step + 1, a, c, i);
        }
      }
      store.ChunkUpdated(at);
    }
    STOWAGE_RETURN_IF_ERROR(store.Release(window));
  }
  return absl::OkStatus();
}

absl::Status NvmeJob::Update(storage::NvmeStore& store,
                             std::int64_t* wrong) const {
  STOWAGE_RETURN_IF_ERROR(UpdateState(store, wrong));
  return WriteParams(store, store.committed().step + 1);
}

absl::Status NvmeJob::Step(storage::NvmeStore& store,
                           std::int64_t* wrong) const {
  STOWAGE_RETURN_IF_ERROR(Update(store, wrong));
  return store.Commit(Record(store.committed().step + 1));
}

void NvmeJob::Expect(storage::NvmeStore& store, std::int64_t step) const {
  ASSERT_EQ(store.committed(), Record(step));
  for (std::size_t c = 0; c < layout_.chunks().size(); ++c) {
    const Layout::Chunk& chunk = layout_.chunks()[c];
    std::vector<float> got(static_cast<std::size_t>(chunk.elems));
    for (int a = 0; a < 3; ++a) {
      const absl::Status read =
          store.Read(chunk.unit_index, static_cast<StateKind>(a + 1),
                     chunk.begin_elems, got);
      ASSERT_TRUE(read.ok()) << read;
      for (std::size_t i = 0; i < got.size(); ++i) {
        const float want = step == 0 && a > 0
                               ? 0.0F
                               : Value(step, a, static_cast<std::int64_t>(c),
                                       static_cast<std::int64_t>(i));
        ASSERT_EQ(got[i], want) << "step " << step << " chunk " << c
                                << " array " << a << " element " << i;
      }
    }
  }
  if (store.params() == nullptr) return;
  for (std::int32_t u = 0; u < layout_.unit_count(); ++u) {
    const Payload payload = MakePayload(store.params()->payload_bytes(u));
    ASSERT_TRUE(store.params()->StartRead(u, payload.bytes).ok());
    const absl::Status read = store.params()->Await(u);
    ASSERT_TRUE(read.ok()) << read;
    for (std::size_t i = 0; i < payload.bytes.size(); ++i) {
      ASSERT_EQ(payload.bytes[i], ParamByte(step, u, i))
          << "step " << step << " unit " << u << " byte " << i;
    }
  }
}

}  // namespace stowage::testing
