// Starts a program beside this one and reads what it prints.

#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace stowage::cli {

// The program of that name beside stowctl, else the name itself, for PATH.
std::string ProgramBesideUs(const std::string& name);

// Runs `arguments` (the first is the program, looked for in PATH if it has no
// '/'), gives it `input` and returns its standard output; standard error stays
// ours. Blocks: until it ends.
// Errors: kNotFound if it cannot be started, kUnknown if it ends with another
//   code than 0, naming it.
absl::StatusOr<std::string> RunProgram(
    const std::vector<std::string>& arguments, const std::string& input);

}  // namespace stowage::cli
