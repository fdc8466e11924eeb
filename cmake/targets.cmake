# The functions that folder files use, so that those are declarations only.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
# Sanitizers slow the tests more than -O1 does, and it compiles a third faster.
if(STOWAGE_SANITIZE)
  set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1")
else()
  set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1")
endif()

add_library(stowage_flags INTERFACE)
target_include_directories(stowage_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(stowage_flags INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wnon-virtual-dtor -Werror
  -ffp-contract=off)  # the kernels' order of roundings is part of their contract
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(stowage_flags INTERFACE -Wthread-safety)
endif()
# Where tests end the server as a crash would (common/crash_point.h).
if(STOWAGE_WITH_TESTS)
  target_compile_definitions(stowage_flags INTERFACE STOWAGE_CRASH_POINTS)
endif()
if(STOWAGE_SANITIZE)
  string(REPLACE "," ";" _sanitizers "${STOWAGE_SANITIZE}")
  foreach(s ${_sanitizers})
    add_compile_options(-fsanitize=${s})
    add_link_options(-fsanitize=${s})
  endforeach()
  add_compile_options(-fno-sanitize-recover=all -fno-omit-frame-pointer)
  if(STOWAGE_FUZZ)
    add_compile_options(-fsanitize=fuzzer-no-link)
  endif()
endif()

# stowage_library(NAME SOURCES a.cc ... [DEPS targets] [PUBLIC_DEPS targets])
# makes target stowage_NAME with alias stowage::NAME.
function(stowage_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PUBLIC_DEPS" ${ARGN})
  if(ARG_SOURCES)
    add_library(stowage_${name} STATIC ${ARG_SOURCES})
    target_link_libraries(stowage_${name} PUBLIC ${ARG_PUBLIC_DEPS}
                          PRIVATE stowage_flags ${ARG_DEPS})
    target_include_directories(stowage_${name} PUBLIC ${PROJECT_SOURCE_DIR})
  else()
    add_library(stowage_${name} INTERFACE)
    target_link_libraries(stowage_${name} INTERFACE ${ARG_PUBLIC_DEPS} ${ARG_DEPS})
    target_include_directories(stowage_${name} INTERFACE ${PROJECT_SOURCE_DIR})
  endif()
  add_library(stowage::${name} ALIAS stowage_${name})
endfunction()

# stowage_binary(NAME SOURCES ... DEPS ...) makes bin/NAME.
function(stowage_binary name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE stowage_flags ${ARG_DEPS})
endfunction()

# stowage_test(NAME SOURCES ... DEPS ... LABELS ... [TIMEOUT s]) makes one
# GoogleTest program and registers it as one ctest case per labelled program.
function(stowage_test name)
  if(NOT STOWAGE_WITH_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LABELS;ENV" ${ARGN})
  # ThreadSanitizer runs what is labelled for it; the rest is not even built.
  if(STOWAGE_SANITIZE STREQUAL "thread" AND NOT "tsan" IN_LIST ARG_LABELS)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE stowage_flags ${ARG_DEPS}
                        GTest::gmock GTest::gtest GTest::gtest_main)
  set_target_properties(${name} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}"
    TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "STOWAGE_SOURCE_DIR=${PROJECT_SOURCE_DIR};STOWAGE_BIN_DIR=${PROJECT_BINARY_DIR}/bin;${ARG_ENV}")
endfunction()

# stowage_bench(NAME SOURCES ... DEPS ...) makes bench/NAME (Google Benchmark).
function(stowage_bench name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE stowage_flags ${ARG_DEPS}
                        benchmark::benchmark)
  set_target_properties(${name} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bench)
endfunction()

# stowage_proto(NAME PROTOS a.proto ...) generates and compiles messages and
# services without our warnings. They may import each other: one list a folder.
function(stowage_proto name)
  cmake_parse_arguments(ARG "" "" "PROTOS" ${ARGN})
  set(out ${PROJECT_BINARY_DIR}/generated)
  file(MAKE_DIRECTORY ${out})
  list(TRANSFORM ARG_PROTOS PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/ OUTPUT_VARIABLE absolute)
  set(sources)
  foreach(proto ${ARG_PROTOS})
    string(REGEX REPLACE "\\.proto$" "" stem ${proto})
    set(files ${out}/${stem}.pb.cc ${out}/${stem}.grpc.pb.cc)
    add_custom_command(OUTPUT ${files} ${out}/${stem}.pb.h ${out}/${stem}.grpc.pb.h
      COMMAND protobuf::protoc -I ${CMAKE_CURRENT_SOURCE_DIR} --cpp_out=${out}
              --grpc_out=${out} --plugin=protoc-gen-grpc=${STOWAGE_GRPC_PLUGIN} ${proto}
      WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} DEPENDS ${absolute})
    list(APPEND sources ${files})
  endforeach()
  add_library(stowage_${name} STATIC ${sources})
  target_include_directories(stowage_${name} SYSTEM PUBLIC ${out})
  target_link_libraries(stowage_${name} PUBLIC protobuf::libprotobuf PkgConfig::GRPCPP)
  add_library(stowage::${name} ALIAS stowage_${name})
endfunction()

# stowage_python_test(NAME script.py LABELS ... [TIMEOUT s]) registers a test
# that drives the built binaries; it needs Python's standard library only.
function(stowage_python_test name script)
  cmake_parse_arguments(ARG "" "TIMEOUT" "LABELS" ${ARGN})
  add_test(NAME ${name}
    COMMAND python3 ${CMAKE_CURRENT_SOURCE_DIR}/${script})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}"
    TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "STOWAGE_SOURCE_DIR=${PROJECT_SOURCE_DIR};STOWAGE_BIN_DIR=${PROJECT_BINARY_DIR}/bin")
endfunction()

# stowage_fuzz(NAME SOURCES ... DEPS ...) makes fuzz/NAME. Everywhere it replays
# saved inputs (label fuzz: tests/fuzz/corpus/NAME); with STOWAGE_FUZZ, under
# Clang, it is libFuzzer's and finds new ones (tools/fuzz).
function(stowage_fuzz name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  if(STOWAGE_FUZZ)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  else()
    target_link_libraries(${name} PRIVATE stowage_fuzz_replay)
    add_test(NAME ${name} COMMAND ${name} ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${name})
    set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT 60)
  endif()
  target_link_libraries(${name} PRIVATE stowage_flags ${ARG_DEPS})
  set_target_properties(${name} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/fuzz)
endfunction()
