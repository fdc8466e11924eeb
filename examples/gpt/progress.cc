#include "examples/gpt/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace stowage::gpt {
namespace {

std::string Clock(double seconds) {
  const auto whole = static_cast<long>(seconds + 0.5);
  char text[32];
  if (whole >= 3600) {
    std::snprintf(text, sizeof(text), "%ld:%02ld:%02ld", whole / 3600,
                  whole / 60 % 60, whole % 60);
  } else {
    std::snprintf(text, sizeof(text), "%ld:%02ld", whole / 60, whole % 60);
  }
  return text;
}

}  // namespace

Progress::Progress(std::int64_t first_step, std::int64_t last_step,
                   std::int64_t tokens_per_step)
    : first_step_(first_step),
      last_step_(last_step),
      tokens_per_step_(tokens_per_step),
      live_(isatty(STDOUT_FILENO) == 1),
      begin_(std::chrono::steady_clock::now()) {}

void Progress::Update(const engine::StepResult& result,
                      const std::string& more) {
  const auto now = std::chrono::steady_clock::now();
  const bool last = result.step >= last_step_;
  const auto wait =
      live_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(5000);
  if (!last && !result.skipped && now - last_print_ < wait) return;
  last_print_ = now;
  const double seconds = std::chrono::duration<double>(now - begin_).count();
  const double done = static_cast<double>(result.step - first_step_);
  const double left =
      done > 0 ? seconds / done * static_cast<double>(last_step_ - result.step)
               : 0;
  const int width = 24;
  const int filled = static_cast<int>(
      width * std::min(1.0, static_cast<double>(result.step) /
                                static_cast<double>(last_step_)));
  std::string bar(static_cast<std::size_t>(filled), '=');
  bar.resize(width, ' ');
  if (filled > 0 && filled < width) bar[static_cast<std::size_t>(filled)] = '>';
  char line[256];
  std::snprintf(
      line, sizeof(line),
      "[%s] step %ld/%ld  loss %.4f  lr %.2e  scale %g  %.0f tokens/s  left "
      "%s%s",
      bar.c_str(), static_cast<long>(result.step),
      static_cast<long>(last_step_), result.loss, result.lr, result.loss_scale,
      done * static_cast<double>(tokens_per_step_) / seconds,
      Clock(left).c_str(), result.skipped ? "  (skipped: overflow)" : "");
  if (live_) {
    std::printf("\r\x1b[K%s%s", line, more.c_str());
    line_open_ = true;
  } else {
    std::printf("%s%s\n", line, more.c_str());
  }
  std::fflush(stdout);
}

void Progress::Finish() {
  if (line_open_) std::printf("\n");
  line_open_ = false;
  std::fflush(stdout);
}

}  // namespace stowage::gpt
