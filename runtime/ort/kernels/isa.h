// What the file of an instruction set includes to make its kernel set.
// Internal linkage on purpose: each instruction set compiles its own copy.
#pragma once

#include "kernels/lanes.h"
#include "kernels/lookup.h"
#include "kernels/loops.h"
#include "kernels/sets.h"
#include "kernels/taps.h"

namespace {

template <class Isa>
constexpr tbn::KernelSet kernel_set(const char* name,
                                    decltype(tbn::KernelSet::build_tables) build_tables) {
  return {name,         Isa::group, Isa::first_sign_bit, build_tables,   Lookup<Isa>::run,
          expand_signs, dot_rows,   add_scaled,          Taps<Isa>::run, Lanes<Isa>::run,
          copy_rows,    transpose,  finish_row,          finish_channel, to_float};
}

}  // namespace
