// Early return for absl::Status, which Abseil 20220623 does not carry.

#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function if `expr` (an absl::Status) is not OK.
#define STOWAGE_RETURN_IF_ERROR(expr)                                     \
  do {                                                                    \
    if (::absl::Status stowage_status_ = (expr); !stowage_status_.ok()) { \
      return stowage_status_;                                             \
    }                                                                     \
  } while (false)

#define STOWAGE_CONCAT_INNER_(a, b) a##b
#define STOWAGE_CONCAT_(a, b) STOWAGE_CONCAT_INNER_(a, b)

// Assigns the value of `expr` (a StatusOr) to `lhs`, or returns its error.
#define STOWAGE_ASSIGN_OR_RETURN(lhs, expr)                                    \
  STOWAGE_ASSIGN_OR_RETURN_IMPL_(STOWAGE_CONCAT_(stowage_statusor_, __LINE__), \
                                 lhs, expr)
// NOLINTBEGIN(bugprone-macro-parentheses): `lhs` may be a declaration.
#define STOWAGE_ASSIGN_OR_RETURN_IMPL_(statusor, lhs, expr) \
  auto statusor = (expr);                                   \
  if (!statusor.ok()) return std::move(statusor).status();  \
  lhs = *std::move(statusor)
// NOLINTEND(bugprone-macro-parentheses)
