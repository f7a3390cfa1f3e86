#include "conv_strip.h"

namespace tbn {

void Columns::copy(const KernelSet& kernels, const ConvGeometry::Axis* axes, const float* plane,
                   std::int64_t depth, const Positions& down, std::int64_t phase,
                   float* out) const {
  const bool outside = depth < 0 || depth >= axes[0].input;
  const Inside rows(down.first, down.step, outside ? 0 : down.count, axes[1].input);
  const Inside columns(first + phase, stride, length, axes[2].input);
  if (rows.begin == rows.end || columns.begin == columns.end) {
    std::fill(out, out + down.count * length, 0.0f);
    return;
  }
  const std::int64_t row = depth * axes[1].input + down.first + rows.begin * down.step;
  PaddedRows padded{};
  padded.x = plane + row * axes[2].input + first + phase + columns.begin * stride;
  padded.x_pitch = down.step * axes[2].input;
  padded.stride = stride;
  padded.rows = rows.end - rows.begin;
  padded.before = columns.begin;
  padded.inside = columns.end - columns.begin;
  padded.length = length;
  padded.out = out + rows.begin * length;
  std::fill(out, padded.out, 0.0f);
  kernels.copy_rows(padded);
  std::fill(out + rows.end * length, out + down.count * length, 0.0f);
}

}  // namespace tbn
