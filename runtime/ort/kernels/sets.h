// The kernel sets by name; each is defined in the file of its instruction set.
#pragma once

#include "kernels/kernel_set.h"

namespace tbn {

extern const KernelSet portable_kernels;
extern const KernelSet avx2_kernels;
extern const KernelSet avx512_kernels;
extern const KernelSet neon_kernels;

}  // namespace tbn
