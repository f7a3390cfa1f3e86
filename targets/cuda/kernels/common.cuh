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

template <typename T, int kColumns>
struct Wgmma;

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

// What the upper 16 bits of a float32 leave; nothing of an infinity, so that it stays one.
__device__ __forceinline__ float without_upper_half(float value) {
  const float upper = __uint_as_float(__float_as_uint(value) & 0xFFFF0000u);
  return isinf(value) ? 0.f : value - upper;
}

// Takes a bfloat16 off each number: the next part of the three that hold its 24 bits together.
__device__ __forceinline__ unsigned take_upper_halves(float& low, float& high) {
  const unsigned pair = __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
  low = without_upper_half(low), high = without_upper_half(high);
  return pair;
}

__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                    __half) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                    __nv_bfloat16) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ unsigned load_word(const unsigned* pointer) {
  unsigned word;
  asm volatile("ld.global.nc.L1::no_allocate.b32 %0, [%1];" : "=r"(word) : "l"(pointer));
  return word;
}

// A kernel may start before the one ahead of it in the stream ends: it reads constants at once, and
// waits for that end before it reads or writes anything else.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel start. Only Hopper's blocks are alone on their multiprocessor; elsewhere the
// early ones would crowd some and leave others idle.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ == 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace tbn
#endif
