// Kernels for AVX2 with FMA and F16C: 8 rows a vector, tables of 8 sums of 4 inputs.
#include <immintrin.h>

#include "kernels/isa.h"

namespace {

struct Avx2 {
  static constexpr int group = 4;
  static constexpr int first_sign_bit = group - 1;
  static constexpr int lanes = 8;
  static constexpr int accumulators = 8;
  using Vector = __m256;
  using Words = __m256i;
  using Table = __m256;

  static Vector zero() { return _mm256_setzero_ps(); }
  static Vector broadcast(float value) { return _mm256_set1_ps(value); }
  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Vector value) { _mm256_storeu_ps(to, value); }
  static Words load_words(const std::uint32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static Words next_code(Words words) { return _mm256_srli_epi32(words, group); }
  static Vector sign(Words words) {
    const Words top = _mm256_and_si256(_mm256_slli_epi32(words, 32 - group),
                                       _mm256_set1_epi32(static_cast<int>(0x80000000u)));
    return _mm256_castsi256_ps(_mm256_or_si256(top, _mm256_set1_epi32(0x3f800000)));
  }
  static Table load_table(const float* from) { return _mm256_load_ps(from); }
  static Vector pick(Table table, Words words) { return _mm256_permutevar8x32_ps(table, words); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
};

void build_tables(const float* const* inputs, std::ptrdiff_t stride, std::int64_t count,
                  float* tables, std::ptrdiff_t pitch) {
  const __m256 first = _mm256_setr_ps(-1, 1, -1, 1, -1, 1, -1, 1);
  const __m256 second = _mm256_setr_ps(-1, -1, 1, 1, -1, -1, 1, 1);
  const __m256 third = _mm256_setr_ps(-1, -1, -1, -1, 1, 1, 1, 1);
  const float *a = inputs[0], *b = inputs[1], *c = inputs[2], *d = inputs[3];
  for (std::int64_t t = 0; t < count; ++t, tables += pitch) {
    const std::ptrdiff_t at = t * stride;
    __m256 sums = _mm256_fmadd_ps(first, _mm256_set1_ps(a[at]), _mm256_set1_ps(d[at]));
    sums = _mm256_fmadd_ps(second, _mm256_set1_ps(b[at]), sums);
    sums = _mm256_fmadd_ps(third, _mm256_set1_ps(c[at]), sums);
    _mm256_store_ps(tables, sums);
  }
}

}  // namespace

namespace tbn {

const KernelSet avx2_kernels = kernel_set<Avx2>("avx2", build_tables);

}  // namespace tbn
