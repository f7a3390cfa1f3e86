// The table lookup, written once over an instruction set's vector type.
// Internal linkage on purpose: each instruction set compiles its own copy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel_set.h"

namespace {

// Isa offers: Vector, Words, Table; group, first_sign_bit, lanes, accumulators; zero, load, store,
// add, multiply_add; load_words, next_code (bring the next code down), sign (±1 of the lowest
// code), load_table, pick (the entries that the lowest codes name).
template <class Isa>
struct Lookup {
  static constexpr std::int64_t vectors_per_block = tbn::block_rows / Isa::lanes;
  static constexpr std::int64_t table_floats = std::int64_t{1} << (Isa::group - 1);
  static constexpr std::int64_t codes_per_word = 32 / Isa::group;

  static std::int64_t code_offset(const tbn::LookupTile& tile, std::int64_t vector) {
    return vector / vectors_per_block * tile.block_pitch + vector % vectors_per_block * Isa::lanes;
  }

  template <int Vectors, int Rows>
  static void accumulate(const tbn::LookupTile& tile, std::int64_t row, std::int64_t vector) {
    typename Isa::Vector sums[Vectors][Rows];
    const float* bases[Rows];
    const std::uint32_t* codes[Vectors];
    for (int r = 0; r < Rows; ++r) bases[r] = tile.bases[row + r];
    for (int v = 0; v < Vectors; ++v) {
      codes[v] = tile.codes + code_offset(tile, vector + v);
      for (int r = 0; r < Rows; ++r) sums[v][r] = Isa::zero();
    }
    const std::ptrdiff_t* offsets = tile.offsets;
    typename Isa::Words words[Vectors];
    const auto one_group = [&] {
      typename Isa::Vector sign[Vectors];
      for (int v = 0; v < Vectors; ++v) sign[v] = Isa::sign(words[v]);
      const std::ptrdiff_t offset = *offsets++;
      for (int r = 0; r < Rows; ++r) {
        const typename Isa::Table table = Isa::load_table(bases[r] + offset);
        for (int v = 0; v < Vectors; ++v) {
          sums[v][r] = Isa::multiply_add(sign[v], Isa::pick(table, words[v]), sums[v][r]);
        }
      }
      for (int v = 0; v < Vectors; ++v) words[v] = Isa::next_code(words[v]);
    };
    const auto next_words = [&] {
      for (int v = 0; v < Vectors; ++v) {
        words[v] = Isa::load_words(codes[v]);
        codes[v] += tbn::block_rows;
      }
    };
    std::int64_t left = tile.groups;
    for (; left >= codes_per_word; left -= codes_per_word) {
      next_words();
      for (int g = 0; g < codes_per_word; ++g) one_group();
    }
    if (left > 0) next_words();
    for (; left > 0; --left) one_group();

    for (int r = 0; r < Rows; ++r) {
      float* out = tile.sums + (row + r) * tile.sums_pitch + vector * Isa::lanes;
      for (int v = 0; v < Vectors; ++v, out += Isa::lanes) {
        Isa::store(out, Isa::add(Isa::load(out), sums[v][r]));
      }
    }
  }

  template <int Rows>
  static void all_vectors(const tbn::LookupTile& tile, std::int64_t row) {
    constexpr int fit = Isa::accumulators / Rows;
    constexpr int widest = fit > 8 ? 8 : fit < 1 ? 1 : fit;
    const std::int64_t vectors = tile.blocks * vectors_per_block;
    std::int64_t vector = 0;
    for (; vector + widest <= vectors; vector += widest)
      accumulate<widest, Rows>(tile, row, vector);
    if constexpr (widest > 4) {
      if (vector + 4 <= vectors) accumulate<4, Rows>(tile, row, vector), vector += 4;
    }
    if constexpr (widest > 2) {
      if (vector + 2 <= vectors) accumulate<2, Rows>(tile, row, vector), vector += 2;
    }
    if (vector < vectors) accumulate<1, Rows>(tile, row, vector);
  }

  static void run(const tbn::LookupTile& tile) {
    std::int64_t row = 0;
    // Few rows of signs leave registers for more inputs to share each code.
    if (tile.blocks * vectors_per_block * 8 <= Isa::accumulators) {
      for (; row + 8 <= tile.rows; row += 8) all_vectors<8>(tile, row);
    }
    for (; row + 4 <= tile.rows; row += 4) all_vectors<4>(tile, row);
    if (row + 2 <= tile.rows) all_vectors<2>(tile, row), row += 2;
    if (row < tile.rows) all_vectors<1>(tile, row);
  }
};

}  // namespace
