// Tables of partial sums, built once an input pixel; every kernel tap reads them.
#include "conv_strip.h"

namespace tbn {

Conv::LookupSpace Conv::lookup_space(Carver& carver, const ConvGeometry& geometry,
                                     std::int64_t rows) const {
  const auto& axes = geometry.axes;
  const std::int64_t pixels = rows * axes[2].output;
  LookupSpace space{};
  space.tables =
      carver.take<float>({Positions(axes[0], 0, 1).count, Positions(axes[1], 0, rows).count,
                          Positions(axes[2], 0, axes[2].output).count, pixel_floats()});
  space.sums = carver.take<float>({pixels, blocks(), block_rows});
  space.lines = carver.take<float>({block_rows, pixels});
  space.zeros = carver.take<float>(axes[2].input);
  space.bases = carver.take<const float*>(pixels);
  space.offsets = carver.take<std::ptrdiff_t>(taps_ * chunk_groups_);
  return space;
}

void Conv::build_tables(const Call& call, const Strip& strip, std::int64_t chunk,
                        const LookupSpace& space) const {
  const auto& axes = strip.geometry->axes;
  const Positions deep(axes[0], strip.depth, 1);
  const Positions down(axes[1], strip.first_row, strip.rows);
  const Positions along(axes[2], 0, axes[2].output);
  const Inside inside(along.first, along.step, along.count, axes[2].input);
  const int group = kernels_->group;

  float* row_tables = space.tables;
  const auto clear = [&](std::int64_t begin, std::int64_t end) {
    std::fill(row_tables + begin * pixel_floats(), row_tables + end * pixel_floats(), 0.0f);
  };
  for (std::int64_t z = 0; z < deep.count; ++z) {
    for (std::int64_t y = 0; y < down.count; ++y, row_tables += along.count * pixel_floats()) {
      const std::int64_t depth = deep.first + z * deep.step;
      const std::int64_t row = down.first + y * down.step;
      if (depth < 0 || depth >= axes[0].input || row < 0 || row >= axes[1].input) {
        clear(0, along.count);
        continue;
      }
      clear(0, inside.begin);
      clear(inside.end, along.count);
      if (inside.begin == inside.end) continue;
      const std::int64_t at =
          (depth * axes[1].input + row) * axes[2].input + along.first + inside.begin * along.step;
      for (std::int64_t g = 0; g < groups_in_chunk(chunk); ++g) {
        const float* columns[most_group];
        for (int j = 0; j < group; ++j) {
          const std::int64_t channel = (chunk * chunk_groups_ + g) * group + j;
          columns[j] = channel < channels_ ? strip.plane(call.x, channel) + at : space.zeros;
        }
        kernels_->build_tables(
            columns, along.step, inside.end - inside.begin,
            row_tables + inside.begin * pixel_floats() + g * kernels_->table_floats(),
            pixel_floats());
      }
    }
  }
}

void Conv::run_lookup(const Call& call, const Strip& strip, const LookupSpace& space) const {
  const auto& axes = strip.geometry->axes;
  const Positions deep(axes[0], strip.depth, 1);
  const Positions down(axes[1], strip.first_row, strip.rows);
  const Positions along(axes[2], 0, axes[2].output);
  const std::int64_t pixels = strip.pixels();
  const std::int64_t pitch = blocks() * block_rows;

  std::fill(space.zeros, space.zeros + axes[2].input, 0.0f);
  std::fill(space.sums, space.sums + pixels * pitch, 0.0f);
  for (std::int64_t p = 0; p < pixels; ++p) {
    const std::int64_t position =
        p / strip.width() * down.output_step * along.count + p % strip.width() * along.output_step;
    space.bases[p] = space.tables + position * pixel_floats();
  }

  LookupTile tile{};
  tile.block_pitch = chunk_words_ * block_rows;
  tile.blocks = blocks();
  tile.offsets = space.offsets;
  tile.bases = space.bases;
  tile.rows = pixels;
  tile.sums = space.sums;
  tile.sums_pitch = pitch;
  for (std::int64_t chunk = 0; chunk < chunks_; ++chunk) {
    build_tables(call, strip, chunk, space);
    std::ptrdiff_t* offset = space.offsets;
    for (std::int64_t tap = 0; tap < taps_; ++tap) {
      const std::int64_t kx = tap % axes[2].kernel;
      const std::int64_t ky = tap / axes[2].kernel % axes[1].kernel;
      const std::int64_t kz = tap / axes[2].kernel / axes[1].kernel;
      const std::int64_t row = kz * deep.tap_step * down.count + ky * down.tap_step;
      const std::int64_t position = row * along.count + kx * along.tap_step;
      for (std::int64_t g = 0; g < groups_in_chunk(chunk); ++g) {
        *offset++ = position * pixel_floats() + g * kernels_->table_floats();
      }
    }
    tile.codes = codes_ + (image_of(strip.group) * chunks_ + chunk) * chunk_codes();
    tile.groups = offset - space.offsets;
    kernels_->lookup(tile);
  }

  for (std::int64_t first = 0; first < distinct_; first += block_rows) {
    const std::int64_t rows = std::min(block_rows, distinct_ - first);
    kernels_->transpose(space.sums + first, pitch, pixels, block_rows, space.lines, pixels);
    for (std::int64_t r = 0; r < rows; ++r) {
      finish(call, strip, first + r, space.lines + r * pixels);
    }
  }
}

}  // namespace tbn
