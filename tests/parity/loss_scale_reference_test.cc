// The loss scales that DeepSpeed's DynamicLossScaler goes through, exactly.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/precision/loss_scaler.h"
#include "gtest/gtest.h"
#include "tests/parity/reference_tables.h"

namespace stowage {
namespace {

using engine::config::Member;
using engine::config::Value;
using engine::precision::LossScaleKind;
using engine::precision::LossScaler;
using engine::precision::LossScalerOptions;

TEST(LossScaleParity, TablesOfTheReference) {
  const auto index = parity::ReadIndex("loss_scale_index.json");
  ASSERT_TRUE(index.ok()) << index.status().ToString();
  ASSERT_FALSE(index->items.empty());
  for (const Value& entry : index->items) {
    const std::string file = entry.Find("file")->value.text;
    SCOPED_TRACE(file);
    const Value& params = entry.Find("params")->value;
    LossScalerOptions options;
    options.kind = LossScaleKind::kDynamic;
    options.hysteresis = 1;  // the class's own default, not the file format's
    options.raise_error_at_min_scale =
        false;  // the tables go on at the minimum
    for (const Member& member : params.members) {
      const Value& value = member.value;
      if (member.key == "init_scale") {
        options.init_scale = value.number;
      } else if (member.key == "scale_window") {
        options.scale_window = value.integer;
      } else if (member.key == "hysteresis" || member.key == "delayed_shift") {
        options.hysteresis = value.integer;
      } else if (member.key == "min_scale") {
        options.min_scale = value.number;
      } else if (member.key == "consecutive_hysteresis") {
        options.consecutive_hysteresis = value.boolean;
      } else {
        FAIL() << "unknown parameter " << member.key;
      }
    }
    auto scaler = LossScaler::Create(options);
    ASSERT_TRUE(scaler.ok()) << scaler.status().ToString();
    const auto table = parity::ReadTable(file);
    ASSERT_TRUE(table.ok()) << table.status().ToString();
    ASSERT_EQ((*table)[0],
              (std::vector<std::string>{"iteration", "overflow", "scale_during",
                                        "scale_after"}));
    for (std::size_t row = 1; row < table->size(); ++row) {
      const std::vector<std::string>& cells = (*table)[row];
      ASSERT_EQ(cells.size(), 4U);
      EXPECT_EQ(scaler->scale(), std::strtod(cells[2].c_str(), nullptr))
          << "during iteration " << cells[0];
      // Through the bytes at every step: a restart changes nothing.
      auto restored = LossScaler::Create(options);
      ASSERT_TRUE(restored->Restore(scaler->Serialize()).ok());
      const auto update = restored->Update(cells[1] == "1");
      ASSERT_TRUE(update.ok()) << update.status().ToString();
      EXPECT_EQ(update->scale_after, std::strtod(cells[3].c_str(), nullptr))
          << "after iteration " << cells[0];
      // As Python prints it: an int until the scale first changes.
      EXPECT_EQ(restored->scale_is_integer(),
                cells[3].find('.') == std::string::npos)
          << "after iteration " << cells[0];
      *scaler = *restored;
    }
  }
}

}  // namespace
}  // namespace stowage
