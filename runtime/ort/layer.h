// A layer made ready to run: signs packed for the lookup kernel, scales as float32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "kernels/kernel_set.h"
#include "plan.h"

namespace tbn {

// Hands out aligned pieces of one buffer. From a null base it only measures.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<std::uint8_t*>(base)) {}

  template <class T>
  T* take(std::int64_t count) {
    std::int64_t bytes = 0;
    if (__builtin_mul_overflow(count, static_cast<std::int64_t>(sizeof(T)), &bytes) ||
        __builtin_add_overflow(bytes, used_ + alignment - 1, &bytes)) {
      too_large();
    }
    auto* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ = bytes / alignment * alignment;
    return piece;
  }
  // An array of several dimensions, none below zero.
  template <class T>
  T* take(std::initializer_list<std::int64_t> shape) {
    std::int64_t count = 1;
    for (const std::int64_t length : shape) {
      if (__builtin_mul_overflow(count, length, &count)) too_large();
    }
    return take<T>(count);
  }
  std::int64_t used() const { return used_; }

  static constexpr std::int64_t alignment = 64;

 private:
  [[noreturn]] static void too_large() {
    throw InvalidLayer("the layer needs more memory than can be addressed; split it");
  }

  std::uint8_t* base_;
  std::int64_t used_ = 0;
};

// Stored parameters as they arrive.
struct Parameters {
  const std::uint8_t* tile;
  const void* scale;
  ElementType type;
};

// What a call reads and writes; x, bias are float32 already.
struct Call {
  const float* x;
  const float* bias;  // [outputs], zeros where the node has none
  const std::uint8_t* tile;
  void* y;
  Finish finish;
};

// Of any kernel set.
constexpr int most_group = 5;

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Code number `index` of a word, for a group of signs: `positive` has bit j set for +1.
inline std::uint32_t lookup_code(const KernelSet& kernels, std::uint32_t positive,
                                 std::int64_t index) {
  const std::uint32_t entries = 1u << (kernels.group - 1);
  const std::uint32_t negative = positive & entries ? 0 : 1;
  const std::uint32_t entry = (negative ? ~positive : positive) & (entries - 1);
  const std::int64_t at = index * kernels.group;
  return entry << at | negative << ((at + kernels.first_sign_bit) % 32);
}

// Fills codes[block][word][lane] for `rows` rows of `groups` groups;
// positive(row, group) gives a group's signs.
template <class Positive>
void pack_codes(const KernelSet& kernels, std::int64_t rows, std::int64_t groups,
                std::int64_t words, std::uint32_t* codes, const Positive& positive) {
  const std::int64_t per_word = kernels.codes_per_word();
  for (std::int64_t row = 0; row < divide_up(rows, block_rows) * block_rows; ++row) {
    std::uint32_t* out = codes + row / block_rows * words * block_rows + row % block_rows;
    for (std::int64_t word = 0; word < words; ++word, out += block_rows) {
      *out = 0;
      const std::int64_t first = word * per_word;
      const std::int64_t end = row < rows ? std::min(per_word, groups - first) : 0;
      for (std::int64_t g = 0; g < end; ++g) {
        *out |= lookup_code(kernels, positive(row, first + g), g);
      }
    }
  }
}

// Bit j of the result is the sign at stored position first + j * step, set for +1.
inline std::uint32_t gather_signs(const std::uint8_t* tile, const Tiling& tiling,
                                  std::int64_t first, std::int64_t step, std::int64_t count) {
  const std::int64_t advance = step % tiling.tile_length;
  std::int64_t phase = tiling.phase(first);
  std::uint32_t signs = 0;
  for (std::int64_t j = 0; j < count; ++j) {
    const std::uint32_t byte = tile[phase / 8];
    signs |= (byte >> (phase % 8) & 1u) << j;
    phase += advance;
    if (phase >= tiling.tile_length) phase -= tiling.tile_length;
  }
  return signs;
}

}  // namespace tbn
