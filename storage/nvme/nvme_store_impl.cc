#include "storage/nvme/nvme_store_impl.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/bytes.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "storage/nvme/crc32c.h"

namespace stowage::storage {
namespace {

// The kernel registers at most 1 GiB as one buffer.
constexpr std::int64_t kBufferBytesMax = kGiB;

absl::StatusOr<std::unique_ptr<TransferQueue>> NewQueue(
    Disk& disk, const NvmeStoreOptions& options, const ExtentFiles& files,
    std::span<const std::span<std::byte>> buffers) {
  const auto paths = static_cast<std::int32_t>(files.files.size());
  const std::int64_t depth = std::min<std::int64_t>(
      std::int64_t{options.queue_depth} * options.threads * paths, 4096);
  STOWAGE_ASSIGN_OR_RETURN(
      std::unique_ptr<IoEngine> engine,
      disk.NewEngine(options.backend,
                     {.queue_depth = static_cast<std::int32_t>(depth),
                      .threads = options.threads * paths,
                      .single_submit = options.single_submit},
                     files.pointers(), buffers));
  std::int64_t align = 1;
  for (const std::unique_ptr<DiskFile>& file : files.files) {
    align = std::max(align, file->alignment().offset_bytes);
  }
  return std::make_unique<TransferQueue>(
      std::move(engine),
      TransferOptions{.block_bytes = options.block_size,
                      .align_bytes = align,
                      .overlap_events = options.overlap_events});
}

}  // namespace

NvmeStoreImpl::NvmeStoreImpl(const Layout& layout, Parts parts)
    : layout_(layout),
      options_(std::move(parts.options)),
      shape_(std::move(parts.shape)),
      plan_(parts.plan),
      names_(shape_.job_name, layout),
      disk_(*parts.disk),
      writes_cached_(options_.durability == Durability::kPower),
      files_(std::move(parts.files)),
      arena_(std::move(parts.arena)),
      job_record_(std::move(parts.job_record)),
      table_(files_.state.map),
      book_(map().extents().size(), map().shape().places),
      staged_(static_cast<std::size_t>(plan_.slots)),
      residents_(map().extents().size()) {}

absl::StatusOr<std::unique_ptr<NvmeStoreImpl>> NvmeStoreImpl::Make(
    const Layout& layout, Parts parts) {
  auto store = absl::WrapUnique(new NvmeStoreImpl(layout, std::move(parts)));
  NvmeStoreImpl& s = *store;
  const MemoryPlan& plan = s.plan_;
  for (std::int32_t i = 0; i < plan.slots && plan.slot_bytes > 0; ++i) {
    s.buffers_.emplace_back(s.slot_data(i),
                            static_cast<std::size_t>(plan.slot_bytes));
  }
  std::byte* cache = s.slot_data(plan.slots);
  for (std::int64_t at = 0; at < plan.cache_bytes; at += kBufferBytesMax) {
    s.buffers_.emplace_back(
        cache + at, static_cast<std::size_t>(
                        std::min(kBufferBytesMax, plan.cache_bytes - at)));
  }
  STOWAGE_ASSIGN_OR_RETURN(
      s.queue_, NewQueue(s.disk_, s.options_, s.files_.state, s.buffers_));
  if (s.shape_.params) {
    STOWAGE_ASSIGN_OR_RETURN(
        std::unique_ptr<TransferQueue> queue,
        NewQueue(s.disk_, s.options_, s.files_.params, {}));
    s.params_ = std::make_unique<UnitStoreImpl>(
        &s.files_.params, &s.names_, std::move(queue), /*versioned=*/true,
        s.shape_.checksums);
  }
  if (s.shape_.gradient_spill) {
    STOWAGE_ASSIGN_OR_RETURN(std::unique_ptr<TransferQueue> queue,
                             NewQueue(s.disk_, s.options_, s.files_.sums, {}));
    s.sums_ = std::make_unique<UnitStoreImpl>(
        &s.files_.sums, &s.names_, std::move(queue), /*versioned=*/false,
        s.shape_.checksums);
  }
  return store;
}

NvmeStoreImpl::~NvmeStoreImpl() {
  // Queues drain while arena and files are still there.
  params_.reset();
  sums_.reset();
  queue_.reset();
}

absl::Status NvmeStoreImpl::Initialize() {
  if (options_.prewrite && plan_.slot_bytes > 0) {
    const std::span<std::byte> zeros(
        arena_.data(),
        static_cast<std::size_t>(
            std::min<std::int64_t>(plan_.slot_bytes, 8 * kMiB) / 4096 * 4096));
    STOWAGE_RETURN_IF_ERROR(
        WriteOnce(files_.state, zeros, *queue_, shape_.job_name));
    for (const ExtentFiles* files : {&files_.params, &files_.sums}) {
      if (files->files.empty()) continue;
      STOWAGE_ASSIGN_OR_RETURN(std::unique_ptr<TransferQueue> queue,
                               NewQueue(disk_, options_, *files, {}));
      STOWAGE_RETURN_IF_ERROR(
          WriteOnce(*files, zeros, *queue, shape_.job_name));
    }
  }
  // Also the second slot is written once.
  STOWAGE_RETURN_IF_ERROR(WriteManifest({}, 1, /*flush=*/false));
  STOWAGE_RETURN_IF_ERROR(WriteManifest({}, 2, /*flush=*/false));
  for (const ExtentFiles* files :
       {&files_.state, &files_.params, &files_.sums}) {
    STOWAGE_RETURN_IF_ERROR(FlushFiles(*files));
  }
  if (const int error = files_.manifest->Flush(); error != 0) {
    return names_.OfFile("flush", *files_.manifest, error);
  }
  STOWAGE_RETURN_IF_ERROR(disk_.Replace(
      JobFileName(shape_.paths.front(), shape_.job_name),
      EncodeJobFile({.layout = layout_.spec(), .job_record = job_record_})));
  sequence_ = 2;
  return absl::OkStatus();
}

absl::Status NvmeStoreImpl::Adopt(const Manifest& manifest) {
  sequence_ = manifest.sequence;
  commits_ = manifest.commits;
  const std::size_t params = params_ ? files_.params.map.extents().size() : 0;
  for (const KeptCommit& commit : commits_) {
    if (commit.state.places.size() != map().extents().size() ||
        commit.state.checksums.size() != map().pieces().size() ||
        commit.params.places.size() != params) {
      return absl::DataLossError(absl::StrCat(
          files_.manifest->path(), ": step ", commit.record.step, " has ",
          commit.state.places.size(), " extents and ",
          commit.params.places.size(), " of parameters, the layout makes ",
          map().extents().size(), " and ", params));
    }
  }
  if (commits_.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        files_.manifest->path(),
        ": the job's initialization was never finished, so there is no step "
        "to open: remove the store and begin anew"));
  }
  const KeptCommit& last = commits_.back();
  const auto lost = std::count(last.state.places.begin(),
                               last.state.places.end(), kPlaceMemory);
  if (lost > 0) {
    return absl::DataLossError(absl::StrCat(
        files_.manifest->path(), ": step ", last.record.step,
        " was committed with durability `memory`: ", lost, " of ",
        last.state.places.size(),
        " extents were only in the memory of a server that did not close the "
        "job. Use durability `power` where a step must outlive the server"));
  }
  AdoptCommits();
  return absl::OkStatus();
}

