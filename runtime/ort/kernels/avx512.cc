// Kernels for AVX-512: 16 rows a vector, tables of 16 sums of 5 inputs.
#include <immintrin.h>

#include "kernels/isa.h"

namespace {

struct Avx512 {
  static constexpr int group = 5;
  static constexpr int first_sign_bit = 31;  // rotating words brings the next sign to the top
  static constexpr int lanes = 16;
  static constexpr int accumulators = 16;
  using Vector = __m512;
  using Words = __m512i;
  using Table = __m512;

  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector broadcast(float value) { return _mm512_set1_ps(value); }
  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Vector value) { _mm512_storeu_ps(to, value); }
  static Words load_words(const std::uint32_t* from) { return _mm512_loadu_si512(from); }
  static Words next_code(Words words) { return _mm512_ror_epi32(words, group); }
  static Vector sign(Words words) {
    constexpr int a_and_b_or_c = 0xEA;
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(words, _mm512_set1_epi32(static_cast<int>(0x80000000u)),
                                  _mm512_set1_epi32(0x3f800000), a_and_b_or_c));
  }
  static Table load_table(const float* from) { return _mm512_load_ps(from); }
  static Vector pick(Table table, Words words) { return _mm512_permutexvar_ps(words, table); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
};

// Lane i holds the sign that input j has in table entry i.
inline __m512 entry_signs(int j) {
  const __m512i entry = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 positive = _mm512_test_epi32_mask(entry, _mm512_set1_epi32(1 << j));
  return _mm512_mask_blend_ps(positive, _mm512_set1_ps(-1.0f), _mm512_set1_ps(1.0f));
}

void build_tables(const float* const* inputs, std::ptrdiff_t stride, std::int64_t count,
                  float* tables, std::ptrdiff_t pitch) {
  const __m512 signs[4] = {entry_signs(0), entry_signs(1), entry_signs(2), entry_signs(3)};
  const float *a = inputs[0], *b = inputs[1], *c = inputs[2], *d = inputs[3], *e = inputs[4];
  for (std::int64_t t = 0; t < count; ++t, tables += pitch) {
    const std::ptrdiff_t at = t * stride;
    __m512 sums = _mm512_fmadd_ps(signs[0], _mm512_set1_ps(a[at]), _mm512_set1_ps(e[at]));
    sums = _mm512_fmadd_ps(signs[1], _mm512_set1_ps(b[at]), sums);
    sums = _mm512_fmadd_ps(signs[2], _mm512_set1_ps(c[at]), sums);
    sums = _mm512_fmadd_ps(signs[3], _mm512_set1_ps(d[at]), sums);
    _mm512_store_ps(tables, sums);
  }
}

}  // namespace

namespace tbn {

const KernelSet avx512_kernels = kernel_set<Avx512>("avx512", build_tables);

}  // namespace tbn
