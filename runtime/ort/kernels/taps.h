// Weighted sums of shifted input rows, written once over an instruction set's vector type.
// Internal linkage on purpose: each instruction set compiles its own copy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel_set.h"

namespace {

// Isa offers what Lookup lists, and broadcast (one float to all lanes).
template <class Isa>
struct Taps {
  // Sums are cut here, which keeps their rounding error small.
  static constexpr std::int64_t most_inputs = 256;

  template <int Channels, int Vectors>
  static void sum(const tbn::TapTile& tile, const float* x, const float* weights, float* out) {
    for (std::int64_t first = 0; first < tile.inputs; first += most_inputs) {
      const std::int64_t left = tile.inputs - first;
      const std::int64_t end = first + (left < most_inputs ? left : most_inputs);
      typename Isa::Vector sums[Channels][Vectors];
      for (int c = 0; c < Channels; ++c) {
        for (int v = 0; v < Vectors; ++v) sums[c][v] = Isa::zero();
      }
      for (std::int64_t i = first; i < end; ++i) {
        typename Isa::Vector inputs[Vectors];
        const float* at = x + tile.offsets[i];
        for (int v = 0; v < Vectors; ++v) inputs[v] = Isa::load(at + v * Isa::lanes);
        for (int c = 0; c < Channels; ++c) {
          const typename Isa::Vector weight = Isa::broadcast(weights[c * tile.inputs + i]);
          for (int v = 0; v < Vectors; ++v) {
            sums[c][v] = Isa::multiply_add(weight, inputs[v], sums[c][v]);
          }
        }
      }
      for (int c = 0; c < Channels; ++c) {
        for (int v = 0; v < Vectors; ++v) {
          float* to = out + c * tile.sums_pitch + v * Isa::lanes;
          Isa::store(to, first > 0 ? Isa::add(Isa::load(to), sums[c][v]) : sums[c][v]);
        }
      }
    }
  }

  // Rows go in order: where a vector reaches past the end of a row, the next row mends it.
  template <int Channels>
  static void all_rows(const tbn::TapTile& tile, std::int64_t channel) {
    constexpr int fit = Isa::accumulators / Channels;
    constexpr int widest = fit > 4 ? 4 : fit < 1 ? 1 : fit;
    const float* weights = tile.weights + channel * tile.inputs;
    float* out = tile.sums + channel * tile.sums_pitch;
    const float* x = tile.x;
    for (std::int64_t row = 0; row < tile.rows; ++row, x += tile.x_pitch, out += tile.columns) {
      std::int64_t left = tile.columns;
      const auto at = [&] { return tile.columns - left; };
      for (; left > (widest - 1) * Isa::lanes; left -= widest * Isa::lanes) {
        sum<Channels, widest>(tile, x + at(), weights, out + at());
      }
      if constexpr (widest > 2) {
        for (; left > Isa::lanes; left -= 2 * Isa::lanes) {
          sum<Channels, 2>(tile, x + at(), weights, out + at());
        }
      }
      if constexpr (widest > 1) {
        if (left > 0) sum<Channels, 1>(tile, x + at(), weights, out + at());
      }
    }
  }

  static void run(const tbn::TapTile& tile) {
    std::int64_t channel = 0;
    if constexpr (Isa::accumulators >= 16) {
      for (; channel + 8 <= tile.channels; channel += 8) all_rows<8>(tile, channel);
    }
    for (; channel + 4 <= tile.channels; channel += 4) all_rows<4>(tile, channel);
    if (channel + 2 <= tile.channels) all_rows<2>(tile, channel), channel += 2;
    if (channel < tile.channels) all_rows<1>(tile, channel);
  }
};

}  // namespace