// Everything that follows from commits_.
void NvmeStoreImpl::AdoptCommits() {
  book_.Clear();
  std::vector<const PlaceTable*> kept_params;
  for (const KeptCommit& commit : commits_) {
    book_.Keep(commit.state);
    kept_params.push_back(&commit.params);
  }
  if (commits_.empty()) return;
  committed_ = commits_.back().record;
  table_ = commits_.back().state;
  if (params_) params_->Adopt(commits_.back().params, kept_params);
}

absl::Status NvmeStoreImpl::CheckUsable() const {
  if (closed_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "NVMe store of job \"", shape_.job_name, "\": it is closed"));
  }
  return lost_;
}

absl::Status NvmeStoreImpl::CheckRange(std::int32_t unit_index,
                                       std::int64_t begin_elems,
                                       std::int64_t elems) const {
  STOWAGE_RETURN_IF_ERROR(CheckUsable());
  if (unit_index < 0 || unit_index >= layout_.unit_count()) {
    return absl::InvalidArgumentError(
        absl::StrCat("state: unit ", unit_index, " of ", layout_.unit_count()));
  }
  const Layout::Unit& unit =
      layout_.units()[static_cast<std::size_t>(unit_index)];
  if (begin_elems < 0 || begin_elems > unit.trainable_elems ||
      elems > unit.trainable_elems - begin_elems) {
    return absl::InvalidArgumentError(
        absl::StrCat("state of unit \"", unit.name, "\": elements [",
                     begin_elems, ", +", elems, ") of ", unit.trainable_elems));
  }
  if (in_pass_) {
    return absl::FailedPreconditionError(
        absl::StrCat("state of unit \"", unit.name, "\": a step is running"));
  }
  return absl::OkStatus();
}

std::int64_t NvmeStoreImpl::PieceAt(std::int64_t position) const {
  return map().chunk_piece(order_[static_cast<std::size_t>(position)]);
}

