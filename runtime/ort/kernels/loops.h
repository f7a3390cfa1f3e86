// The kernels that are plain loops; the compiler vectorises them for each instruction set.
// Internal linkage and no std:: templates on purpose: a shared inline function compiled for a newer
// instruction set could otherwise be the copy that the linker keeps for everyone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels/kernel_set.h"
#include "kernels/number_formats.h"

namespace {

constexpr std::int64_t lanes = tbn::vector_floats;
typedef float Floats __attribute__((vector_size(lanes * sizeof(float))));

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// 32 bits from bit `first`, zeros past the end.
inline std::uint32_t load_bits(const std::uint8_t* bits, std::int64_t bytes, std::int64_t first) {
  std::uint64_t window = 0;
  const std::int64_t byte = first / 8;
  if (byte + 8 <= bytes) {
    std::memcpy(&window, bits + byte, sizeof window);
  } else {
    for (std::int64_t i = byte; i < bytes; ++i) {
      window |= static_cast<std::uint64_t>(bits[i]) << (i - byte) * 8;
    }
  }
  return static_cast<std::uint32_t>(window >> (first % 8));
}

void expand_signs(const std::uint8_t* bits, std::int64_t bytes, std::int64_t first,
                  std::int64_t count, float* signs) {
  for (std::int64_t i = 0; i < count; i += 32) {
    const std::uint32_t negative = ~load_bits(bits, bytes, first + i);
    for (std::uint32_t j = 0; j < 32; ++j) {
      signs[i + j] = float_of(((negative >> j) << 31) | 0x3f800000u);
    }
  }
}

float dot(const float* a, const float* b, std::int64_t count) {
  float partial[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (std::int64_t lane = 0; lane < lanes; ++lane) partial[lane] += a[i + lane] * b[i + lane];
  }
  for (std::int64_t lane = 0; i < count; ++i, ++lane) partial[lane] += a[i] * b[i];
  for (std::int64_t half = lanes / 2; half > 0; half /= 2) {
    for (std::int64_t lane = 0; lane < half; ++lane) partial[lane] += partial[lane + half];
  }
  return partial[0];
}

void dot_rows(const float* signs, const float* x, std::int64_t x_pitch, std::int64_t rows,
              std::int64_t count, float* sums) {
  for (std::int64_t row = 0; row < rows; ++row) sums[row] += dot(signs, x + row * x_pitch, count);
}

void add_scaled(float factor, const float* x, std::int64_t count, float* sums) {
  for (std::int64_t i = 0; i < count; ++i) sums[i] += factor * x[i];
}

// Calls block(i) for stretches of `length` that cover [0, count); the last is moved back to end
// there.
template <class Block>
inline void for_stretches(std::int64_t count, std::int64_t length, const Block& block) {
  for (std::int64_t i = 0; i + length < count; i += length) block(i);
  block(count - length);
}

inline void copy_values(const float* x, std::int64_t count, float* out) {
  if (count < lanes) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = x[i];
    return;
  }
  for_stretches(count, lanes, [&](std::int64_t i) { std::memcpy(out + i, x + i, sizeof(Floats)); });
}

inline void zero_vectors(std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; i += lanes) std::memset(out + i, 0, sizeof(Floats));
}

// Rows go in order: zeros that reach too far are overwritten by what follows.
void copy_rows(const tbn::PaddedRows& rows) {
  const float* x = rows.x;
  float* out = rows.out;
  for (std::int64_t row = 0; row < rows.rows; ++row, x += rows.x_pitch, out += rows.length) {
    zero_vectors(rows.before, out);
    float* values = out + rows.before;
    if (rows.stride == 1) {
      copy_values(x, rows.inside, values);
    } else if (rows.stride == 2) {
      for (std::int64_t i = 0; i < rows.inside; ++i) values[i] = x[2 * i];
    } else {
      for (std::int64_t i = 0; i < rows.inside; ++i) values[i] = x[rows.stride * i];
    }
    zero_vectors(rows.length - rows.before - rows.inside, values + rows.inside);
  }
}

#if defined(__SSE2__)
inline void transpose_4x4(const float* in, std::int64_t in_pitch, float* out,
                          std::int64_t out_pitch) {
  __m128 a = _mm_loadu_ps(in), b = _mm_loadu_ps(in + in_pitch);
  __m128 c = _mm_loadu_ps(in + 2 * in_pitch), d = _mm_loadu_ps(in + 3 * in_pitch);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(out, a);
  _mm_storeu_ps(out + out_pitch, b);
  _mm_storeu_ps(out + 2 * out_pitch, c);
  _mm_storeu_ps(out + 3 * out_pitch, d);
}
#else
inline void transpose_4x4(const float* in, std::int64_t in_pitch, float* out,
                          std::int64_t out_pitch) {
  for (int column = 0; column < 4; ++column) {
    for (int row = 0; row < 4; ++row) out[column * out_pitch + row] = in[row * in_pitch + column];
  }
}
#endif

