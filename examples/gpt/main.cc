// stow-train: trains a small GPT with its state in stowd. See --help.

#include "examples/gpt/launcher.h"
#include "examples/gpt/options.h"
#include "examples/gpt/trainer.h"

int main(int argc, char** argv) {
  const stowage::gpt::ParsedOptions parsed =
      stowage::gpt::ParseOptions(argc, argv);
  if (!parsed.options) return parsed.exit_code;
  const stowage::gpt::Options& options = *parsed.options;
  if (options.ranks == 0) return stowage::gpt::TrainRank(options);
  return stowage::gpt::LaunchRanks(
      options.ranks, [&options] { return stowage::gpt::TrainRank(options); });
}
