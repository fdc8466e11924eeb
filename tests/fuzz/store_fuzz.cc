// A whole store whose files were changed by somebody else, on a simulated disk.
//
// A small job of two kept steps is made once. An input is a list of changes to
// its files: bytes, cuts, pieces put elsewhere, manifests sealed again with a
// right checksum. Then fsck, Peek(), Open(), reads and one more step. Nothing
// may crash, hang or read beyond; and where no manifest was sealed again,
// whatever is read without an error is what was written (never wrong bytes).

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/layout.h"
#include "storage/nvme/crc32c.h"
#include "storage/nvme/fsck.h"
#include "storage/nvme/manifest.h"
#include "storage/nvme/nvme_store.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/support/nvme_testing.h"

namespace stowage::storage {
namespace {

constexpr std::int64_t kLastStep = 2;

const Layout& SmallLayout() {
  static const Layout layout = [] {
    LayoutSpec spec;
    spec.param_dtype = Dtype::kBf16;
    spec.groups = {{.name = "g"}, {.name = "ice", .frozen = true}};
    spec.units = {
        {.name = "a",
         .params = {{.name = "a.w", .shape = {100}, .group_index = 0}}},
        {.name = "b",
         .params = {{.name = "b.w", .shape = {7, 10}, .group_index = 0},
                    {.name = "b.ice", .shape = {5}, .group_index = 1}}}};
    return *Layout::Create(spec);
  }();
  return layout;
}

float Value(std::int64_t step, int array, std::int64_t chunk, std::int64_t i) {
  return static_cast<float>(step * 4096 + array * 1024 + chunk * 256 + i);
}

NvmeStoreOptions Options(Disk* disk) {
  NvmeStoreOptions options = testing::SmallNvmeOptions();
  options.kept_versions = 2;
  options.job_record = "record";
  options.disk = disk;
  return options;
}

// Writes step `step` + 1.
absl::Status Step(NvmeStore& store, std::int64_t step) {
  const Layout& layout = SmallLayout();
  std::vector<std::int32_t> order;
  for (std::size_t c = 0; c < layout.chunks().size(); ++c) {
    order.push_back(static_cast<std::int32_t>(c));
  }
  if (absl::Status s = store.BeginUpdate(order); !s.ok()) return s;
  for (;;) {
    const auto window = store.AcquireNext();
    if (!window.ok()) return window.status();
    if (window->empty()) break;
    for (std::int64_t at = window->begin; at < window->end; ++at) {
      if (absl::Status s = store.VerifyChunk(at); !s.ok()) return s;
      const StateView view = store.View(at);
      float* const arrays[] = {view.master, view.moment1, view.moment2};
      const std::int64_t elems =
          layout.chunks()[static_cast<std::size_t>(at)].elems;
      for (int a = 0; a < 3; ++a) {
        for (std::int64_t i = 0; i < elems; ++i) {
          arrays[a][i] = Value(step + 1, a, at, i);
        }
      }
      store.ChunkUpdated(at);
    }
    if (absl::Status s = store.Release(*window); !s.ok()) return s;
  }
  return store.Commit(
      {.step = step + 1, .applied_steps = step + 1, .client_state = ""});
}

// The job's files as a proper server left them.
const std::map<std::string, std::string>& Pristine() {
  static const std::map<std::string, std::string> files = [] {
    testing::SimulatedDisk disk({});
    const NvmeStoreOptions options = Options(&disk);
    for (const std::string& path : options.paths) {
      STOWAGE_FUZZ_CHECK(disk.MakeFolder(path).ok(), path);
    }
    auto store = testing::CreateNvmeStore(SmallLayout(), options);
    STOWAGE_FUZZ_CHECK(store.ok(), store.status().ToString());
    const auto& chunks = SmallLayout().chunks();
    for (std::size_t c = 0; c < chunks.size(); ++c) {
      std::vector<float> values(static_cast<std::size_t>(chunks[c].elems));
      STOWAGE_FUZZ_CHECK(
          (*store)
              ->Put(chunks[c].unit_index, chunks[c].begin_elems, values)
              .ok(),
          "");
    }
    STOWAGE_FUZZ_CHECK(
        (*store)
            ->Commit({.step = 0, .applied_steps = 0, .client_state = ""})
            .ok(),
        "");
    for (std::int64_t step = 0; step < kLastStep; ++step) {
      STOWAGE_FUZZ_CHECK(Step(**store, step).ok(), "");
    }
    STOWAGE_FUZZ_CHECK((*store)->Close().ok(), "");
    std::map<std::string, std::string> made;
    for (const std::string& path : options.paths) {
      const std::string folder = StoreFolder(path, options.job_name);
      const std::vector<std::string> names = *disk.List(folder);
      for (const std::string& name : names) {
        made[folder + "/" + name] = disk.Contents(folder + "/" + name);
      }
    }
    return made;
  }();
  return files;
}

// Gives the slot that begins at `from` a right checksum.
void Reseal(std::string* manifest, std::size_t from) {
  if (manifest->size() < from + 24) return;
  std::uint64_t body = 0;
  std::memcpy(&body, manifest->data() + from + 16, sizeof(body));
  if (body > manifest->size() - from - 24) return;
  const std::uint32_t sum = Crc32c(std::as_bytes(
      std::span<const char>(*manifest).subspan(from + 16, 8 + body)));
  std::memcpy(manifest->data() + from + 12, &sum, sizeof(sum));
}

// Returns: whether a record was sealed again.
bool Tamper(fuzz::Input& input, std::map<std::string, std::string>* files) {
  bool sealed = false;
  for (int change = 0; change < 16 && !input.empty(); ++change) {
    auto at = files->begin();
    std::advance(at, input.Below(static_cast<std::int32_t>(files->size())));
    std::string& bytes = at->second;
    const auto what = input.Get<std::uint8_t>() % 8;
    const auto a = static_cast<std::size_t>(input.Get<std::uint32_t>());
    const auto b = static_cast<std::size_t>(input.Get<std::uint32_t>());
    const auto n = static_cast<std::size_t>(input.Get<std::uint16_t>());
    if (what == 0) {
      bytes.resize(bytes.empty() ? 0 : a % bytes.size());
    } else if (what == 1) {
      bytes.resize(bytes.size() + n);
    } else if (what == 2) {
      sealed = true;
      Reseal(&bytes, 0);
      Reseal(&bytes, bytes.size() / 2);
    } else if (bytes.empty()) {
      continue;
    } else if (what == 3) {  // one piece in another's place
      const std::size_t from = a % bytes.size();
      const std::size_t to = b % bytes.size();
      const std::size_t most =
          std::min({n, bytes.size() - from, bytes.size() - to});
      const std::string piece = bytes.substr(from, most);
      bytes.replace(to, most, piece);
    } else {
      const std::string value = input.Bytes(32);
      const std::size_t to = a % bytes.size();
      const std::size_t most = std::min(value.size(), bytes.size() - to);
      bytes.replace(to, most, value.substr(0, most));
    }
  }
  return sealed;
}

void CheckValues(NvmeStore& store) {
  const auto& chunks = SmallLayout().chunks();
  const std::int64_t step = store.committed().step;
  STOWAGE_FUZZ_CHECK(step >= 0 && step <= kLastStep, "a step of nobody");
  for (std::size_t c = 0; c < chunks.size(); ++c) {
    std::vector<float> got(static_cast<std::size_t>(chunks[c].elems));
    for (int a = 0; a < 3; ++a) {
      if (!store
               .Read(chunks[c].unit_index, static_cast<StateKind>(a + 1),
                     chunks[c].begin_elems, got)
               .ok()) {
        continue;
      }
      for (std::size_t i = 0; i < got.size(); ++i) {
        const float wanted = step == 0
                                 ? 0.0F
                                 : Value(step, a, static_cast<std::int64_t>(c),
                                         static_cast<std::int64_t>(i));
        STOWAGE_FUZZ_CHECK(got[i] == wanted, "wrong bytes without an error");
      }
    }
  }
}

void One(fuzz::Input input) {
  std::map<std::string, std::string> files = Pristine();
  const bool sealed = Tamper(input, &files);
  testing::SimulatedDisk disk({});
  const NvmeStoreOptions options = Options(&disk);
  for (const std::string& path : options.paths) {
    STOWAGE_FUZZ_CHECK(disk.MakeFolder(path).ok(), path);
    STOWAGE_FUZZ_CHECK(
        disk.MakeFolder(StoreFolder(path, options.job_name)).ok(), path);
  }
  for (auto& [path, bytes] : files) {
    STOWAGE_FUZZ_CHECK(disk.Replace(path, "").ok(), path);
    disk.SetContents(path, std::move(bytes));
  }
  (void)Fsck(options.paths[0], options.job_name, &disk);
  (void)NvmeStore::Peek(options.paths[0], options.job_name, &disk);
  auto store = testing::OpenNvmeStore(SmallLayout(), options);
  if (!store.ok()) {
    STOWAGE_FUZZ_CHECK(!store.status().message().empty(), "a bare code");
    return;
  }
  if (!sealed) CheckValues(**store);
  const std::int64_t before = (*store)->committed().step;
  if (before < 0 || before > kLastStep) return;
  if (Step(**store, before).ok() && !sealed) {
    STOWAGE_FUZZ_CHECK((*store)->committed().step == before + 1, "");
  } else {
    (void)(*store)->Abandon();
  }
  (void)(*store)->Close();
}

}  // namespace
}  // namespace stowage::storage

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  stowage::storage::One(stowage::fuzz::Input(data, size));
  return 0;
}