std::int32_t NvmeStoreImpl::ExtentAt(std::int64_t position) const {
  return map().piece(PieceAt(position)).extent;
}

std::string NvmeStoreImpl::DescribeIo() const {
  if (queue_ == nullptr) return "closed";
  const bool direct = std::all_of(
      files_.state.files.begin(), files_.state.files.end(),
      [](const std::unique_ptr<DiskFile>& file) { return file->direct(); });
  return absl::StrCat(queue_->engine().Describe(),
                      direct ? ", O_DIRECT" : ", through the page cache", ", ",
                      files_.state.files.size(), " folders, checksums ",
                      shape_.checksums ? "on" : "off");
}

// --- Outside a pass -------------------------------------------------------

std::int64_t NvmeStoreImpl::PieceOf(std::int32_t unit_index,
                                    std::int64_t elem) const {
  const auto& extents = map().extents();
  const std::int64_t begin =
      extents[static_cast<std::size_t>(map().unit_begin(unit_index))].begin;
  const std::int64_t end =
      extents[static_cast<std::size_t>(map().unit_begin(unit_index + 1)) - 1]
          .end;
  const auto& pieces = map().pieces();
  const auto after = std::upper_bound(
      pieces.begin() + begin, pieces.begin() + end, elem,
      [](std::int64_t e, const Piece& piece) { return e < piece.begin_elems; });
  return after - pieces.begin() - 1;
}

template <typename Visit>
absl::Status NvmeStoreImpl::ForPieces(std::int32_t unit_index,
                                      std::int64_t begin_elems,
                                      std::int64_t elems, bool modify,
                                      const Visit& visit) {
  std::int64_t at = begin_elems;
  const std::int64_t end = begin_elems + elems;
  if (at >= end) return absl::OkStatus();
  for (std::int64_t p = PieceOf(unit_index, at); at < end; ++p) {
    const Piece& piece = map().piece(p);
    STOWAGE_ASSIGN_OR_RETURN(std::byte * data, Stage(piece.extent));
    if (modify) {
      for (Staged& staged : staged_) {
        if (staged.extent == piece.extent) staged.dirty = true;
      }
    }
    const std::int64_t in_piece = at - piece.begin_elems;
    const std::int64_t count = std::min(end - at, piece.elems - in_piece);
    visit(piece, in_piece, count,
          reinterpret_cast<float*>(data + piece.offset_bytes),
          at - begin_elems);
    at += count;
  }
  return absl::OkStatus();
}

absl::Status NvmeStoreImpl::Put(std::int32_t unit_index,
                                std::int64_t begin_elems,
                                std::span<const float> values) {
  const auto elems = static_cast<std::int64_t>(values.size());
  STOWAGE_RETURN_IF_ERROR(CheckRange(unit_index, begin_elems, elems));
  if (!commits_.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("state: initial values after step ", committed_.step));
  }
  return ForPieces(unit_index, begin_elems, elems, /*modify=*/true,
                   [&](const Piece& piece, std::int64_t in_piece,
                       std::int64_t count, float* state, std::int64_t done) {
                     std::copy_n(values.data() + done, count, state + in_piece);
                     std::fill_n(state + piece.elems + in_piece, count, 0.0F);
                     std::fill_n(state + 2 * piece.elems + in_piece, count,
                                 0.0F);
                   });
}

absl::Status NvmeStoreImpl::PutMoment(std::int32_t unit_index, StateKind kind,
                                      std::int64_t begin_elems,
                                      std::span<const float> values) {
  const auto elems = static_cast<std::int64_t>(values.size());
  STOWAGE_RETURN_IF_ERROR(CheckRange(unit_index, begin_elems, elems));
  const bool moment =
      kind == StateKind::kMoment1 || kind == StateKind::kMoment2;
  if (!moment || !commits_.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("state: moments of kind ", static_cast<int>(kind),
                     " after step ", committed_.step));
  }
  const std::int64_t array = kind == StateKind::kMoment1 ? 1 : 2;
  return ForPieces(unit_index, begin_elems, elems, /*modify=*/true,
                   [&](const Piece& piece, std::int64_t in_piece,
                       std::int64_t count, float* state, std::int64_t done) {
                     std::copy_n(values.data() + done, count,
                                 state + array * piece.elems + in_piece);
                   });
}

