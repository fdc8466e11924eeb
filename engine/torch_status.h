// Where LibTorch's exceptions end, and how an absl::Status travels through a
// model's forward or through autograd, which know only exceptions.
//
// Inside a unit's forward and in autograd hooks an error is thrown as
// StatusError; the engine's facade runs user code in CatchStatus(), so that
// nothing thrown leaves the engine.

#pragma once

#include <exception>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace stowage::engine {

class StatusError : public std::exception {
 public:
  explicit StatusError(absl::Status status)
      : status_(std::move(status)), text_(status_.ToString()) {}
  const char* what() const noexcept override { return text_.c_str(); }
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
  std::string text_;
};

inline void ThrowIfError(const absl::Status& status) {
  if (!status.ok()) throw StatusError(status);
}

// Runs `body` and turns whatever it throws into a Status. `operation` opens
// the message of what LibTorch threw ("forward", "backward").
template <typename Body>
absl::Status CatchStatus(const char* operation, Body&& body) {
  try {
    body();
    return absl::OkStatus();
  } catch (const StatusError& error) {
    return error.status();
  } catch (const std::exception& error) {
    std::string text = error.what();
    // LibTorch appends a C++ backtrace of many lines.
    if (const auto end = text.find("\nException raised from");
        end != std::string::npos) {
      text.resize(end);
    }
    return absl::InternalError(absl::StrCat(operation, ": ", text));
  }
}

}  // namespace stowage::engine
