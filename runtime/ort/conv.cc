#include "conv.h"

#include <algorithm>
#include <numeric>

namespace tbn {
namespace {

constexpr std::int64_t most_chunk_groups = 4;
// A strip's tables and sums should stay in a second-level cache.
constexpr std::int64_t strip_bytes = 384 * 1024;
constexpr std::int64_t least_strip_rows = 4;

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

}  // namespace

// One unit's share: some output rows of one depth, group and batch element.
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

struct Conv::LookupSpace {
  float* tables;            // [depth][row][column][chunk_groups][table]
  float* sums;              // [pixel][blocks * block_rows]
  float* lines;             // [block_rows][pixel]
  float* zeros;             // one input row
  const float** bases;      // [pixel]
  std::ptrdiff_t* offsets;  // [taps * chunk_groups]
};

struct Conv::DirectSpace {
  float* inputs;            // [depth][row][shift][column] of one channel, padding included
  float* weights;           // [taps]
  std::ptrdiff_t* offsets;  // [taps]
  float* sums;              // [distinct][row][column]
  std::int64_t sums_pitch;
  std::int64_t inputs_pitch;
};

Conv::Conv(const std::vector<std::int64_t>& weight_shape, std::int64_t groups, const Tiling& tiling,
           const KernelSet& kernels)
    : tiling_(tiling),
      kernels_(&kernels),
      outputs_(weight_shape[0] / groups),
      channels_(weight_shape[1]),
      taps_(std::accumulate(weight_shape.begin() + 2, weight_shape.end(), std::int64_t{1},
                            std::multiplies<>())),
      groups_(groups) {
  const std::int64_t inputs = channels_ * taps_;
  const MatrixPlan plan = plan_matrix(weight_shape[0], inputs, Layout::NK, tiling);
  scaled_weights_ = plan.method == Method::runs || plan.scaled_by_input;
  distinct_ = scaled_weights_ ? outputs_ : std::min(outputs_, plan.distinct_outputs);

  // Vector operations a pixel: two a code and one an input for the tables, or one a weight and some
  // for loading and storing the sums.
  table_groups_ = divide_up(channels_, kernels.group);
  const std::int64_t lookup_cost = 2 * taps_ * table_groups_ * blocks() + channels_;
  const std::int64_t direct_cost = distinct_ * channels_ * (taps_ + 3) / vector_floats;
  lookup_ = !scaled_weights_ && lookup_cost < direct_cost;
  if (!lookup_) return;
  chunks_ = divide_up(table_groups_, most_chunk_groups);
  chunk_groups_ = divide_up(table_groups_, chunks_);
  chunk_words_ = divide_up(taps_ * chunk_groups_, kernels.codes_per_word());
  const std::int64_t advance = outputs_ * inputs % tiling.tile_length;
  images_ = std::min(groups_, tiling.tile_length / std::gcd(tiling.tile_length, advance));
}

std::int64_t Conv::groups_in_chunk(std::int64_t chunk) const {
  return std::min(chunk_groups_, table_groups_ - chunk * chunk_groups_);
}

void Conv::carve(Carver& carver) {
  scales_ = carver.take<float>(tiling_.scale_count);
  output_scale_ = carver.take<float>(outputs_ * groups_);
  if (lookup_) codes_ = carver.take<std::uint32_t>({images_, chunks_, chunk_codes()});
}

std::int64_t Conv::memory() const {
  Carver carver(nullptr);
  Conv(*this).carve(carver);
  return carver.used();
}

void Conv::prepare(const Parameters& parameters, void* memory) {
  Carver carver(memory);
  carve(carver);
  kernels_->to_float(parameters.type, parameters.scale, tiling_.scale_count, scales_);
  const std::int64_t inputs = channels_ * taps_;
  for (std::int64_t n = 0; n < outputs_ * groups_; ++n) {
    output_scale_[n] = scaled_weights_ ? 1.0f : scales_[tiling_.scale_index(n * inputs)];
  }
  if (!lookup_) return;
  std::uint32_t* codes = codes_;
  for (std::int64_t image = 0; image < images_; ++image) {
    const Tiling tiling = tiling_.shifted(image * outputs_ * inputs);
    for (std::int64_t chunk = 0; chunk < chunks_; ++chunk, codes += chunk_codes()) {
      const std::int64_t groups = groups_in_chunk(chunk);
      const auto positive = [&](std::int64_t row, std::int64_t code) {
        const std::int64_t tap = code / groups;
        const std::int64_t first = (chunk * chunk_groups_ + code % groups) * kernels_->group;
        const std::int64_t count = std::min<std::int64_t>(kernels_->group, channels_ - first);
        return gather_signs(parameters.tile, tiling, row * inputs + first * taps_ + tap, taps_,
                            count);
      };
      pack_codes(*kernels_, distinct_, taps_ * groups, chunk_words_, codes, positive);
    }
  }
}

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

Conv::DirectSpace Conv::direct_space(Carver& carver, const ConvGeometry& geometry,
                                     std::int64_t rows) const {
  const auto& along = geometry.axes[2];
  DirectSpace space{};
  space.sums_pitch = divide_up(along.output, vector_floats) * vector_floats;
  space.inputs_pitch = along.stride == 1 ? space.sums_pitch + (along.kernel - 1) * along.dilation
                                         : space.sums_pitch * along.kernel;
  space.inputs =
      carver.take<float>({Positions(geometry.axes[0], 0, 1).count,
                          Positions(geometry.axes[1], 0, rows).count, space.inputs_pitch});
  space.weights = carver.take<float>(taps_);
  space.offsets = carver.take<std::ptrdiff_t>(taps_);
  space.sums = carver.take<float>({distinct_, rows, space.sums_pitch});
  return space;
}

std::int64_t Conv::workspace(const ConvGeometry& geometry, std::int64_t rows) const {
  Carver carver(nullptr);
  if (lookup_) {
    lookup_space(carver, geometry, rows);
  } else {
    direct_space(carver, geometry, rows);
  }
  return carver.used();
}

Conv::Schedule Conv::schedule(const ConvGeometry& geometry, std::int64_t threads) const {
  const std::int64_t height = geometry.axes[1].output;
  const std::int64_t planes = geometry.batch * geometry.groups * geometry.axes[0].output;
  std::int64_t rows = height;
  const auto halve = [&] { rows = divide_up(rows, 2); };
  while (rows > 1 && workspace(geometry, rows) > strip_bytes) halve();
  while (rows >= 2 * least_strip_rows && planes * divide_up(height, rows) < threads) halve();
  const std::int64_t strips = divide_up(height, rows);
  return {rows, strips, planes * strips, workspace(geometry, rows)};
}

void Conv::run(const Call& call, const ConvGeometry& geometry, const Schedule& schedule,
               std::int64_t unit, void* workspace) const {
  const auto next = [&](std::int64_t length) {
    const std::int64_t index = unit % length;
    unit /= length;
    return index;
  };
  Strip strip{};
  strip.geometry = &geometry;
  strip.first_row = next(schedule.strips) * schedule.strip_rows;
  strip.rows = std::min(schedule.strip_rows, geometry.axes[1].output - strip.first_row);
  strip.depth = next(geometry.axes[0].output);
  strip.group = next(geometry.groups);
  strip.batch = unit;

  Carver carver(workspace);
  if (lookup_) return run_lookup(call, strip, lookup_space(carver, geometry, schedule.strip_rows));
  run_direct(call, strip, direct_space(carver, geometry, schedule.strip_rows));
}

// Writes every output channel that repeats distinct row `row` of the strip's group; `pitch` is
// between output rows in `sums`.
void Conv::finish(const Call& call, const Strip& strip, std::int64_t row, const float* sums,
                  std::int64_t pitch) const {
  const auto bytes = static_cast<std::int64_t>(element_bytes(call.finish.type));
  const std::int64_t plane = strip.geometry->output_pixels();
  const bool dense = pitch == strip.width();
  const std::int64_t pieces = dense ? 1 : strip.rows;
  const std::int64_t length = dense ? strip.pixels() : strip.width();
  for (std::int64_t n = row; n < outputs_; n += distinct_) {
    const std::int64_t channel = strip.group * outputs_ + n;
    const std::int64_t at =
        (strip.batch * groups_ * outputs_ + channel) * plane + strip.first_pixel();
    auto* y = static_cast<std::uint8_t*>(call.y) + at * bytes;
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
      kernels_->finish_channel(call.finish, sums + piece * pitch, output_scale_[channel],
                               call.bias[channel], length, y + piece * length * bytes);
    }
  }
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
      finish(call, strip, first + r, space.lines + r * pixels, strip.width());
    }
  }
}