absl::Status NvmeStoreImpl::Read(std::int32_t unit_index, StateKind kind,
                                 std::int64_t begin_elems,
                                 std::span<float> out) {
  const auto elems = static_cast<std::int64_t>(out.size());
  STOWAGE_RETURN_IF_ERROR(CheckRange(unit_index, begin_elems, elems));
  std::int64_t array = 0;
  switch (kind) {
    case StateKind::kMaster:
      break;
    case StateKind::kMoment1:
      array = 1;
      break;
    case StateKind::kMoment2:
      array = 2;
      break;
    case StateKind::kParam:
      return absl::InvalidArgumentError(absl::StrCat(
          "state: kind ", static_cast<int>(kind), " is not master or moment"));
  }
  return ForPieces(
      unit_index, begin_elems, elems, /*modify=*/false,
      [&](const Piece& piece, std::int64_t in_piece, std::int64_t count,
          const float* state, std::int64_t done) {
        std::copy_n(state + array * piece.elems + in_piece, count,
                    out.data() + done);
      });
}

absl::StatusOr<std::byte*> NvmeStoreImpl::Stage(std::int32_t extent) {
  DropEarly();  // its slots are needed
  Resident& at = resident(extent);
  if (at.cached && at.valid) return at.data;
  ++stage_clock_;
  std::size_t oldest = 0;
  for (std::size_t s = 0; s < staged_.size(); ++s) {
    if (staged_[s].extent == extent) {
      staged_[s].last_use = stage_clock_;
      return slot_data(static_cast<std::int32_t>(s));
    }
    if (staged_[s].last_use < staged_[oldest].last_use) oldest = s;
  }
  const auto slot = static_cast<std::int32_t>(oldest);
  Staged& staged = staged_[oldest];
  STOWAGE_RETURN_IF_ERROR(FlushStaged(&staged, slot));
  staged = {};
  std::byte* data = slot_data(slot);
  const Extent& shape = map().extent(extent);
  const auto bytes = static_cast<std::size_t>(shape.bytes);
  const std::uint8_t place = table_.places[static_cast<std::size_t>(extent)];
  STOWAGE_CHECK(place != kPlaceMemory);
  if (place == kPlaceZero) {
    std::memset(data, 0, bytes);
  } else {
    Transfer transfer;
    queue_->Start({.write = false,
                   .file = shape.file,
                   .offset_bytes = map().OffsetBytes(extent, place),
                   .buffer = slot},
                  {data, bytes}, &transfer);
    queue_->Wait(transfer);
    stats_.bytes_read += shape.bytes;
    if (!transfer.ok()) {
      return names_.OfTransfer("read", files_.state, extent, place, transfer);
    }
    for (std::int64_t p = shape.begin; shape_.checksums && p < shape.end; ++p) {
      const Piece& piece = map().piece(p);
      const std::uint32_t found = Crc32c(
          {data + piece.offset_bytes, static_cast<std::size_t>(piece.bytes)});
      const std::uint32_t written =
          table_.checksums[static_cast<std::size_t>(p)];
      if (found != written) {
        return names_.OfChecksum(files_.state, p, place, found, written);
      }
    }
  }
  staged = {.extent = extent, .dirty = false, .last_use = stage_clock_};
  return data;
}

// Only before the first commit is anything dirty, so no place is in use.
absl::Status NvmeStoreImpl::FlushStaged(Staged* staged, std::int32_t slot) {
  if (!staged->dirty) return absl::OkStatus();
  STOWAGE_CHECK(commits_.empty());
  const std::int32_t extent = staged->extent;
  const auto e = static_cast<std::size_t>(extent);
  const Extent& shape = map().extent(extent);
  std::byte* data = slot_data(slot);
  for (std::int64_t p = shape.begin; shape_.checksums && p < shape.end; ++p) {
    const Piece& piece = map().piece(p);
    table_.checksums[static_cast<std::size_t>(p)] = Crc32c(
        {data + piece.offset_bytes, static_cast<std::size_t>(piece.bytes)});
  }
  table_.places[e] = 0;
  Transfer transfer;
  queue_->Start({.write = true,
                 .file = shape.file,
                 .offset_bytes = map().OffsetBytes(extent, 0),
                 .buffer = slot},
                {data, static_cast<std::size_t>(shape.bytes)}, &transfer);
  queue_->Wait(transfer);
  stats_.bytes_written += shape.bytes;
  if (!transfer.ok()) {
    return names_.OfTransfer("write", files_.state, extent, 0, transfer);
  }
  staged->dirty = false;
  return absl::OkStatus();
}

absl::Status NvmeStoreImpl::FlushAllStaged() {
  for (std::size_t s = 0; s < staged_.size(); ++s) {
    STOWAGE_RETURN_IF_ERROR(
        FlushStaged(&staged_[s], static_cast<std::int32_t>(s)));
  }
  return absl::OkStatus();
}

void NvmeStoreImpl::ForgetStaged() { staged_.assign(staged_.size(), Staged{}); }

}  // namespace stowage::storage
