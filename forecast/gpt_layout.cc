#include "forecast/gpt_layout.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace stowage::forecast {
namespace {

constexpr std::int64_t kHeadWidth = 64;
// stow-train's groups: matrices decay, vectors do not.
constexpr std::int32_t kDecay = 0;
constexpr std::int32_t kNoDecay = 1;

UnitSpec Unit(
    const std::string& name,
    const std::vector<std::pair<const char*, std::vector<std::int64_t>>>&
        params) {
  UnitSpec unit;
  unit.name = name;
  for (const auto& [param, dimensions] : params) {
    const std::int32_t group = dimensions.size() >= 2 ? kDecay : kNoDecay;
    unit.params.push_back({absl::StrCat(name, ".", param), dimensions, group});
  }
  return unit;
}

}  // namespace

std::int64_t ParameterCount(const GptShape& shape) {
  const std::int64_t d = shape.width;
  const std::int64_t block = 12 * d * d + 13 * d;
  return (2 * shape.vocabulary + shape.context) * d + shape.layers * block +
         2 * d;
}

GptShape ShapeOfSize(std::int64_t parameters, std::int64_t context,
                     std::int64_t vocabulary) {
  GptShape best;
  double best_miss = std::numeric_limits<double>::infinity();
  for (std::int64_t width = kHeadWidth; width <= 65536; width += kHeadWidth) {
    GptShape shape{.layers = 1,
                   .width = width,
                   .heads = width / kHeadWidth,
                   .context = context,
                   .vocabulary = vocabulary};
    const std::int64_t one = ParameterCount(shape);
    shape.layers = 2;
    const std::int64_t layer = ParameterCount(shape) - one;
    const double layers =
        static_cast<double>(parameters - one) / static_cast<double>(layer) +
        1.0;
    shape.layers = std::clamp<std::int64_t>(
        static_cast<std::int64_t>(std::llround(layers)), 1, 1000);
    // Size first; of shapes of about that size the one that is neither thin nor
    // flat.
    const double size =
        std::fabs(std::log(static_cast<double>(ParameterCount(shape)) /
                           static_cast<double>(parameters)));
    const double form =
        std::fabs(std::log(static_cast<double>(shape.layers * kHeadWidth) /
                           static_cast<double>(width)));
    const double miss = size + 0.1 * form;
    if (miss < best_miss) {
      best_miss = miss;
      best = shape;
    }
    if (one > 4 * parameters && width > kHeadWidth) break;
  }
  return best;
}

LayoutSpec GptLayout(const GptShape& shape, Dtype param_dtype) {
  const std::int64_t d = shape.width;
  LayoutSpec spec;
  spec.param_dtype = param_dtype;
  spec.groups = {{"decay", false}, {"no_decay", false}};
  spec.units.push_back(Unit("embed", {{"token", {shape.vocabulary, d}},
                                      {"position", {shape.context, d}}}));
  for (std::int64_t i = 0; i < shape.layers; ++i) {
    spec.units.push_back(
        Unit(absl::StrCat("block.", i), {{"norm1_weight", {d}},
                                         {"norm1_bias", {d}},
                                         {"qkv_weight", {3 * d, d}},
                                         {"qkv_bias", {3 * d}},
                                         {"proj_weight", {d, d}},
                                         {"proj_bias", {d}},
                                         {"norm2_weight", {d}},
                                         {"norm2_bias", {d}},
                                         {"fc_weight", {4 * d, d}},
                                         {"fc_bias", {4 * d}},
                                         {"out_weight", {d, 4 * d}},
                                         {"out_bias", {d}}}));
  }
  spec.units.push_back(Unit("head", {{"norm_weight", {d}},
                                     {"norm_bias", {d}},
                                     {"weight", {shape.vocabulary, d}}}));
  return spec;
}

}  // namespace stowage::forecast
