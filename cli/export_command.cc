// stowctl export: a checkpoint's parameters, or a live job's, as one set of
// safetensors files that Hugging Face's loaders take.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/command.h"
#include "common/absolute_path.h"
#include "common/bytes.h"
#include "common/status_macros.h"
#include "storage/checkpoint/folder.h"
#include "storage/checkpoint/reader.h"
#include "storage/checkpoint/writer.h"

namespace stowage::cli {
namespace {

// Elements that are in memory at a time, beside one block of the reader and one
// of the writer.
constexpr std::int64_t kPieceElems = std::int64_t{1} << 20;

struct Flags {
  std::string source;
  std::string folder;
  std::string dtype;
  std::int64_t step = -1;
  std::int64_t shard_bytes = storage::kTensorFileBytes;
  bool live = false;
};

void Round(const std::vector<float>& from, Dtype dtype,
           std::vector<std::byte>* to) {
  to->resize(from.size() * static_cast<std::size_t>(DtypeBytes(dtype)));
  if (dtype == Dtype::kFp32) {
    std::copy_n(reinterpret_cast<const std::byte*>(from.data()), to->size(),
                to->begin());
    return;
  }
  auto* out = reinterpret_cast<std::uint16_t*>(to->data());
  for (std::size_t i = 0; i < from.size(); ++i) {
    out[i] =
        dtype == Dtype::kBf16 ? FloatToBf16(from[i]) : FloatToFp16(from[i]);
  }
}

float Widen(const std::byte* from, Dtype dtype) {
  std::uint16_t bits = 0;
  if (dtype == Dtype::kFp32) {
    float value = 0;
    std::copy_n(from, sizeof(value), reinterpret_cast<std::byte*>(&value));
    return value;
  }
  std::copy_n(from, sizeof(bits), reinterpret_cast<std::byte*>(&bits));
  return dtype == Dtype::kBf16 ? Bf16ToFloat(bits) : Fp16ToFloat(bits);
}

absl::Status CopyTensor(storage::CheckpointReader& reader,
                        const std::string& kind,
                        const storage::TensorSpec& from, Dtype dtype,
                        storage::CheckpointWriter& writer) {
  std::vector<std::byte> raw;
  std::vector<float> values;
  std::vector<std::byte> rounded;
  const std::int64_t width = DtypeBytes(from.dtype);
  for (std::int64_t at = 0; at < from.elems(); at += kPieceElems) {
    const std::int64_t elems = std::min(kPieceElems, from.elems() - at);
    raw.resize(static_cast<std::size_t>(elems * width));
    STOWAGE_RETURN_IF_ERROR(reader.Read(kind, from.name, at * width, raw));
    if (from.dtype == dtype) {
      STOWAGE_RETURN_IF_ERROR(writer.Append(storage::kKindModel, raw));
      continue;
    }
    values.resize(static_cast<std::size_t>(elems));
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] =
          Widen(raw.data() + i * static_cast<std::size_t>(width), from.dtype);
    }
    Round(values, dtype, &rounded);
    STOWAGE_RETURN_IF_ERROR(writer.Append(storage::kKindModel, rounded));
  }
  return absl::OkStatus();
}

absl::Status ExportCheckpoint(const Flags& flags) {
  STOWAGE_ASSIGN_OR_RETURN(
      const std::string path,
      storage::FindCheckpoint(AbsolutePath(flags.source), flags.step));
  STOWAGE_ASSIGN_OR_RETURN(storage::CheckpointReader reader,
                           storage::CheckpointReader::Open(path));
  Dtype dtype = reader.manifest().layout.param_dtype;
  if (!flags.dtype.empty()) {
    STOWAGE_ASSIGN_OR_RETURN(dtype, ParseDtype(flags.dtype));
  }
  const std::string target = AbsolutePath(flags.folder);
  std::error_code error;
  std::filesystem::create_directories(
      std::filesystem::path(target).parent_path(), error);
  if (std::filesystem::exists(target, error)) {
    return absl::AlreadyExistsError(
        absl::StrCat("export: ", target, " is there already"));
  }
  struct Source {
    const char* kind;
    storage::TensorSpec spec;
  };
  std::vector<Source> sources;
  std::vector<storage::TensorSpec> tensors;
  for (const char* kind : {storage::kKindMaster, storage::kKindFrozen}) {
    for (const storage::TensorSpec& spec : reader.Tensors(kind)) {
      sources.push_back({kind, spec});
      tensors.push_back({spec.name, dtype, spec.shape});
    }
  }
  storage::CheckpointManifest manifest = reader.manifest();
  manifest.files.clear();
  manifest.node = 0;
  manifest.nodes = 1;
  STOWAGE_ASSIGN_OR_RETURN(
      const std::unique_ptr<storage::CheckpointWriter> writer,
      storage::CheckpointWriter::Create(target, manifest,
                                        {{storage::kKindModel, tensors}},
                                        flags.shard_bytes));
  for (const Source& source : sources) {
    STOWAGE_RETURN_IF_ERROR(
        CopyTensor(reader, source.kind, source.spec, dtype, *writer));
  }
  STOWAGE_ASSIGN_OR_RETURN(const std::string made, writer->Publish());
  absl::PrintF("%s: step %d, %d tensors, %s\n", made, manifest.step,
               tensors.size(), HumanBytes(writer->total_bytes()));
  return absl::OkStatus();
}

absl::Status ExportJob(const Invocation& invocation, const Flags& flags) {
  STOWAGE_ASSIGN_OR_RETURN(auto client, Connect(invocation));
  SaveSpec spec;
  spec.job = flags.source;
  spec.folder = AbsolutePath(flags.folder);
  spec.model = true;
  spec.state = false;
  STOWAGE_ASSIGN_OR_RETURN(SaveInfo save, client->SaveJob(spec));
  while (save.running()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    STOWAGE_ASSIGN_OR_RETURN(save, client->GetSave(flags.source));
  }
  if (save.phase != SavePhase::kDone) {
    return absl::DataLossError(absl::StrCat("export of job \"", flags.source,
                                            "\": step ", save.step, ": ",
                                            save.error));
  }
  absl::PrintF("%s: step %d, %s in %.1f s\n", save.path, save.step,
               HumanBytes(save.bytes_total), save.seconds);
  return absl::OkStatus();
}

}  // namespace

void AddExportCommand(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "export",
      "Write a checkpoint's parameters, or a live job's, as a set of "
      "safetensors files");
  command
      ->add_option("SOURCE", flags->source,
                   "A checkpoint, a folder of them, or (--live) a job")
      ->required();
  command
      ->add_option("OUT", flags->folder,
                   "Folder to make; --live: folder below a --export-root, in "
                   "which model-N is made")
      ->required();
  command->add_flag("--live", flags->live,
                    "SOURCE is a job of the server, which writes its last step "
                    "while it trains on");
  command->add_option("--step", flags->step,
                      "Step of the checkpoint; default: the one saved last");
  command
      ->add_option("--dtype", flags->dtype,
                   "fp32, bf16 or fp16; default: what the ranks used")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
  command
      ->add_option("--shard-bytes", flags->shard_bytes,
                   "Cut files at about so many bytes")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 50))
      ->capture_default_str();
  command->callback([&invocation, flags] {
    invocation.run = [&invocation, flags] {
      return flags->live ? ExportJob(invocation, *flags)
                         : ExportCheckpoint(*flags);
    };
  });
}

}  // namespace stowage::cli
