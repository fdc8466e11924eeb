// Adam and AdamW against tables that torch made in float64
// (tests/parity/reference, or the folder named by STOWAGE_REFERENCE_DIR):
// adam_index.json lists the cases with their hyper-parameters, each
// adam_*_torch64.csv holds rows of step, element index and parameter.
//
// Tolerances: 5e-8 after steps 1 and 2 (where fp32 itself can be 3e-8 off),
// 5e-7 before step 50, from then on 1e-6 relative more.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "optim/kernels.h"
#include <nlohmann/json.hpp>

namespace stowage::optim {
namespace {

using Json = nlohmann::json;

std::string ReferenceDir() {
  const char* dir = std::getenv("STOWAGE_REFERENCE_DIR");
  if (dir != nullptr && *dir != '\0') return dir;
  const char* source = std::getenv("STOWAGE_SOURCE_DIR");
  return std::string(source == nullptr ? "." : source) +
         "/tests/parity/reference";
}

struct Row {
  std::int64_t index = 0;
  double param = 0;
};

// Rows by the step after which they hold.
std::map<int, std::vector<Row>> ReadTable(const std::string& path) {
  std::map<int, std::vector<Row>> table;
  std::ifstream file(path);
  EXPECT_TRUE(file.is_open()) << path;
  std::string line;
  std::getline(file, line);
  EXPECT_EQ(line.substr(0, line.find('\r')), "after_step,index,param") << path;
  while (std::getline(file, line)) {
    if (line.empty()) continue;
    std::replace(line.begin(), line.end(), ',', ' ');
    std::istringstream fields(line);
    int step = 0;
    Row row;
    EXPECT_TRUE(fields >> step >> row.index >> row.param)
        << path << ": " << line;
    table[step].push_back(row);
  }
  return table;
}

// torch's defaults where a case names no value.
AdamHyperparameters HyperparametersOf(const Json& entry) {
  const Json& params = entry.at("params");
  const bool adamw = entry.at("type").get<std::string>() == "AdamW";
  AdamHyperparameters h;
  h.lr = params.value("lr", 1e-3);
  if (params.contains("betas")) {
    h.beta1 = params.at("betas").at(0).get<double>();
    h.beta2 = params.at("betas").at(1).get<double>();
  }
  h.eps = params.value("eps", 1e-8);
  h.weight_decay = params.value("weight_decay", adamw ? 1e-2 : 0.0);
  h.bias_correction = params.value("bias_correction", true);
  h.decoupled_weight_decay = entry.value("decoupled_weight_decay", adamw);
  return h;
}

double ToleranceAfter(int step, double reference) {
  if (step <= 2) return 5e-8;
  if (step < 50) return 5e-7;
  return 1e-6 * std::abs(reference) + 5e-7;
}

// Runs one case; the index's "param0" and "grad" formulas.
void RunCase(const KernelSet& kernels, const Json& entry, std::int64_t elems,
             const std::map<int, std::vector<Row>>& table) {
  const AdamHyperparameters h = HyperparametersOf(entry);
  const auto size = static_cast<std::size_t>(elems);
  std::vector<float> p(size);
  std::vector<float> m(size);
  std::vector<float> v(size);
  std::vector<float> g(size);
  for (std::size_t i = 0; i < size; ++i) {
    p[i] = static_cast<float>(0.5 * std::sin(0.7 * static_cast<double>(i)));
  }
  std::map<int, double> worst;
  const int last_step = table.empty() ? 0 : table.rbegin()->first;
  for (int t = 0; t < last_step; ++t) {
    for (std::size_t i = 0; i < size; ++i) {
      const auto x = static_cast<double>(i);
      g[i] = static_cast<float>(0.1 * std::cos(0.013 * (t + 1) * x) *
                                std::exp(-x / 3000));
    }
    const void* const slots[] = {g.data()};
    kernels.adam(MakeAdamConstants(h, t + 1, 1), {slots, Dtype::kFp32, nullptr},
                 {elems, p.data(), m.data(), v.data(), nullptr, Dtype::kFp32});
    const auto rows = table.find(t + 1);
    if (rows == table.end()) continue;
    for (const Row& row : rows->second) {
      ASSERT_GE(row.index, 0);
      ASSERT_LT(row.index, elems);
      const auto got =
          static_cast<double>(p[static_cast<std::size_t>(row.index)]);
      EXPECT_LE(std::abs(got - row.param), ToleranceAfter(t + 1, row.param))
          << "after step " << t + 1 << ", element " << row.index;
      worst[t + 1] = std::max(worst[t + 1], std::abs(got - row.param));
    }
  }
  for (const auto& [step, error] : worst) {
    std::printf("%s after step %d: largest error %.3g\n",
                entry.at("file").get<std::string>().c_str(), step, error);
  }
}

TEST(AdamReference, EqualsTorchFloat64WithinTolerance) {
  const std::string dir = ReferenceDir();
  std::ifstream file(dir + "/adam_index.json");
  ASSERT_TRUE(file.is_open()) << dir << "/adam_index.json";
  const Json index = Json::parse(file);
  int cases = 0;
  for (const Json& entry : index.at("cases")) {
    if (entry.at("implementation") != "torch64") continue;
    const auto name = entry.at("file").get<std::string>();
    const std::map<int, std::vector<Row>> table = ReadTable(dir + "/" + name);
    ASSERT_FALSE(table.empty()) << name;
    ++cases;
    for (const KernelSet* kernels : SupportedKernels()) {
      SCOPED_TRACE(name + " " + std::string(IsaName(kernels->isa)));
      RunCase(*kernels, entry, index.at("n").get<std::int64_t>(), table);
    }
  }
  EXPECT_GT(cases, 0) << "no torch64 table in " << dir;
}

}  // namespace
}  // namespace stowage::optim
