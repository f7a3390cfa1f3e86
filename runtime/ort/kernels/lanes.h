// Depthwise sums with a group of the convolution in each lane, written once over an instruction
// set's vector type. Internal linkage on purpose: each instruction set compiles its own copy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel_set.h"

namespace {

// Isa offers what Lookup lists.
template <class Isa>
struct Lanes {
  // Inputs that neighbouring columns share are loaded once.
  template <int Width, int Columns>
  static void sum(const tbn::LaneTile& tile, const float* x, const float* weights, float* out) {
    typename Isa::Vector sums[Columns];
    for (int c = 0; c < Columns; ++c) sums[c] = Isa::zero();
    for (std::int64_t t = 0; t < tile.taps; ++t, weights += Width * tbn::block_rows) {
      typename Isa::Vector weight[Width];
      for (int k = 0; k < Width; ++k) weight[k] = Isa::load(weights + k * tbn::block_rows);
      typename Isa::Vector inputs[Columns + Width - 1];
      const float* at = x + tile.offsets[t];
      for (int i = 0; i < Columns + Width - 1; ++i) inputs[i] = Isa::load(at + i * tile.x_step);
      for (int k = 0; k < Width; ++k) {
        for (int c = 0; c < Columns; ++c) {
          sums[c] = Isa::multiply_add(weight[k], inputs[c + k], sums[c]);
        }
      }
    }
    for (int c = 0; c < Columns; ++c) Isa::store(out + c * tbn::block_rows, sums[c]);
  }

  template <int Width>
  static void one_vector(const tbn::LaneTile& tile, const float* x, const float* weights,
                         float* out) {
    constexpr int widest = Isa::accumulators < 16 ? 4 : 8;
    const auto some = [&](auto sum_some, std::int64_t column) {
      sum_some(tile, x + column * tile.x_step, weights, out + column * tbn::block_rows);
    };
    std::int64_t column = 0;
    for (; column + widest <= tile.columns; column += widest) some(sum<Width, widest>, column);
    if constexpr (widest > 4) {
      if (column + 4 <= tile.columns) some(sum<Width, 4>, column), column += 4;
    }
    if (column + 2 <= tile.columns) some(sum<Width, 2>, column), column += 2;
    if (column < tile.columns) some(sum<Width, 1>, column);
  }

  static void run(const tbn::LaneTile& tile) {
    for (std::int64_t lane = 0; lane < tbn::block_rows; lane += Isa::lanes) {
      const auto one = tile.columns_a_tap == 3 ? one_vector<3> : one_vector<1>;
      one(tile, tile.x + lane, tile.weights + lane, tile.sums + lane);
    }
  }
};

}  // namespace