#if defined(__AVX512F__)
// Rows i, i + 4, i + 8 and i + 12 share a vector: every 128 bits transpose a 4x4 of their own.
inline void transpose_16x4(const float* in, std::int64_t in_pitch, float* out,
                           std::int64_t out_pitch) {
  const auto rows = [&](std::int64_t row) {
    const float* from = in + row * in_pitch;
    __m512 four = _mm512_castps128_ps512(_mm_loadu_ps(from));
    four = _mm512_insertf32x4(four, _mm_loadu_ps(from + 4 * in_pitch), 1);
    four = _mm512_insertf32x4(four, _mm_loadu_ps(from + 8 * in_pitch), 2);
    return _mm512_castps_pd(_mm512_insertf32x4(four, _mm_loadu_ps(from + 12 * in_pitch), 3));
  };
  const auto low = [](__m512d a, __m512d b) {
    return _mm512_castps_pd(_mm512_unpacklo_ps(_mm512_castpd_ps(a), _mm512_castpd_ps(b)));
  };
  const auto high = [](__m512d a, __m512d b) {
    return _mm512_castps_pd(_mm512_unpackhi_ps(_mm512_castpd_ps(a), _mm512_castpd_ps(b)));
  };
  const __m512d a = rows(0), b = rows(1), c = rows(2), d = rows(3);
  const __m512d ab = low(a, b), cd = low(c, d), upper_ab = high(a, b), upper_cd = high(c, d);
  _mm512_storeu_pd(out, _mm512_unpacklo_pd(ab, cd));
  _mm512_storeu_pd(out + out_pitch, _mm512_unpackhi_pd(ab, cd));
  _mm512_storeu_pd(out + 2 * out_pitch, _mm512_unpacklo_pd(upper_ab, upper_cd));
  _mm512_storeu_pd(out + 3 * out_pitch, _mm512_unpackhi_pd(upper_ab, upper_cd));
}
#else
inline void transpose_16x4(const float* in, std::int64_t in_pitch, float* out,
                           std::int64_t out_pitch) {
  for (std::int64_t row = 0; row < 16; row += 4) {
    transpose_4x4(in + row * in_pitch, in_pitch, out + row, out_pitch);
  }
}
#endif

void transpose(const float* in, std::int64_t in_pitch, std::int64_t rows, std::int64_t columns,
               float* out, std::int64_t out_pitch) {
  if (rows < 4 || columns < 4) {
    for (std::int64_t column = 0; column < columns; ++column) {
      for (std::int64_t row = 0; row < rows; ++row) {
        out[column * out_pitch + row] = in[row * in_pitch + column];
      }
    }
    return;
  }
  for_stretches(columns, 4, [&](std::int64_t column) {
    const float* from = in + column;
    float* to = out + column * out_pitch;
    if (rows < 16) {
      for_stretches(rows, 4, [&](std::int64_t row) {
        transpose_4x4(from + row * in_pitch, in_pitch, to + row, out_pitch);
      });
      return;
    }
    for_stretches(rows, 16, [&](std::int64_t row) {
      transpose_16x4(from + row * in_pitch, in_pitch, to + row, out_pitch);
    });
  });
}

inline float clamp(float value, float minimum, float maximum) {
  const float raised = value < minimum ? minimum : value;
  return raised > maximum ? maximum : raised;
}

void halves_to_float(const std::uint16_t* in, std::int64_t count, float* out) {
  std::int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
  }
#elif defined(__aarch64__)
  for (; i + 4 <= count; i += 4) {
    vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(in + i))));
  }
#endif
  for (; i < count; ++i) out[i] = float_from_half(in[i]);
}

void floats_to_half(const float* in, std::int64_t count, std::uint16_t* out) {
  std::int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), halves);
  }
#elif defined(__aarch64__)
  for (; i + 4 <= count; i += 4) {
    vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(in + i))));
  }
#endif
  for (; i < count; ++i) out[i] = half_from_float(in[i]);
}

void to_float(tbn::ElementType type, const void* in, std::int64_t count, float* out) {
  const auto* words = static_cast<const std::uint16_t*>(in);
  switch (type) {
    case tbn::ElementType::float32:
      std::memcpy(out, in, static_cast<std::size_t>(count) * sizeof(float));
      return;
    case tbn::ElementType::float16:
      halves_to_float(words, count, out);
      return;
    case tbn::ElementType::bfloat16:
      for (std::int64_t i = 0; i < count; ++i) out[i] = float_from_bfloat16(words[i]);
      return;
  }
}

void from_float(tbn::ElementType type, const float* in, std::int64_t count, void* out) {
  auto* words = static_cast<std::uint16_t*>(out);
  if (type == tbn::ElementType::float16) {
    floats_to_half(in, count, words);
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) words[i] = bfloat16_from_float(in[i]);
}

// Runs `compute(first, count, float* out)` straight into y, or through a small buffer to round.
template <class Compute>
void finish_chunks(tbn::ElementType type, std::int64_t count, void* y, const Compute& compute) {
  if (type == tbn::ElementType::float32) {
    compute(0, count, static_cast<float*>(y));
    return;
  }
  constexpr std::int64_t chunk = 256;
  float buffer[chunk];
  for (std::int64_t first = 0; first < count; first += chunk) {
    const std::int64_t length = smaller(chunk, count - first);
    compute(first, length, buffer);
    from_float(type, buffer, length, static_cast<std::uint16_t*>(y) + first);
  }
}

void finish_row(const tbn::Finish& finish, const float* u, const float* scale, const float* bias,
                std::int64_t count, void* y) {
  const float minimum = finish.minimum, maximum = finish.maximum;
  const auto compute = [=](std::int64_t first, std::int64_t length, float* __restrict out) {
    for (std::int64_t i = 0; i < length; ++i) {
      out[i] = clamp(scale[first + i] * u[first + i] + bias[first + i], minimum, maximum);
    }
  };
  finish_chunks(finish.type, count, y, compute);
}

void finish_channel(const tbn::Finish& finish, const float* u, float scale, float bias,
                    std::int64_t count, void* y) {
  const float minimum = finish.minimum, maximum = finish.maximum;
  const auto compute = [=](std::int64_t first, std::int64_t length, float* __restrict out) {
    for (std::int64_t i = 0; i < length; ++i) {
      out[i] = clamp(scale * u[first + i] + bias, minimum, maximum);
    }
  };
  finish_chunks(finish.type, count, y, compute);
}

}  // namespace