// One channel's weights in a row of all outputs; scales stay in the epilogue unless they change
// inside a row.
void Conv::expand_channel(const std::uint8_t* tile, std::int64_t row, std::int64_t channel,
                          float* weights) const {
  const std::int64_t first = (row * channels_ + channel) * taps_;
  const std::int64_t tile_bytes = divide_up(tiling_.tile_length, 8);
  for (std::int64_t tap = 0; tap < taps_;) {
    const std::int64_t at = first + tap;
    const std::int64_t count = std::min({taps_ - tap, tiling_.tile_run(at), tiling_.scale_run(at)});
    kernels_->expand_signs(tile, tile_bytes, tiling_.phase(at), count, weights + tap);
    if (scaled_weights_) {
      const float scale = scales_[tiling_.scale_index(at)];
      for (std::int64_t i = 0; i < count; ++i) weights[tap + i] *= scale;
    }
    tap += count;
  }
}

// One channel's input rows with their padding. With a stride each tap gets a row of its own.
void Conv::copy_channel(const float* plane, const Strip& strip, const DirectSpace& space) const {
  const auto& axes = strip.geometry->axes;
  const Positions deep(axes[0], strip.depth, 1);
  const Positions down(axes[1], strip.first_row, strip.rows);
  const std::int64_t stride = axes[2].stride;
  const std::int64_t shifts = stride == 1 ? 1 : axes[2].kernel;
  const std::int64_t length = space.inputs_pitch / shifts;
  float* out = space.inputs;
  for (std::int64_t z = 0; z < deep.count; ++z) {
    const std::int64_t depth = deep.first + z * deep.step;
    for (std::int64_t y = 0; y < down.count; ++y) {
      const std::int64_t row = down.first + y * down.step;
      const bool outside = depth < 0 || depth >= axes[0].input || row < 0 || row >= axes[1].input;
      const std::int64_t row_start = (depth * axes[1].input + row) * axes[2].input;
      for (std::int64_t shift = 0; shift < shifts; ++shift, out += length) {
        const std::int64_t first = shift * axes[2].dilation - axes[2].pad;
        const Inside inside(first, stride, length, outside ? 0 : axes[2].input);
        std::fill(out, out + inside.begin, 0.0f);
        std::fill(out + inside.end, out + length, 0.0f);
        if (inside.begin == inside.end) continue;
        const float* x = plane + row_start + first + inside.begin * stride;
        if (stride == 1) {
          std::copy(x, x + inside.end - inside.begin, out + inside.begin);
          continue;
        }
        for (std::int64_t i = inside.begin; i < inside.end; ++i, x += stride) out[i] = *x;
      }
    }
  }
}

