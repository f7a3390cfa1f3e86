#ifndef TBN_COMMON
#define TBN_COMMON
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Signs of distinct rows arrive packed as words[ceil(K / 128)][rows][4]: word c of a row and block
// holds what lane c of a quad needs of a tensor-core fragment, bit j and bit j + 16 being the pair
// of inputs 16 (j / 2) + 8 (j % 2) + 2 c + {0, 1}. A set bit is -1.
namespace tbn {

template <typename T>
struct Element;

template <>
struct Element<__half> {
  static constexpr unsigned kOnes = 0x3C003C00u;
  static __device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
};

template <>
struct Element<__nv_bfloat16> {
  static constexpr unsigned kOnes = 0x3F803F80u;
  static __device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
};

// The pair of +1 and -1 that bits `pair` and `pair + 16` of a word stand for.
template <typename T>
__device__ __forceinline__ unsigned signs(unsigned word, int pair) {
  unsigned ones;
  // (shifted & mask) ^ ones, as one instruction.
  asm("lop3.b32 %0, %1, %2, %3, 0x6A;"
      : "=r"(ones)
      : "r"(word << (15 - pair)), "r"(0x80008000u), "r"(Element<T>::kOnes));
  return ones;
}

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ unsigned load_word(const unsigned* pointer) {
  unsigned word;
  asm volatile("ld.global.nc.L1::no_allocate.b32 %0, [%1];" : "=r"(word) : "l"(pointer));
  return word;
}

}  // namespace tbn
#endif
