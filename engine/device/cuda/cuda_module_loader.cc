#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/environment.h"
#include "common/status_macros.h"
#include "engine/device/cuda/cuda_module.h"

namespace stowage::engine {
namespace {

std::vector<std::string> Places() {
  if (const std::string named = Environment("STOWAGE_CUDA_MODULE");
      !named.empty()) {
    return {named};
  }
  std::error_code error;
  const std::filesystem::path program =
      std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return {};
  const std::filesystem::path folder = program.parent_path();
  return {folder / kCudaModuleFile,
          folder.parent_path() / "bin" / kCudaModuleFile,
          folder.parent_path() / "lib" / "stowage" / kCudaModuleFile};
}

absl::StatusOr<const CudaModule*> Load() {
  const std::vector<std::string> places = Places();
  std::string path;
  for (const std::string& place : places) {
    std::error_code error;
    if (path.empty() && std::filesystem::exists(place, error)) path = place;
  }
  if (path.empty()) {
    return absl::UnimplementedError(absl::StrCat(
        "cuda: no module at ", absl::StrJoin(places, ", "),
        "; build it with 'tools/build cuda', which needs the CUDA toolkit"));
  }
  // Never unloaded: LibTorch keeps what it registers. Bound at once, so that
  // what is missing shows here.
  void* const library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("cuda: load ", path, ": ", ::dlerror()));
  }
  void* const entry = ::dlsym(library, kCudaModuleEntry);
  if (entry == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("cuda: ", path, " has no ", kCudaModuleEntry));
  }
  const CudaModule* const module =
      reinterpret_cast<decltype(&StowageCudaModule)>(entry)();
  if (module->interface != kCudaModuleInterface) {
    return absl::FailedPreconditionError(absl::StrCat(
        "cuda: ", path, " has interface ", module->interface, ", this program ",
        kCudaModuleInterface, ": build both anew"));
  }
  return module;
}

}  // namespace

absl::StatusOr<const CudaModule*> LoadCudaModule() {
  static const absl::StatusOr<const CudaModule*> loaded = Load();
  return loaded;
}

absl::StatusOr<std::unique_ptr<Device>> Device::MakeCuda(int index) {
  STOWAGE_ASSIGN_OR_RETURN(const CudaModule* const module, LoadCudaModule());
  return module->make_device(index);
}

absl::StatusOr<NcclGroup> MakeNcclGroup(
    const c10::intrusive_ptr<c10d::Store>& store, int rank, int ranks,
    std::chrono::milliseconds timeout) {
  STOWAGE_ASSIGN_OR_RETURN(const CudaModule* const module, LoadCudaModule());
  return module->make_nccl_group(store, rank, ranks, timeout);
}

}  // namespace stowage::engine
