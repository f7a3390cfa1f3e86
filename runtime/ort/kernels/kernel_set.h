// The kernels one instruction set offers. Pointers and shapes only: no framework is known here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tbn {

enum class ElementType { float32, float16, bfloat16 };

constexpr std::size_t element_bytes(ElementType type) {
  return type == ElementType::float32 ? 4 : 2;
}

// Output rows of some channels, each the sum of shifted, weighted input rows: element i of row r of
// channel c is the sum over t of weights[c][t] * x[r * x_pitch + offsets[t] + i].
// Reads and writes up to vector_floats past the end of a row.
struct TapTile {
  const float* x;
  std::int64_t x_pitch;
  const std::ptrdiff_t* offsets;  // [inputs]
  const float* weights;           // [channels][inputs]
  std::int64_t inputs;
  std::int64_t channels;
  std::int64_t rows;
  std::int64_t columns;
  float* sums;
  std::int64_t sums_pitch;
};

// Rows with zeros around their values: out[r * length + before + i] = x[r * x_pitch + i * stride]
// for i < inside. Writes up to vector_floats past the last row.
struct PaddedRows {
  const float* x;
  std::int64_t x_pitch;
  std::int64_t stride;
  std::int64_t rows;
  std::int64_t before;
  std::int64_t inside;
  std::int64_t length;
  float* out;
};

constexpr std::int64_t vector_floats = 16;
constexpr std::int64_t sign_stretch = 32;

// Rows of signs are packed in blocks of this many; lane r of a block's word belongs to row r.
constexpr std::int64_t block_rows = 16;

// One call of the table lookup: sums[r][b * block_rows + lane] += signs · inputs.
//
// `group` consecutive inputs share a table of 2^(group-1) signed partial sums; the missing half is
// its negative. A row's code for a group is a table index and a sign bit. 32 / group codes fill a
// word: index g starts at bit g * group, its sign is bit (g * group + first_sign_bit) % 32.
// Words are laid out [block][word][lane].
struct LookupTile {
  const std::uint32_t* codes;
  std::int64_t block_pitch;  // words from one block to the next, lanes included
  std::int64_t blocks;
  std::int64_t groups;
  const std::ptrdiff_t* offsets;  // [groups] floats from a row's base to the group's table
  const float* const* bases;      // [rows]
  std::int64_t rows;
  float* sums;
  std::int64_t sums_pitch;
};

// An output row of depthwise sums, a group in each of block_rows lanes:
// sums[c][lane] = sum over t, k of weights[t][k][lane] * x[(c + k) * x_step + offsets[t] + lane].
struct LaneTile {
  const float* x;
  std::int64_t x_step;            // between output columns
  const std::ptrdiff_t* offsets;  // [taps]
  const float* weights;
  std::int64_t taps;
  std::int64_t columns_a_tap;  // 1 or 3
  std::int64_t columns;
  float* sums;
};

// y = clamp(scale * u + bias), rounded to `type`. NaN passes through.
struct Finish {
  float minimum;
  float maximum;
  ElementType type;
};

struct KernelSet {
  const char* name;
  int group;
  int first_sign_bit;

  // Writes `count` tables, `pitch` floats apart. Table t sums inputs[j][t * stride], j < group.
  void (*build_tables)(const float* const* inputs, std::ptrdiff_t stride, std::int64_t count,
                       float* tables, std::ptrdiff_t pitch);
  void (*lookup)(const LookupTile& tile);

  // signs[i] = ±1.0 for `count` bits from bit `first`; the bits lie inside `bytes` bytes. Writes
  // whole stretches of sign_stretch.
  void (*expand_signs)(const std::uint8_t* bits, std::int64_t bytes, std::int64_t first,
                       std::int64_t count, float* signs);
  // sums[r] += signs · x[r]
  void (*dot_rows)(const float* signs, const float* x, std::int64_t x_pitch, std::int64_t rows,
                   std::int64_t count, float* sums);
  // sums[i] += factor * x[i]
  void (*add_scaled)(float factor, const float* x, std::int64_t count, float* sums);
  void (*sum_taps)(const TapTile& tile);
  void (*sum_lanes)(const LaneTile& tile);
  void (*copy_rows)(const PaddedRows& rows);
  // out[c][r] = in[r][c]
  void (*transpose)(const float* in, std::int64_t in_pitch, std::int64_t rows, std::int64_t columns,
                    float* out, std::int64_t out_pitch);

  // `y` points at elements of finish.type. One scale and bias an element, or one for all.
  void (*finish_row)(const Finish& finish, const float* u, const float* scale, const float* bias,
                     std::int64_t count, void* y);
  void (*finish_channel)(const Finish& finish, const float* u, float scale, float bias,
                         std::int64_t count, void* y);
  void (*to_float)(ElementType type, const void* in, std::int64_t count, float* out);

  std::int64_t table_floats() const { return std::int64_t{1} << (group - 1); }
  std::int64_t codes_per_word() const { return 32 / group; }
};

struct KernelSets {
  const KernelSet* const* begin_;
  std::size_t count;
  const KernelSet* const* begin() const { return begin_; }
  const KernelSet* const* end() const { return begin_ + count; }
};

// Kernel sets this processor can run, fastest first; the portable one is always the last.
KernelSets usable_kernels();

}  // namespace tbn
