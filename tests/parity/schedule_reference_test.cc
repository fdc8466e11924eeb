// The learning rates and betas that DeepSpeed's schedulers put in force, step
// by step, against ours, through the configuration reader.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/config/config.h"
#include "engine/config/settings.h"
#include "engine/schedule/schedule.h"
#include "gtest/gtest.h"
#include "tests/parity/reference_tables.h"

namespace stowage {
namespace {

using engine::config::JsonOf;
using engine::config::Member;
using engine::config::Value;

constexpr double kRelative = 1e-12;

void ExpectClose(double got, const std::string& cell,
                 const std::string& where) {
  const double want = std::strtod(cell.c_str(), nullptr);
  EXPECT_LE(std::fabs(got - want), kRelative * std::fabs(want))
      << where << ": got " << absl::StrCat(got) << ", table " << cell;
}

TEST(ScheduleParity, TablesOfTheReference) {
  const auto index = parity::ReadIndex("lr_index.json");
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  ASSERT_FALSE(index->items.empty());
  for (const Value& entry : index->items) {
    const std::string file = entry.Find("file")->value.text;
    SCOPED_TRACE(file);
    const double lr = entry.Find("optimizer_lr")->value.number;
    std::string betas;
    if (const Member* given = entry.Find("optimizer_betas")) {
      betas = absl::StrCat(", \"betas\": ", JsonOf(given->value));
    }
    const auto document = engine::config::ParseConfig(
        absl::StrCat(
            R"({"train_batch_size": 1, "optimizer": {"type": "AdamW",)",
            R"( "params": {"lr": )", JsonOf(entry.Find("optimizer_lr")->value),
            betas, R"(}}, "scheduler": {"type": )",
            JsonOf(entry.Find("scheduler")->value),
            ", \"params\": ", JsonOf(entry.Find("params")->value), "}}"),
        file);
    ASSERT_TRUE(document.ok()) << document.status().ToString();
    const auto resolution = engine::config::Resolve(*document, {});
    ASSERT_TRUE(resolution.ok()) << resolution.status().ToString();
    const auto schedule = engine::schedule::Schedule::Create(
        resolution->config.scheduler,
        {{lr, resolution->config.optimizer.betas}});
    ASSERT_TRUE(schedule.ok()) << schedule.status().ToString();

    const auto table = parity::ReadTable(file);
    ASSERT_TRUE(table.ok()) << table.status().ToString();
    ASSERT_GT(table->size(), 1U);
    ASSERT_EQ((*table)[0], (std::vector<std::string>{"step", "lr_in_force",
                                                     "beta1_in_force"}));
    for (std::size_t row = 1; row < table->size(); ++row) {
      const std::vector<std::string>& cells = (*table)[row];
      ASSERT_EQ(cells.size(), 3U);
      const std::int64_t step = std::strtoll(cells[0].c_str(), nullptr, 10);
      ExpectClose(schedule->Lr(step, 0), cells[1],
                  absl::StrCat("lr of step ", step));
      if (!cells[2].empty()) {
        ExpectClose(schedule->BetasAt(step, 0).beta1, cells[2],
                    absl::StrCat("beta1 of step ", step));
      }
    }
  }
}

}  // namespace
}  // namespace stowage
