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
  std::memcpy(&window, bits + byte, static_cast<std::size_t>(smaller(8, bytes - byte)));
  return static_cast<std::uint32_t>(window >> (first % 8));
}

void expand_signs(const std::uint8_t* bits, std::int64_t bytes, std::int64_t first,
                  std::int64_t count, float* signs) {
  std::int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const std::uint32_t negative = ~load_bits(bits, bytes, first + i);
    for (std::uint32_t j = 0; j < 32; ++j) {
      signs[i + j] = float_of(((negative >> j) << 31) | 0x3f800000u);
    }
  }
  if (i == count) return;
  const std::uint32_t negative = ~load_bits(bits, bytes, first + i);
  for (std::uint32_t j = 0; i + j < count; ++j) {
    signs[i + j] = float_of(((negative >> j) << 31) | 0x3f800000u);
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

template <int Vectors>
inline void add_taps_at(const tbn::TapRows& taps, const float* x, float* sums) {
  Floats total[Vectors];
  for (int v = 0; v < Vectors; ++v) std::memcpy(&total[v], sums + v * lanes, sizeof(Floats));
  for (std::int64_t t = 0; t < taps.taps; ++t) {
    for (int v = 0; v < Vectors; ++v) {
      Floats in;
      std::memcpy(&in, x + taps.offsets[t] + v * lanes, sizeof in);
      total[v] += taps.weights[t] * in;
    }
  }
  for (int v = 0; v < Vectors; ++v) std::memcpy(sums + v * lanes, &total[v], sizeof(Floats));
}

void add_taps(const tbn::TapRows& taps) {
  for (std::int64_t row = 0; row < taps.rows; ++row) {
    const float* x = taps.x + row * taps.x_pitch;
    float* sums = taps.sums + row * taps.sums_pitch;
    std::int64_t i = 0;
    for (; i + 2 * lanes <= taps.count; i += 2 * lanes) add_taps_at<2>(taps, x + i, sums + i);
    if (i < taps.count) add_taps_at<1>(taps, x + i, sums + i);
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

// `columns` is a multiple of 4.
void transpose(const float* in, std::int64_t in_pitch, std::int64_t rows, std::int64_t columns,
               float* out, std::int64_t out_pitch) {
  for (std::int64_t column = 0; column < columns; column += 4) {
    float* lines = out + column * out_pitch;
    std::int64_t row = 0;
    for (; row + 4 <= rows; row += 4) {
      transpose_4x4(in + row * in_pitch + column, in_pitch, lines + row, out_pitch);
    }
    for (; row < rows; ++row) {
      for (int c = 0; c < 4; ++c) lines[c * out_pitch + row] = in[row * in_pitch + column + c];
    }
  }
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
