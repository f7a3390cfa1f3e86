// Every tap multiplies shifted input rows; sums stay in registers until they are whole.
#include "conv_strip.h"

namespace tbn {

Conv::DirectSpace Conv::direct_space(Carver& carver, const ConvGeometry& geometry,
                                     std::int64_t rows) const {
  const auto& axes = geometry.axes;
  const std::int64_t depths = Positions(axes[0], 0, 1).count;
  const std::int64_t lines = Positions(axes[1], 0, rows).count;
  const Columns columns(axes[2]);
  DirectSpace space{};
  space.inputs = carver.take<float>({channels_, columns.phases, depths, lines, columns.length});
  space.phase_pitch = depths * lines * columns.length;
  carver.take<float>(vector_floats);  // for what whole vectors write and read too far
  space.weights = carver.take<float>({direct_block, channels_, taps_});
  carver.take<float>(sign_stretch);
  space.offsets = carver.take<std::ptrdiff_t>({channels_, taps_});
  space.sums_pitch = rows * axes[2].output + vector_floats;
  space.sums = carver.take<float>({direct_block, space.sums_pitch});
  return space;
}

void Conv::copy_inputs(const Call& call, const Strip& strip, const DirectSpace& space) const {
  const auto& axes = strip.geometry->axes;
  const Positions deep(axes[0], strip.depth, 1);
  const Positions down(axes[1], strip.first_row, strip.rows);
  const Columns columns(axes[2]);
  float* out = space.inputs;
  for (std::int64_t channel = 0; channel < channels_; ++channel) {
    for (std::int64_t phase = 0; phase < columns.phases; ++phase, out += space.phase_pitch) {
      for (std::int64_t z = 0; z < deep.count; ++z) {
        columns.copy(*kernels_, axes, strip.plane(call.x, channel), deep.first + z * deep.step,
                     down, phase, out + z * down.count * columns.length);
      }
    }
  }
}

void Conv::find_taps(const Strip& strip, const DirectSpace& space) const {
  const auto& axes = strip.geometry->axes;
  const Positions deep(axes[0], strip.depth, 1);
  const Positions down(axes[1], strip.first_row, strip.rows);
  const Columns columns(axes[2]);
  std::ptrdiff_t* offset = space.offsets;
  for (std::int64_t channel = 0; channel < channels_; ++channel) {
    for (std::int64_t kz = 0; kz < axes[0].kernel; ++kz) {
      for (std::int64_t ky = 0; ky < axes[1].kernel; ++ky) {
        const std::int64_t row = kz * deep.tap_step * down.count + ky * down.tap_step;
        for (std::int64_t kx = 0; kx < axes[2].kernel; ++kx) {
          const std::int64_t phase = channel * columns.phases + columns.phase(kx);
          *offset++ = phase * space.phase_pitch + row * columns.length + columns.index(kx);
        }
      }
    }
  }
}

void Conv::run_direct(const Call& call, Strip strip, std::int64_t end_group,
                      const DirectSpace& space) const {
  const auto& axes = strip.geometry->axes;
  TapTile tile{};
  tile.x = space.inputs;
  tile.x_pitch =
      Positions(axes[1], strip.first_row, strip.rows).output_step * Columns(axes[2]).length;
  tile.offsets = space.offsets;
  tile.weights = space.weights;
  tile.inputs = channels_ * taps_;
  tile.rows = strip.rows;
  tile.columns = strip.width();
  tile.sums = space.sums;
  tile.sums_pitch = space.sums_pitch;
  if (tile.x_pitch == tile.columns) {
    tile.columns *= tile.rows;
    tile.rows = 1;
  }
  find_taps(strip, space);
  for (; strip.group < end_group; ++strip.group) {
    copy_inputs(call, strip, space);
    for (std::int64_t first = 0; first < distinct_; first += direct_block) {
      tile.channels = std::min(direct_block, distinct_ - first);
      expand_rows(call.tile, strip.group * outputs_ + first, tile.channels, space.weights);
      kernels_->sum_taps(tile);
      for (std::int64_t c = 0; c < tile.channels; ++c) {
        finish(call, strip, first + c, space.sums + c * space.sums_pitch);
      }
    }
  }
}

}  // namespace tbn
