// One output a group: groups lie side by side in vector lanes. Lanes without a group hold anything.
#include "conv_strip.h"

namespace tbn {

Conv::DepthwiseSpace Conv::depthwise_space(Carver& carver, const ConvGeometry& geometry,
                                           std::int64_t rows) const {
  const auto& axes = geometry.axes;
  const std::int64_t pixels = rows * axes[2].output;
  const std::int64_t depths = Positions(axes[0], 0, 1).count;
  const std::int64_t lines = Positions(axes[1], 0, rows).count;
  const std::int64_t columns = Positions(axes[2], 0, axes[2].output).count;
  DepthwiseSpace space{};
  space.inputs = carver.take<float>({channels_, depths, lines, columns, block_rows});
  space.channel_pitch = depths * lines * columns * block_rows;
  space.rows = carver.take<float>({block_rows, channels_, taps_});
  carver.take<float>(sign_stretch);  // whole stretches are written
  space.weights = carver.take<float>({channels_, taps_, block_rows});
  space.offsets = carver.take<std::ptrdiff_t>({channels_, taps_});
  space.sums = carver.take<float>({axes[2].output, block_rows});
  space.lines = carver.take<float>({block_rows, pixels});
  return space;
}

void Conv::interleave_groups(const Call& call, const Strip& strip, std::int64_t groups,
                             const DepthwiseSpace& space) const {
  const auto& axes = strip.geometry->axes;
  const Positions deep(axes[0], strip.depth, 1);
  const Positions down(axes[1], strip.first_row, strip.rows);
  const Positions along(axes[2], 0, axes[2].output);
  const Inside inside(along.first, along.step, along.count, axes[2].input);
  const std::int64_t group_pitch = channels_ * strip.geometry->input_pixels();
  for (std::int64_t channel = 0; channel < channels_; ++channel) {
    const float* plane = strip.plane(call.x, channel);
    float* out = space.inputs + channel * space.channel_pitch;
    const auto clear = [&](std::int64_t begin, std::int64_t end) {
      std::fill(out + begin * block_rows, out + end * block_rows, 0.0f);
    };
    for (std::int64_t z = 0; z < deep.count; ++z) {
      for (std::int64_t y = 0; y < down.count; ++y, out += along.count * block_rows) {
        const std::int64_t depth = deep.first + z * deep.step;
        const std::int64_t row = down.first + y * down.step;
        if (depth < 0 || depth >= axes[0].input || row < 0 || row >= axes[1].input ||
            inside.begin == inside.end) {
          clear(0, along.count);
          continue;
        }
        clear(0, inside.begin);
        clear(inside.end, along.count);
        const std::int64_t at =
            (depth * axes[1].input + row) * axes[2].input + along.first + inside.begin * along.step;
        float* to = out + inside.begin * block_rows;
        if (along.step == 1) {
          kernels_->transpose(plane + at, group_pitch, groups, inside.end - inside.begin, to,
                              block_rows);
          continue;
        }
        for (std::int64_t i = 0; i < inside.end - inside.begin; ++i) {
          kernels_->transpose(plane + at + i * along.step, group_pitch, groups, 1,
                              to + i * block_rows, block_rows);
        }
      }
    }
  }
}

void Conv::run_depthwise(const Call& call, Strip strip, std::int64_t end_group,
                         const DepthwiseSpace& space) const {
  const auto& axes = strip.geometry->axes;
  const Positions deep(axes[0], strip.depth, 1);
  const Positions down(axes[1], strip.first_row, strip.rows);
  const Positions along(axes[2], 0, axes[2].output);
  const std::int64_t row_floats = along.count * block_rows;
  const std::int64_t inputs = channels_ * taps_;
  LaneTile tile{};
  tile.x_step = along.output_step * block_rows;
  tile.offsets = space.offsets;
  tile.weights = space.weights;
  const bool neighbours = axes[2].kernel == 3 && along.tap_step == along.output_step;
  tile.columns_a_tap = neighbours ? 3 : 1;
  tile.taps = inputs / tile.columns_a_tap;
  tile.columns = strip.width();
  tile.sums = space.sums;
  std::ptrdiff_t* offset = space.offsets;
  for (std::int64_t channel = 0; channel < channels_; ++channel) {
    for (std::int64_t kz = 0; kz < axes[0].kernel; ++kz) {
      for (std::int64_t ky = 0; ky < axes[1].kernel; ++ky) {
        const std::int64_t row = kz * deep.tap_step * down.count + ky * down.tap_step;
        for (std::int64_t kx = 0; kx < axes[2].kernel; kx += tile.columns_a_tap) {
          *offset++ =
              channel * space.channel_pitch + row * row_floats + kx * along.tap_step * block_rows;
        }
      }
    }
  }
  for (; strip.group < end_group; strip.group += block_rows) {
    const std::int64_t groups = std::min(block_rows, end_group - strip.group);
    interleave_groups(call, strip, groups, space);
    expand_rows(call.tile, strip.group, groups, space.rows);
    kernels_->transpose(space.rows, inputs, groups, inputs, space.weights, block_rows);
    for (std::int64_t row = 0; row < strip.rows; ++row) {
      tile.x = space.inputs + row * down.output_step * row_floats;
      kernels_->sum_lanes(tile);
      kernels_->transpose(space.sums, block_rows, tile.columns, block_rows,
                          space.lines + row * tile.columns, strip.pixels());
    }
    Strip one = strip;
    for (std::int64_t g = 0; g < groups; ++g, ++one.group) {
      finish(call, one, 0, space.lines + g * strip.pixels());
    }
  }
}

}  // namespace tbn
