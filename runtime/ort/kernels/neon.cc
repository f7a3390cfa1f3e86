// Kernels for AArch64 NEON: 4 rows a vector, tables of 8 sums of 4 inputs picked by byte shuffles.
#include <arm_neon.h>

#include "kernels/isa.h"

namespace {

struct Neon {
  static constexpr int group = 4;
  static constexpr int first_sign_bit = group - 1;
  static constexpr int lanes = 4;
  static constexpr int accumulators = 16;
  using Vector = float32x4_t;
  using Words = uint32x4_t;
  using Table = uint8x16x2_t;

  static Vector zero() { return vdupq_n_f32(0.0f); }
  static Vector broadcast(float value) { return vdupq_n_f32(value); }
  static Vector load(const float* from) { return vld1q_f32(from); }
  static void store(float* to, Vector value) { vst1q_f32(to, value); }
  static Words load_words(const std::uint32_t* from) { return vld1q_u32(from); }
  static Words next_code(Words words) { return vshrq_n_u32(words, group); }
  static Vector sign(Words words) {
    const Words top = vandq_u32(vshlq_n_u32(words, 32 - group), vdupq_n_u32(0x80000000u));
    return vreinterpretq_f32_u32(vorrq_u32(top, vdupq_n_u32(0x3f800000u)));
  }
  static Table load_table(const float* from) {
    return vld1q_u8_x2(reinterpret_cast<const std::uint8_t*>(from));
  }
  static Vector pick(const Table& table, Words words) {
    // Index i becomes the byte numbers 4i, 4i+1, 4i+2, 4i+3.
    const Words index = vandq_u32(words, vdupq_n_u32(7u));
    const Words bytes = vmlaq_u32(vdupq_n_u32(0x03020100u), index, vdupq_n_u32(0x04040404u));
    return vreinterpretq_f32_u8(vqtbl2q_u8(table, vreinterpretq_u8_u32(bytes)));
  }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
  static Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
};

void build_tables(const float* const* inputs, std::ptrdiff_t stride, std::int64_t count,
                  float* tables, std::ptrdiff_t pitch) {
  const float first_signs[4] = {-1, 1, -1, 1}, second_signs[4] = {-1, -1, 1, 1};
  const float32x4_t first = vld1q_f32(first_signs), second = vld1q_f32(second_signs);
  const float *a = inputs[0], *b = inputs[1], *c = inputs[2], *d = inputs[3];
  for (std::int64_t t = 0; t < count; ++t, tables += pitch) {
    const std::ptrdiff_t at = t * stride;
    const float32x4_t pairs = vfmaq_n_f32(vmulq_n_f32(second, b[at]), first, a[at]);
    vst1q_f32(tables, vaddq_f32(vdupq_n_f32(d[at] - c[at]), pairs));
    vst1q_f32(tables + 4, vaddq_f32(vdupq_n_f32(d[at] + c[at]), pairs));
  }
}

}  // namespace

namespace tbn {

const KernelSet neon_kernels = kernel_set<Neon>("neon", build_tables);

}  // namespace tbn