void Conv::run_direct(const Call& call, const Strip& strip, const DirectSpace& space) const {
  const auto& axes = strip.geometry->axes;
  const Positions deep(axes[0], strip.depth, 1);
  const Positions down(axes[1], strip.first_row, strip.rows);
  const std::int64_t shift =
      axes[2].stride == 1 ? axes[2].dilation : space.inputs_pitch / axes[2].kernel;
  for (std::int64_t tap = 0; tap < taps_; ++tap) {
    const std::int64_t kx = tap % axes[2].kernel;
    const std::int64_t ky = tap / axes[2].kernel % axes[1].kernel;
    const std::int64_t kz = tap / axes[2].kernel / axes[1].kernel;
    const std::int64_t row = kz * deep.tap_step * down.count + ky * down.tap_step;
    space.offsets[tap] = row * space.inputs_pitch + kx * shift;
  }
  const std::int64_t sums_floats = strip.rows * space.sums_pitch;
  std::fill(space.sums, space.sums + distinct_ * sums_floats, 0.0f);

  TapRows taps{};
  taps.x = space.inputs;
  taps.x_pitch = down.output_step * space.inputs_pitch;
  taps.offsets = space.offsets;
  taps.weights = space.weights;
  taps.taps = taps_;
  taps.rows = strip.rows;
  taps.count = space.sums_pitch;
  taps.sums_pitch = space.sums_pitch;
  for (std::int64_t channel = 0; channel < channels_; ++channel) {
    copy_channel(strip.plane(call.x, channel), strip, space);
    for (std::int64_t row = 0; row < distinct_; ++row) {
      expand_channel(call.tile, strip.group * outputs_ + row, channel, space.weights);
      taps.sums = space.sums + row * sums_floats;
      kernels_->add_taps(taps);
    }
  }
  for (std::int64_t row = 0; row < distinct_; ++row) {
    finish(call, strip, row, space.sums + row * sums_floats, space.sums_pitch);
  }
}

}  // namespace tbn
