// The logical layout of a job's parameters: units, parameters, groups, offsets.
//
// These are the nouns that server, client and engine share. The layout is the
// same for every world size (ranks slice it, they do not define it), and it is
// part of what fixes the bits of a run: gradient norms are summed chunk by
// chunk in the order written here (DESIGN: "the layout is part of the
// contract"). Pure: no I/O, no threads.
//
// Inside a unit, parameters are laid out trainable before frozen, then by
// group, then as declared; each starts at a multiple of kParamAlignElems. All
// trainable parameters of one group form one `Run`, so that an optimizer kernel
// call never spans two groups. Units start at a multiple of kUnitAlignElems, so
// that a unit's bytes start on a page in every tier and element type.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/dtype.h"

namespace stowage {

inline constexpr std::int64_t kParamAlignElems = 64;
inline constexpr std::int64_t kUnitAlignElems = 2048;
// One partial norm, one task of the compute team, one kernel call: 32 Ki
// elements keep a chunk's bytes (28 per element) inside a core's L2 cache.
inline constexpr std::int64_t kChunkElems = 32768;

// What a client asks for. `group_index` selects among LayoutSpec::groups.
struct ParamSpec {
  std::string name;  // unique in the job, e.g. "block.0.fc.weight"
  std::vector<std::int64_t> shape;  // empty for a scalar
  std::int32_t group_index = 0;

  friend bool operator==(const ParamSpec&, const ParamSpec&) = default;
};

struct UnitSpec {
  std::string name;
  std::vector<ParamSpec> params;

  friend bool operator==(const UnitSpec&, const UnitSpec&) = default;
};

struct GroupSpec {
  std::string name;
  bool frozen = false;  // frozen parameters have no gradient, master or moments

  friend bool operator==(const GroupSpec&, const GroupSpec&) = default;
};

struct LayoutSpec {
  Dtype param_dtype = Dtype::kFp32;  // of the copy that ranks compute with
  std::vector<GroupSpec> groups;
  std::vector<UnitSpec> units;

  friend bool operator==(const LayoutSpec&, const LayoutSpec&) = default;
};

// Bounds on what a LayoutSpec may ask for; Layout::Create() enforces them.
struct LayoutLimits {
  std::int64_t units_max = 65536;
  std::int64_t params_max = 1 << 20;
  std::int64_t groups_max = 1024;
  std::int64_t name_bytes_max = 512;
  std::int64_t rank_max = 16;  // dimensions of one tensor
  std::int64_t elems_max = std::int64_t{1} << 42;
};

// Immutable after Create(). Thread safety: immutable.
class Layout {
 public:
  struct Param {
    std::string name;
    std::vector<std::int64_t> shape;
    std::int32_t group_index = 0;
    std::int32_t unit_index = 0;
    std::int32_t declared_index = 0;  // position in UnitSpec::params
    bool frozen = false;
    std::int64_t begin_elems = 0;  // in the unit's flat buffer
    std::int64_t elems = 0;        // without padding
  };

  // A contiguous range of a unit that one group's hyper-parameters apply to.
  struct Run {
    std::int32_t group_index = 0;
    std::int64_t begin_elems = 0;  // in the unit
    std::int64_t end_elems = 0;    // padded to kParamAlignElems
  };

  struct Unit {
    std::string name;
    std::int64_t begin_elems = 0;        // in the job's parameter space
    std::int64_t elems = 0;              // padded to kUnitAlignElems
    std::int64_t state_begin_elems = 0;  // in the job's master/moment space
    std::int64_t trainable_elems = 0;    // prefix with state; padded likewise
    std::vector<Param> params;           // in flat-buffer order
    std::vector<Run> runs;               // trainable runs, ascending
  };

  // One piece of work on a unit: a run cut every kChunkElems.
  struct Chunk {
    std::int32_t unit_index = 0;
    std::int32_t group_index = 0;
    std::int64_t begin_elems = 0;  // in the unit
    std::int64_t elems = 0;
  };

  Layout() = default;

  // Errors: kInvalidArgument for an empty layout, duplicate or empty names,
  //   a group index out of range, a negative or zero extent, overflow, or a
  //   bound of `limits` exceeded. The message names unit and parameter.
  static absl::StatusOr<Layout> Create(const LayoutSpec& spec,
                                       const LayoutLimits& limits = {});

  const LayoutSpec& spec() const { return spec_; }
  Dtype param_dtype() const { return spec_.param_dtype; }
  const std::vector<Unit>& units() const { return units_; }
  std::int32_t unit_count() const {
    return static_cast<std::int32_t>(units_.size());
  }
  std::int32_t group_count() const {
    return static_cast<std::int32_t>(spec_.groups.size());
  }
  // Chunks of unit `u` are chunks()[chunk_begin(u) .. chunk_begin(u + 1)).
  const std::vector<Chunk>& chunks() const { return chunks_; }
  std::int64_t chunk_begin(std::int32_t unit_index) const {
    return chunk_begin_[static_cast<std::size_t>(unit_index)];
  }

  // Elements of the job's parameter space, of its state space (both padded),
  // and the true parameter counts.
  std::int64_t total_elems() const { return total_elems_; }
  std::int64_t state_elems() const { return state_elems_; }
  std::int64_t parameter_count() const { return parameter_count_; }
  std::int64_t trainable_count() const { return trainable_count_; }
  std::int64_t unit_elems_max() const { return unit_elems_max_; }

  // In the layout's order; they point into this object.
  std::vector<const Param*> TrainableParams() const;

  // 64-bit digest of the whole spec; equal specs have equal digests.
  std::uint64_t fingerprint() const { return fingerprint_; }

 private:
  // Appends a unit whose parameters have their places.
  void AddUnit(Unit unit);

  LayoutSpec spec_;
  std::vector<Unit> units_;
  std::vector<Chunk> chunks_;
  std::vector<std::int64_t> chunk_begin_;
  std::int64_t total_elems_ = 0;
  std::int64_t state_elems_ = 0;
  std::int64_t parameter_count_ = 0;
  std::int64_t trainable_count_ = 0;
  std::int64_t unit_elems_max_ = 0;
  std::uint64_t fingerprint_ = 0;
};

// The first difference between two layouts in one plain sentence, e.g. `unit
// "block.3": parameter "fc.weight" has shape [512, 128], the job has [512,
// 256]`; empty if equal. `ours` is what is asked, `theirs` what the job has.
std::string DescribeDifference(const LayoutSpec& ours,
                               const LayoutSpec& theirs);

}  // namespace stowage
