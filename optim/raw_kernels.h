// All kernels of one instruction set: kernels_<isa>.cc includes this and that
// set's trait, and nothing else (see kernels_impl.h for why).

#pragma once

#include "optim/kernel_arguments.h"
#include "optim/kernels_impl.h"
#include "optim/lamb_impl.h"
#include "optim/onebit_impl.h"

namespace stowage::optim {
namespace {

template <class V>
constexpr internal::RawKernels MakeRawKernels() {
  return {.sum_of_squares = &SumOfSquares<V>,
          .accumulate = &Accumulate<V>,
          .adam = &Adam<V>,
          .convert = &Convert<V>,
          .lamb_norms = &LambNormsOf<V>,
          .lamb = &Lamb<V>,
          .onebit_compensate = &OneBitCompensate<V>,
          .onebit_pack = &OneBitPack<V>,
          .onebit_serve = &OneBitServe<V>,
          .onebit_unpack = &OneBitUnpack<V>,
          .frozen = &Frozen<V>,
          .frozen_lamb = &FrozenLamb<V>};
}

}  // namespace
}  // namespace stowage::optim
