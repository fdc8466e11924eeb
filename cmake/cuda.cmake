# The CUDA toolkit, NCCL, and LibTorch's CUDA half: what the module
# stowage_cuda (engine/device/cuda) is built with.
#
# STOWAGE_CUDA_FOUND says whether all of it is here, STOWAGE_CUDA_MISSING what is
# not. With AUTO what is missing is said in one line and nothing else changes;
# with ON it is an error.

set(STOWAGE_CUDA_FOUND OFF)
set(STOWAGE_CUDA_MISSING "")
if(NOT STOWAGE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "STOWAGE_CUDA is \"${STOWAGE_CUDA}\": AUTO, ON or OFF")
endif()
if(STOWAGE_CUDA STREQUAL "OFF")
  set(STOWAGE_CUDA_MISSING "not asked for")
else()
  # LibTorch's headers and library are of one major version of CUDA.
  find_package(CUDAToolkit 13 QUIET)
  if(NOT CUDAToolkit_FOUND)
    set(STOWAGE_CUDA_MISSING "no CUDA toolkit 13 (nvcc on PATH, or CUDAToolkit_ROOT)")
  elseif(NOT EXISTS ${STOWAGE_TORCH_SITE}/torch/lib/libtorch_cuda.so)
    set(STOWAGE_CUDA_MISSING "no libtorch_cuda.so in ${STOWAGE_TORCH_SITE}/torch/lib")
  else()
    # libtorch_cuda.so wants libraries that the toolkit does not carry (cuFile,
    # cuSPARSELt, NVSHMEM), and c10d's NCCL classes have the size that the nccl.h
    # gave them which LibTorch was compiled with: wheels of those versions come
    # first (tools/setup --cuda, or the peers' environment).
    set(STOWAGE_CUDA_SITE "$ENV{STOWAGE_CUDA_SITE}" CACHE PATH
        "Folder whose nvidia/ holds the wheels that libtorch_cuda.so wants")
    if(NOT STOWAGE_CUDA_SITE)
      get_filename_component(_cache ${STOWAGE_TORCH_SITE} DIRECTORY)
      file(GLOB _sites
        ${_cache}/torch-2.13.0-cuda ${_cache}/peers-*/lib/python3*/site-packages)
      foreach(site ${_sites})
        if(EXISTS ${site}/nvidia/nccl/include/nccl.h)
          set(STOWAGE_CUDA_SITE ${site})
        endif()
      endforeach()
    endif()
    find_path(STOWAGE_NCCL_INCLUDE nccl.h
      PATHS ${STOWAGE_CUDA_SITE}/nvidia/nccl/include NO_DEFAULT_PATH)
    find_library(STOWAGE_NCCL NAMES nccl libnccl.so.2
      PATHS ${STOWAGE_CUDA_SITE}/nvidia/nccl/lib NO_DEFAULT_PATH)
    if(NOT STOWAGE_NCCL_INCLUDE OR NOT STOWAGE_NCCL)
      set(STOWAGE_CUDA_MISSING
          "no NCCL of LibTorch's version (tools/setup --cuda installs it)")
    endif()
  endif()
endif()

if(STOWAGE_CUDA_MISSING STREQUAL "")
  set(STOWAGE_CUDA_FOUND ON)
  message(STATUS "CUDA module: toolkit ${CUDAToolkit_VERSION} in ${CUDAToolkit_LIBRARY_DIR}, ${STOWAGE_NCCL}")
  add_library(stowage_torch_cuda INTERFACE)
  target_compile_definitions(stowage_torch_cuda INTERFACE USE_C10D_NCCL)
  target_include_directories(stowage_torch_cuda SYSTEM INTERFACE
    ${STOWAGE_NCCL_INCLUDE} ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(stowage_torch_cuda INTERFACE stowage_torch torch_cuda
    c10_cuda CUDA::cudart ${STOWAGE_NCCL})
  # libtorch_cuda.so looks for its libraries in folders relative to its own, then
  # in this module's old-style rpath (the new style does not count for the
  # libraries of a library), then where the system does.
  file(GLOB _dirs ${STOWAGE_CUDA_SITE}/nvidia/*/lib)
  set(_rpath "-Wl,--disable-new-dtags")
  foreach(dir ${_dirs} ${CUDAToolkit_LIBRARY_DIR})
    list(APPEND _rpath "-Wl,-rpath,${dir}" "-Wl,-rpath-link,${dir}")
  endforeach()
  target_link_options(stowage_torch_cuda INTERFACE ${_rpath})
  add_library(stowage::torch_cuda ALIAS stowage_torch_cuda)
elseif(STOWAGE_CUDA STREQUAL "ON")
  message(FATAL_ERROR "STOWAGE_CUDA=ON: ${STOWAGE_CUDA_MISSING}")
else()
  message(STATUS "CUDA module: none, ${STOWAGE_CUDA_MISSING}")
endif()
