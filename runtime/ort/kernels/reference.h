// The operators as their definition reads: expand one weight at a time, multiply, add in double.
// Slow and plain; the fast kernels are compared with it.
#pragma once

#include <cstdint>

#include "plan.h"

namespace tbn::reference {

struct Weight {
  Tiling tiling;
  const std::uint8_t* tile;
  const float* scale;

  double at(std::int64_t position) const {
    const std::int64_t phase = tiling.phase(position);
    const double scale_value = scale[tiling.scale_index(position)];
    return tile[phase / 8] >> (phase % 8) & 1 ? scale_value : -scale_value;
  }
};

// y[rows, outputs] from x[rows, inputs]; the weight is stored in `layout`.
void gemm(const Weight& weight, Layout layout, std::int64_t rows, std::int64_t outputs,
          std::int64_t inputs, const float* x, const float* bias, Activation activation, double* y);

void conv(const Weight& weight, const ConvGeometry& geometry, const float* x, const float* bias,
          Activation activation, double* y);

}  // namespace tbn::reference
