// Reads back what monitors wrote: CSV files, TensorBoard event files, JSON
// lines and wandb's offline runs, ours or DeepSpeed's.
//
// For `stowctl plot` and tests. A damaged or unfinished tail (a run that is
// still going, or was killed) ends a file without an error; what a restart
// wrote again replaces what came before.

#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace stowage::engine::monitor {

// x -> value, by event name without "Train/Samples/" ("train_loss").
using SeriesMap = std::map<std::string, std::map<double, double>>;

enum class SeriesFormat { kCsv, kTensorboard, kJsonl, kWandb };
const char* SeriesFormatName(SeriesFormat format);

// Adds what one file's bytes hold. Unknown contents are skipped.
void ReadCsvSeries(std::string_view file_name, std::string_view bytes,
                   SeriesMap* series);
void ReadTensorboardSeries(std::string_view bytes, SeriesMap* series);
void ReadJsonlSeries(std::string_view bytes, SeriesMap* series);
void ReadWandbSeries(std::string_view bytes, SeriesMap* series);

struct SeriesSource {
  SeriesFormat format = SeriesFormat::kCsv;
  std::vector<std::string> files;
  SeriesMap series;
};

// All monitors' files below `directory`, by format, formats without any left
// out. Files above 1 GiB are skipped.
// Errors: kNotFound if the directory is not there.
absl::StatusOr<std::vector<SeriesSource>> ReadSeries(
    const std::string& directory);

}  // namespace stowage::engine::monitor
