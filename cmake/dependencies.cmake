# Every find_package of the project, and one imported target per dependency.

find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(Protobuf REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
# Debian's gRPC carries a CMake package for a static build we do not want;
# pkg-config names the shared libraries.
pkg_check_modules(GRPCPP REQUIRED IMPORTED_TARGET grpc++)
pkg_check_modules(URING REQUIRED IMPORTED_TARGET liburing)
pkg_check_modules(ISAL REQUIRED IMPORTED_TARGET libisal)
find_library(STOWAGE_GRPCPP_REFLECTION grpc++_reflection REQUIRED)
find_program(STOWAGE_GRPC_PLUGIN grpc_cpp_plugin REQUIRED)
if(STOWAGE_WITH_TESTS)
  find_package(GTest REQUIRED)
endif()
if(STOWAGE_WITH_BENCH)
  find_package(benchmark REQUIRED)
endif()

# LibTorch as the PyPI wheel carries it. find_package(Torch) of that wheel
# insists on a CUDA toolkit, so the CPU libraries are named directly. Its
# headers contain an old google/protobuf: -idirafter keeps them behind ours.
if(STOWAGE_WITH_ENGINE)
  set(STOWAGE_TORCH_SITE "$ENV{STOWAGE_TORCH_SITE}" CACHE PATH
      "Folder that holds the wheel's torch/ and nvidia/ (tools/setup makes one)")
  if(NOT STOWAGE_TORCH_SITE)
    if(DEFINED ENV{XDG_CACHE_HOME})
      set(STOWAGE_TORCH_SITE "$ENV{XDG_CACHE_HOME}/stowage/torch-2.13.0")
    else()
      set(STOWAGE_TORCH_SITE "$ENV{HOME}/.cache/stowage/torch-2.13.0")
    endif()
  endif()
  if(NOT EXISTS ${STOWAGE_TORCH_SITE}/torch/lib/libtorch_cpu.so)
    message(FATAL_ERROR "no LibTorch in ${STOWAGE_TORCH_SITE}: run tools/setup, "
      "set STOWAGE_TORCH_SITE, or configure with -DSTOWAGE_WITH_ENGINE=OFF")
  endif()
  file(GLOB STOWAGE_NVIDIA_LIBS ${STOWAGE_TORCH_SITE}/nvidia/*/lib)
  add_library(stowage_torch INTERFACE)
  target_compile_options(stowage_torch INTERFACE
    "SHELL:-idirafter ${STOWAGE_TORCH_SITE}/torch/include"
    "SHELL:-idirafter ${STOWAGE_TORCH_SITE}/torch/include/torch/csrc/api/include")
  target_compile_definitions(stowage_torch INTERFACE
    _GLIBCXX_USE_CXX11_ABI=1 USE_DISTRIBUTED USE_C10D_GLOO)
  target_link_directories(stowage_torch INTERFACE ${STOWAGE_TORCH_SITE}/torch/lib)
  target_link_libraries(stowage_torch INTERFACE torch_cpu c10)
  target_link_options(stowage_torch INTERFACE
    "-Wl,-rpath,${STOWAGE_TORCH_SITE}/torch/lib"
    "-Wl,--no-as-needed" "-Wl,--allow-shlib-undefined")
  foreach(dir ${STOWAGE_NVIDIA_LIBS})
    target_link_options(stowage_torch INTERFACE
      "-Wl,-rpath,${dir}" "-Wl,-rpath-link,${dir}")
  endforeach()
  add_library(stowage::torch ALIAS stowage_torch)
  include(cuda)
endif()

find_program(STOWAGE_CCACHE ccache)
if(STOWAGE_CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER ${STOWAGE_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${STOWAGE_CCACHE})
endif()
