#include "engine/checkpoint/client_state.h"

#include <cstring>

#include "absl/strings/str_cat.h"

namespace stowage::engine {
namespace {

constexpr std::string_view kMagic = "SWCS";
// 2 added random_seed and last_apply.
constexpr std::uint32_t kVersion = 2;
constexpr std::uint32_t kVersionMin = 1;

template <typename T>
void Append(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

void AppendText(std::string& out, std::string_view text) {
  Append(out, static_cast<std::uint32_t>(text.size()));
  out.append(text);
}

class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}
  template <typename T>
  bool Read(T* value) {
    if (rest_.size() < sizeof(T)) return false;
    std::memcpy(value, rest_.data(), sizeof(T));
    rest_.remove_prefix(sizeof(T));
    return true;
  }
  bool ReadText(std::string* text) {
    std::uint32_t length = 0;
    if (!Read(&length) || rest_.size() < length) return false;
    text->assign(rest_.substr(0, length));
    rest_.remove_prefix(length);
    return true;
  }
  std::size_t left() const { return rest_.size(); }

 private:
  std::string_view rest_;
};

bool ReadApply(Reader& reader, ApplyArgs* args) {
  std::uint8_t skip = 0;
  std::uint32_t groups = 0;
  if (!reader.Read(&args->step) || !reader.Read(&skip) ||
      !reader.Read(&args->gradient_factor) || !reader.Read(&groups) ||
      reader.left() / (5 * sizeof(double)) < groups) {
    return false;
  }
  args->skip = skip != 0;
  args->groups.resize(groups);
  for (GroupStep& group : args->groups) {
    for (double* value : {&group.lr, &group.beta1, &group.beta2, &group.eps,
                          &group.weight_decay}) {
      if (!reader.Read(value)) return false;
    }
  }
  return true;
}

}  // namespace

std::string ClientState::Serialize() const {
  std::string out(kMagic);
  Append(out, kVersion);
  Append(out, skipped_steps);
  Append(out, global_samples);
  AppendText(out, loss_scaler);
  Append(out, static_cast<std::uint32_t>(trace.size()));
  for (const std::int32_t unit : trace) Append(out, unit);
  AppendText(out, user);
  Append(out, random_seed.value_or(0));
  Append(out, last_apply.step);
  Append(out, static_cast<std::uint8_t>(last_apply.skip ? 1 : 0));
  Append(out, last_apply.gradient_factor);
  Append(out, static_cast<std::uint32_t>(last_apply.groups.size()));
  for (const GroupStep& group : last_apply.groups) {
    for (const double value :
         {group.lr, group.beta1, group.beta2, group.eps, group.weight_decay}) {
      Append(out, value);
    }
  }
  return out;
}

absl::StatusOr<ClientState> ClientState::Parse(std::string_view bytes) {
  const auto bad = [&](std::string_view why) {
    return absl::DataLossError(absl::StrCat("client state of ", bytes.size(),
                                            " bytes: ", std::string(why)));
  };
  if (bytes.substr(0, kMagic.size()) != kMagic) {
    return bad("not written by a Stowage trainer");
  }
  Reader reader(bytes.substr(kMagic.size()));
  std::uint32_t version = 0;
  if (!reader.Read(&version)) return bad("ends early");
  if (version < kVersionMin || version > kVersion) {
    return bad(absl::StrCat("version ", version, ", this trainer knows ",
                            kVersionMin, " to ", kVersion));
  }
  ClientState state;
  std::uint32_t uses = 0;
  if (!reader.Read(&state.skipped_steps) ||
      !reader.Read(&state.global_samples) ||
      !reader.ReadText(&state.loss_scaler) || !reader.Read(&uses) ||
      reader.left() / sizeof(std::int32_t) < uses) {
    return bad("ends early");
  }
  state.trace.resize(uses);
  for (std::int32_t& unit : state.trace) reader.Read(&unit);
  if (!reader.ReadText(&state.user)) return bad("has a wrong length");
  if (version >= 2 && (!reader.Read(&state.random_seed.emplace()) ||
                       !ReadApply(reader, &state.last_apply))) {
    return bad("ends early");
  }
  if (reader.left() != 0) return bad("has a wrong length");
  return state;
}

}  // namespace stowage::engine
