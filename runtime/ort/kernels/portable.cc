// Kernels in plain C++, for any processor.
#include "kernels/isa.h"

namespace {

struct Portable {
  static constexpr int group = 4;
  static constexpr int first_sign_bit = group - 1;
  static constexpr int lanes = 4;
  static constexpr int accumulators = 4;
  struct Vector {
    float lane[lanes];
  };
  struct Words {
    std::uint32_t lane[lanes];
  };
  using Table = const float*;

  static Vector zero() { return {}; }
  static Vector broadcast(float value) { return {{value, value, value, value}}; }
  static Vector load(const float* from) {
    Vector value;
    std::memcpy(value.lane, from, sizeof value.lane);
    return value;
  }
  static void store(float* to, Vector value) { std::memcpy(to, value.lane, sizeof value.lane); }
  static Words load_words(const std::uint32_t* from) {
    Words words;
    std::memcpy(words.lane, from, sizeof words.lane);
    return words;
  }
  static Words next_code(Words words) {
    for (auto& word : words.lane) word >>= group;
    return words;
  }
  static Vector sign(Words words) {
    Vector value;
    for (int i = 0; i < lanes; ++i) {
      value.lane[i] = float_of(((words.lane[i] << (32 - group)) & 0x80000000u) | 0x3f800000u);
    }
    return value;
  }
  static Table load_table(const float* from) { return from; }
  static Vector pick(Table table, Words words) {
    Vector value;
    for (int i = 0; i < lanes; ++i) value.lane[i] = table[words.lane[i] & 7u];
    return value;
  }
  static Vector multiply_add(Vector a, Vector b, Vector c) {
    for (int i = 0; i < lanes; ++i) c.lane[i] += a.lane[i] * b.lane[i];
    return c;
  }
  static Vector add(Vector a, Vector b) {
    for (int i = 0; i < lanes; ++i) a.lane[i] += b.lane[i];
    return a;
  }
};

void build_tables(const float* const* inputs, std::ptrdiff_t stride, std::int64_t count,
                  float* tables, std::ptrdiff_t pitch) {
  for (std::int64_t t = 0; t < count; ++t, tables += pitch) {
    const float a = inputs[0][t * stride], b = inputs[1][t * stride];
    const float c = inputs[2][t * stride], d = inputs[3][t * stride];
    const float pairs[4] = {-a - b, a - b, b - a, a + b};
    for (int i = 0; i < 4; ++i) {
      tables[i] = (d - c) + pairs[i];
      tables[i + 4] = (d + c) + pairs[i];
    }
  }
}

}  // namespace

namespace tbn {

const KernelSet portable_kernels = kernel_set<Portable>("portable", build_tables);

}  // namespace tbn
