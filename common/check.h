// CHECK for programmer errors: on in release, prints where and what, aborts.
// Never for input from outside; that is an absl::Status.

#pragma once

#include <cstdio>
#include <cstdlib>

#define STOWAGE_CHECK(condition)                                            \
  do {                                                                      \
    if (!(condition)) {                                                     \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, \
                   #condition);                                             \
      std::abort();                                                         \
    }                                                                       \
  } while (false)

// CHECK that a Status is OK, printing it if it is not.
#define STOWAGE_CHECK_OK(expr)                                              \
  do {                                                                      \
    if (auto stowage_check_status_ = (expr); !stowage_check_status_.ok()) { \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, \
                   stowage_check_status_.ToString().c_str());               \
      std::abort();                                                         \
    }                                                                       \
  } while (false)
