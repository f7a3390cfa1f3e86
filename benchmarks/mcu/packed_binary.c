/*
 * The example MLP as packed binary weights without reuse, the algorithm of the published
 * microcontroller kernel: every row is computed, a bit of the weight adds or subtracts an input.
 * Written for speed: a byte of bits is loaded once, and a bit flips the sign of the input's word.
 * Scales are per quarter of the rows and per layer.
 * Generated beside it: weights.h with BITS_1, SCALES_1, BIAS_1, BITS_2, SCALES_2 and BIAS_2.
 */
#include <stdint.h>
#include <string.h>

#include "weights.h"

static float hidden[128];

#define ADD(bit)                                       \
  memcpy(&word, &x[column + bit], sizeof word);        \
  word ^= (negative << (31 - bit)) & 0x80000000u;      \
  memcpy(&value, &word, sizeof value);                 \
  sum += value;

static void layer(const float* x, int32_t columns, const uint8_t* bits, const float* scales,
                  int32_t rows, int32_t rows_of_scale, const float* bias, float floor, float* y) {
  for (int32_t row = 0; row < rows; ++row) {
    float sum = 0.0f;
    for (int32_t column = 0; column < columns; column += 8) {
      uint32_t negative = ~(uint32_t)*bits++;
      uint32_t word;
      float value;
      ADD(0) ADD(1) ADD(2) ADD(3) ADD(4) ADD(5) ADD(6) ADD(7)
    }
    sum = sum * scales[row / rows_of_scale] + bias[row];
    y[row] = sum > floor ? sum : floor;
  }
}

int32_t tvmgen_default___tvm_main__(void* input, void* output);

int32_t tvmgen_default___tvm_main__(void* input, void* output) {
  layer(input, 784, BITS_1, SCALES_1, 128, 32, BIAS_1, 0.0f, hidden);
  layer(hidden, 128, BITS_2, SCALES_2, 10, 10, BIAS_2, -3.4e38f, output);
  return 0;
}
