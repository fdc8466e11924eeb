// What the monitors write is read back, whatever the format; damage ends a
// file.

#include "engine/monitor/series.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/monitor/monitor.h"
#include "engine/monitor/tf_record.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stowage::engine::monitor {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::Pair;

class Series : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "stowage-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string folder_;
};

TEST_F(Series, ReadsBackWhatEachMonitorWrote) {
  const MonitorDirectory directory{folder_, "run"};
  const Event steps[] = {{kEventTrainLoss, 2.5, 8},
                         {kEventLossScale, 1024, 8, true}};
  const Event more[] = {{kEventTrainLoss, 1.25, 16},
                        {kEventLossScale, 512.0, 16}};
  for (auto* create :
       {&CreateCsvMonitor, &CreateTensorboardMonitor, &CreateJsonlMonitor}) {
    auto monitor = create(directory);
    ASSERT_TRUE(monitor.ok());
    ASSERT_TRUE((*monitor)->WriteEvents(steps).ok());
    ASSERT_TRUE((*monitor)->WriteEvents(more).ok());
    ASSERT_TRUE((*monitor)->Flush().ok());
  }
  const auto sources = ReadSeries(folder_);
  ASSERT_TRUE(sources.ok());
  ASSERT_EQ(sources->size(), 3U);
  for (const SeriesSource& source : *sources) {
    SCOPED_TRACE(SeriesFormatName(source.format));
    EXPECT_THAT(source.series.at("train_loss"),
                ElementsAre(Pair(8, 2.5), Pair(16, 1.25)));
    EXPECT_THAT(source.series.at("loss_scale"),
                ElementsAre(Pair(8, 1024), Pair(16, 512)));
  }
}

TEST_F(Series, ARestartsHeaderAndRepeatedRowsAreNoTrouble) {
  SeriesMap series;
  ReadCsvSeries("/x/Train_Samples_train_loss.csv",
                "step,train_loss\r\n8,2.5\r\n16,9\r\nstep,train_loss\r\n"
                "16,1.25\r\n24,nan\r\n32,1",
                &series);
  EXPECT_EQ(series.at("train_loss").at(8), 2.5);
  EXPECT_EQ(series.at("train_loss").at(16), 1.25);
  EXPECT_EQ(series.at("train_loss").at(32), 1);
  SeriesMap other;
  ReadCsvSeries("table.csv", "name,value\n1,2\n", &other);
  EXPECT_TRUE(other.empty());
}

TEST_F(Series, ACutEventFileGivesWhatIsWhole) {
  const std::string whole =
      TfRecord(VersionEvent(1)) +
      TfRecord(ScalarEvent(1, 8, "Train/Samples/train_loss", 2.5F)) +
      TfRecord(ScalarEvent(2, 16, "Train/Samples/train_loss", 1.5F));
  for (std::size_t size = 0; size <= whole.size(); ++size) {
    SeriesMap series;
    ReadTensorboardSeries(std::string_view(whole).substr(0, size), &series);
    if (size == whole.size()) {
      EXPECT_THAT(series.at("train_loss"),
                  ElementsAre(Pair(8, 2.5), Pair(16, 1.5)));
    }
  }
  // A damaged byte ends the file at the record before it.
  std::string damaged = whole;
  damaged[damaged.size() - 6] ^= 1;
  SeriesMap series;
  ReadTensorboardSeries(damaged, &series);
  EXPECT_THAT(series.at("train_loss"), ElementsAre(Pair(8, 2.5)));
}

// One record of wandb's log, as the client writes it: a history row.
std::string WandbRecord() {
  const auto bytes = [](char tag, const std::string& text) {
    return std::string(1, tag) + static_cast<char>(text.size()) + text;
  };
  const auto item = [&](const std::string& key, const std::string& json) {
    // Field 1 is the key, field 16 the value.
    return bytes('\x0a', bytes('\x0a', key) + "\x82\x01" +
                             static_cast<char>(json.size()) + json);
  };
  return bytes('\x12', item("Train/Samples/train_loss", "2.5") +
                           item("_step", "8") + item("_runtime", "1"));
}

TEST_F(Series, AWandbRunIsReadAcrossBlocks) {
  std::string file = std::string(":W&B") + "\xe1\xbe" + '\0';
  const std::string record = WandbRecord();
  const auto piece = [&](char kind, std::string_view part) {
    file += std::string(4, '\0');
    file += static_cast<char>(part.size() & 0xff);
    file += static_cast<char>(part.size() >> 8);
    file += kind;
    file += part;
  };
  // A record of other fields fills the first block nearly to its end.
  std::string filler = "\x1a";  // field 3
  const std::size_t room = 32768 - file.size() - 7 - 4 - 27;
  filler += static_cast<char>((room & 0x7f) | 0x80);
  filler += static_cast<char>(((room >> 7) & 0x7f) | 0x80);
  filler += static_cast<char>(room >> 14);
  filler += std::string(room, 'x');
  piece(1, filler);
  const std::size_t left = 32768 - file.size() - 7;
  ASSERT_LT(left, record.size());
  piece(2, std::string_view(record).substr(0, left));
  piece(4, std::string_view(record).substr(left));
  SeriesMap series;
  ReadWandbSeries(file, &series);
  ASSERT_TRUE(series.contains("train_loss"));
  EXPECT_THAT(series.at("train_loss"), ElementsAre(Pair(8, 2.5)));
  EXPECT_FALSE(series.contains("_runtime"));
  for (std::size_t size = 0; size < file.size(); size += 97) {
    SeriesMap cut;
    ReadWandbSeries(std::string_view(file).substr(0, size), &cut);
  }
}

TEST_F(Series, AFolderThatIsNotThereIsAnError) {
  EXPECT_EQ(ReadSeries(folder_ + "/none").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace stowage::engine::monitor
