#include "conv_strip.h"

namespace tbn {
namespace {

constexpr std::int64_t most_chunk_groups = 4;
// A strip's tables and sums should stay in a second-level cache.
constexpr std::int64_t strip_bytes = 384 * 1024;
constexpr std::int64_t least_strip_rows = 4;
// One register adds them all up, so few keep rounding errors small.
constexpr std::int64_t most_depthwise_inputs = 256;
// Multiply-adds that are worth handing to a thread; smaller groups share a unit.
constexpr std::int64_t least_unit_work = 1 << 17;

}  // namespace

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
  scaled_weights_ = plan.method == tbn::Method::runs || plan.scaled_by_input;
  distinct_ = scaled_weights_ ? outputs_ : std::min(outputs_, plan.distinct_outputs);

  // Both in vector multiply-adds a pixel, as measured: codes, tables and the transposed sums, or
  // weights and the inputs that direct_block rows share.
  table_groups_ = divide_up(channels_, kernels.group);
  const std::int64_t lookup_cost =
      5 * taps_ * table_groups_ * blocks() / 2 + 6 * table_groups_ + 16 * blocks();
  const std::int64_t direct_cost =
      channels_ * taps_ * (distinct_ + divide_up(distinct_, direct_block)) / vector_floats;
  const bool lookup = !scaled_weights_ && lookup_cost < direct_cost;
  const bool depthwise =
      outputs_ == 1 && groups_ >= block_rows / 2 && inputs <= most_depthwise_inputs;
  method_ = depthwise ? Method::depthwise : lookup ? Method::lookup : Method::direct;
  if (method_ != Method::lookup) return;
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
  if (method_ == Method::lookup)
    codes_ = carver.take<std::uint32_t>({images_, chunks_, chunk_codes()});
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
  if (method_ != Method::lookup) return;
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

std::int64_t Conv::workspace(const ConvGeometry& geometry, std::int64_t rows) const {
  Carver carver(nullptr);
  switch (method_) {
    case Method::lookup:
      lookup_space(carver, geometry, rows);
      break;
    case Method::direct:
      direct_space(carver, geometry, rows);
      break;
    case Method::depthwise:
      depthwise_space(carver, geometry, rows);
      break;
  }
  return carver.used();
}

Conv::Schedule Conv::schedule(const ConvGeometry& geometry, std::int64_t threads) const {
  const std::int64_t height = geometry.axes[1].output;
  const std::int64_t planes = geometry.batch * geometry.groups * geometry.axes[0].output;
  std::int64_t rows = height;
  const auto halve = [&] { rows = divide_up(rows, 2); };
  while (rows > 1 && workspace(geometry, rows) > strip_bytes) halve();
  const auto work = [&] { return distinct_ * channels_ * taps_ * rows * geometry.axes[2].output; };
  while (rows >= 2 * least_strip_rows && planes * divide_up(height, rows) < threads &&
         work() >= 2 * least_unit_work) {
    halve();
  }
  const std::int64_t strips = divide_up(height, rows);
  const std::int64_t together = method_ == Method::depthwise ? block_rows : 1;
  const std::int64_t worth = divide_up(least_unit_work, work() * together) * together;
  const std::int64_t groups = method_ == Method::lookup ? 1 : std::min(worth, groups_);
  const std::int64_t units = planes / groups_ * divide_up(groups_, groups) * strips;
  return {rows, strips, groups, units, workspace(geometry, rows)};
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
  strip.group = next(divide_up(groups_, schedule.groups)) * schedule.groups;
  strip.batch = unit;

  Carver carver(workspace);
  const std::int64_t end_group = std::min(groups_, strip.group + schedule.groups);
  const std::int64_t rows = schedule.strip_rows;
  switch (method_) {
    case Method::lookup:
      return run_lookup(call, strip, lookup_space(carver, geometry, rows));
    case Method::direct:
      return run_direct(call, strip, end_group, direct_space(carver, geometry, rows));
    case Method::depthwise:
      return run_depthwise(call, strip, end_group, depthwise_space(carver, geometry, rows));
  }
}

// The weights of `rows` rows; scales stay in the epilogue unless they change inside a row.
void Conv::expand_rows(const std::uint8_t* tile, std::int64_t first_row, std::int64_t rows,
                       float* weights) const {
  const std::int64_t tile_bytes = divide_up(tiling_.tile_length, 8);
  const std::int64_t begin = first_row * channels_ * taps_;
  const std::int64_t end = begin + rows * channels_ * taps_;
  std::int64_t phase = tiling_.phase(begin);
  for (std::int64_t at = begin; at < end;) {
    std::int64_t count = std::min(end - at, tiling_.tile_length - phase);
    if (scaled_weights_) count = std::min(count, tiling_.scale_run(at));
    kernels_->expand_signs(tile, tile_bytes, phase, count, weights);
    if (scaled_weights_) {
      const float scale = scales_[tiling_.scale_index(at)];
      for (std::int64_t i = 0; i < count; ++i) weights[i] *= scale;
    }
    at += count;
    weights += count;
    phase = phase + count == tiling_.tile_length ? 0 : phase + count;
  }
}

// Writes every output channel that repeats distinct row `row` of the strip's group.
void Conv::finish(const Call& call, const Strip& strip, std::int64_t row, const float* sums) const {
  const auto bytes = static_cast<std::int64_t>(element_bytes(call.finish.type));
  const std::int64_t plane = strip.geometry->output_pixels();
  for (std::int64_t n = row; n < outputs_; n += distinct_) {
    const std::int64_t channel = strip.group * outputs_ + n;
    const std::int64_t at =
        (strip.batch * groups_ * outputs_ + channel) * plane + strip.first_pixel();
    kernels_->finish_channel(call.finish, sums, output_scale_[channel], call.bias[channel],
                             strip.pixels(), static_cast<std::uint8_t*>(call.y) + at * bytes);
  }
}

}  // namespace tbn
