#include "kernels/sets.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace tbn {
namespace {

#if defined(__x86_64__)

// __builtin_cpu_supports does not know this one on every compiler.
bool has_half_conversion() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_half_conversion();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

const KernelSet* const fastest_first[] = {&avx512_kernels, &avx2_kernels, &portable_kernels};

std::size_t unusable() { return has_avx512() ? 0 : has_avx2() ? 1 : 2; }

#elif defined(__aarch64__)

const KernelSet* const fastest_first[] = {&neon_kernels, &portable_kernels};

std::size_t unusable() { return 0; }

#else

const KernelSet* const fastest_first[] = {&portable_kernels};

std::size_t unusable() { return 0; }

#endif

}  // namespace

KernelSets usable_kernels() {
  const std::size_t skipped = unusable();
  return {fastest_first + skipped, sizeof fastest_first / sizeof *fastest_first - skipped};
}

}  // namespace tbn
