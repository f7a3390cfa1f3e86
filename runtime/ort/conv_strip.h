// What the two ways to convolve share: a strip of output rows and the inputs that it reads.
#pragma once

#include <algorithm>
#include <numeric>

#include "conv.h"

namespace tbn {

// Where the input positions that a stretch of outputs reads are kept: only multiples of `step`
// are ever read.
struct Positions {
  std::int64_t step;
  std::int64_t first;  // input coordinate of position 0, may lie in the padding
  std::int64_t count;
  std::int64_t output_step;
  std::int64_t tap_step;

  Positions(const ConvGeometry::Axis& axis, std::int64_t begin, std::int64_t outputs) {
    step = axis.kernel == 1 ? axis.stride
           : outputs == 1   ? axis.dilation
                            : std::gcd(axis.stride, axis.dilation);
    first = begin * axis.stride - axis.pad;
    count = ((outputs - 1) * axis.stride + (axis.kernel - 1) * axis.dilation) / step + 1;
    output_step = axis.stride / step;
    tap_step = axis.dilation / step;
  }
};

// The part [begin, end) of `count` coordinates first + i * step that lies in [0, length).
struct Inside {
  std::int64_t begin;
  std::int64_t end;

  Inside(std::int64_t first, std::int64_t step, std::int64_t count, std::int64_t length) {
    begin = first >= 0 ? 0 : std::min(count, divide_up(-first, step));
    end =
        first >= length ? begin : std::max(begin, std::min(count, divide_up(length - first, step)));
  }
};

// Some output rows of one depth, group and batch element.
struct Conv::Strip {
  const ConvGeometry* geometry;
  std::int64_t batch;
  std::int64_t group;
  std::int64_t depth;
  std::int64_t first_row;
  std::int64_t rows;

  std::int64_t width() const { return geometry->axes[2].output; }
  std::int64_t pixels() const { return rows * width(); }
  std::int64_t first_pixel() const {
    return (depth * geometry->axes[1].output + first_row) * width();
  }
  // Of one channel of this strip's group.
  const float* plane(const float* x, std::int64_t channel) const {
    const std::int64_t index = (batch * geometry->groups + group) * geometry->channels + channel;
    return x + index * geometry->input_pixels();
  }
};

// An input row as taps read it: padded, and parted by the column stride, so that each tap reads
// the outputs' inputs side by side. Phase p holds the columns p, p + stride, ...
struct Columns {
  std::int64_t stride;
  std::int64_t dilation;
  std::int64_t first;   // input coordinate of column 0, may lie in the padding
  std::int64_t phases;  // the others are never read
  std::int64_t length;  // of one phase

  explicit Columns(const ConvGeometry::Axis& axis)
      : stride(axis.stride), dilation(axis.dilation), first(-axis.pad) {
    const std::int64_t reach = (axis.kernel - 1) * dilation;
    phases = std::min(stride, reach + 1);
    length = axis.output + reach / stride;
  }
  std::int64_t phase(std::int64_t tap) const { return tap * dilation % stride; }
  std::int64_t index(std::int64_t tap) const { return tap * dilation / stride; }

  // One phase of the input rows that `down` names, at one depth; what lies outside the input is
  // zeros. Writes up to vector_floats past the last row.
  void copy(const KernelSet& kernels, const ConvGeometry::Axis* axes, const float* plane,
            std::int64_t depth, const Positions& down, std::int64_t phase, float* out) const;
};

struct Conv::LookupSpace {
  float* tables;            // [depth][row][column][chunk_groups][table]
  float* sums;              // [pixel][blocks * block_rows]
  float* lines;             // [block_rows][pixel]
  float* zeros;             // one input row
  const float** bases;      // [pixel]
  std::ptrdiff_t* offsets;  // [taps * chunk_groups]
};

struct Conv::DirectSpace {
  float* inputs;            // [channel][phase][depth][row][column] of one group
  float* weights;           // [direct_block][inputs]
  std::ptrdiff_t* offsets;  // [inputs]
  float* sums;              // [direct_block][sums_pitch]
  std::int64_t phase_pitch;
  std::int64_t sums_pitch;
};

struct Conv::DepthwiseSpace {
  float* inputs;            // [channel][depth][row][column][block_rows]
  float* rows;              // [block_rows][inputs]
  float* weights;           // [inputs][block_rows]
  std::ptrdiff_t* offsets;  // [inputs]
  float* sums;              // [column][block_rows], of one output row
  float* lines;             // [block_rows][pixel]
  std::int64_t channel_pitch;
};

}  // namespace tbn
