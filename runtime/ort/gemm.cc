#include "gemm.h"

#include <algorithm>

namespace tbn {
namespace {

// Sizes of a unit's buffers; all of them together stay well inside a thread's stack.
constexpr std::int64_t unit_rows = 8;
constexpr std::int64_t lookup_outputs = 512;
constexpr std::int64_t lookup_words = 8;
constexpr std::int64_t most_codes_per_word = 8;
constexpr std::int64_t most_groups = lookup_words * most_codes_per_word;
constexpr std::int64_t most_inputs = lookup_words * 32;
constexpr std::int64_t most_chunk_floats = 64 * 16;
constexpr std::int64_t run_outputs = 64;
constexpr std::int64_t run_signs = 256;

}  // namespace

void Gemm::carve(Carver& carver) {
  scales_ = carver.take<float>(plan_.tiling.scale_count);
  if (plan_.method == Method::runs) return;
  codes_ = carver.take<std::uint32_t>(
      {divide_up(plan_.distinct_outputs, block_rows), words(), block_rows});
  output_scale_ = carver.take<float>(plan_.outputs);
  input_scale_ = plan_.scaled_by_input ? carver.take<float>(plan_.inputs) : nullptr;
}

std::int64_t Gemm::memory() const {
  Carver carver(nullptr);
  Gemm(*this).carve(carver);
  return carver.used();
}

void Gemm::prepare(const Parameters& parameters, void* memory) {
  Carver carver(memory);
  carve(carver);
  const Tiling& tiling = plan_.tiling;
  kernels_->to_float(parameters.type, parameters.scale, tiling.scale_count, scales_);
  if (plan_.method == Method::runs) return;

  const int group = kernels_->group;
  const auto positive = [&](std::int64_t row, std::int64_t g) {
    const std::int64_t first = g * group;
    return gather_signs(parameters.tile, tiling, plan_.position(row, first), plan_.input_step(),
                        std::min<std::int64_t>(group, plan_.distinct_inputs - first));
  };
  pack_codes(*kernels_, plan_.distinct_outputs, groups(), words(), codes_, positive);
  for (std::int64_t n = 0; n < plan_.outputs; ++n) {
    output_scale_[n] =
        plan_.scaled_by_input ? 1.0f : scales_[tiling.scale_index(plan_.position(n, 0))];
  }
  if (!plan_.scaled_by_input) return;
  for (std::int64_t k = 0; k < plan_.inputs; ++k) {
    input_scale_[k] = scales_[tiling.scale_index(plan_.position(0, k))];
  }
}

std::int64_t Gemm::outputs_a_unit() const {
  return plan_.method == Method::lookup ? lookup_outputs : run_outputs;
}

std::int64_t Gemm::units(std::int64_t rows) const {
  return divide_up(rows, unit_rows) * divide_up(plan_.distinct_outputs, outputs_a_unit());
}

void Gemm::run(const Call& call, std::int64_t rows, std::int64_t unit) const {
  const std::int64_t across = divide_up(plan_.distinct_outputs, outputs_a_unit());
  const std::int64_t first_row = unit / across * unit_rows;
  const std::int64_t first_output = unit % across * outputs_a_unit();
  const std::int64_t unit_length = std::min(unit_rows, rows - first_row);
  if (plan_.method == Method::lookup) return run_lookup(call, unit_length, first_row, first_output);
  if (plan_.layout == Layout::NK) {
    return run_along_inputs(call, unit_length, first_row, first_output);
  }
  run_along_outputs(call, unit_length, first_row, first_output);
}

// Inputs [first, first + count) of the folded and scaled row, zeros up to a whole group; `space`
// holds them unless they can be read where they are.
const float* Gemm::load_inputs(const float* x, std::int64_t first, std::int64_t count,
                               float* space) const {
  const bool folded = plan_.distinct_inputs < plan_.inputs;
  const std::int64_t whole = divide_up(count, kernels_->group) * kernels_->group;
  if (!folded && !input_scale_ && count == whole) return x + first;
  std::fill(space, space + whole, 0.0f);
  for (std::int64_t k = first; k < plan_.inputs; k += plan_.distinct_inputs) {
    const std::int64_t length = std::min(count, plan_.inputs - k);
    if (input_scale_) {
      for (std::int64_t i = 0; i < length; ++i) space[i] += x[k + i] * input_scale_[k + i];
    } else {
      for (std::int64_t i = 0; i < length; ++i) space[i] += x[k + i];
    }
  }
  return space;
}

void Gemm::run_lookup(const Call& call, std::int64_t rows, std::int64_t first_row,
                      std::int64_t first_output) const {
  alignas(64) float tables[unit_rows * most_chunk_floats];
  alignas(64) float sums[unit_rows * lookup_outputs];
  float space[most_inputs];
  const float* bases[unit_rows];
  std::ptrdiff_t offsets[most_groups];

  const int group = kernels_->group;
  const std::int64_t table_floats = kernels_->table_floats();
  const std::int64_t chunk_groups = lookup_words * kernels_->codes_per_word();
  const std::int64_t chunk_inputs = chunk_groups * group;
  for (std::int64_t g = 0; g < chunk_groups; ++g) offsets[g] = g * table_floats;
  for (std::int64_t r = 0; r < rows; ++r) bases[r] = tables + r * most_chunk_floats;
  std::fill(sums, sums + rows * lookup_outputs, 0.0f);

  const std::int64_t outputs = std::min(lookup_outputs, plan_.distinct_outputs - first_output);
  LookupTile tile{};
  tile.codes = codes_ + first_output * words();
  tile.block_pitch = words() * block_rows;
  tile.blocks = divide_up(outputs, block_rows);
  tile.offsets = offsets;
  tile.bases = bases;
  tile.rows = rows;
  tile.sums = sums;
  tile.sums_pitch = lookup_outputs;
  for (std::int64_t first = 0; first < plan_.distinct_inputs; first += chunk_inputs) {
    const std::int64_t count = std::min(chunk_inputs, plan_.distinct_inputs - first);
    tile.groups = divide_up(count, group);
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* row = call.x + (first_row + r) * plan_.inputs;
      const float* inputs = load_inputs(row, first, count, space);
      const float* columns[most_group];
      for (int j = 0; j < group; ++j) columns[j] = inputs + j;
      kernels_->build_tables(columns, group, tile.groups, tables + r * most_chunk_floats,
                             table_floats);
    }
    kernels_->lookup(tile);
    tile.codes += lookup_words * block_rows;
  }

  const auto bytes = static_cast<std::int64_t>(element_bytes(call.finish.type));
  for (std::int64_t r = 0; r < rows; ++r) {
    auto* y = static_cast<std::uint8_t*>(call.y) + (first_row + r) * plan_.outputs * bytes;
    for (std::int64_t n = first_output; n < plan_.outputs; n += plan_.distinct_outputs) {
      kernels_->finish_row(call.finish, sums + r * lookup_outputs, output_scale_ + n, call.bias + n,
                           std::min(outputs, plan_.outputs - n), y + n * bytes);
    }
  }
}

// Signs lie along a row of W: dot products, one scale a run. Rows that repeat share the sums.
void Gemm::run_along_inputs(const Call& call, std::int64_t rows, std::int64_t first_row,
                            std::int64_t first_output) const {
  constexpr std::int64_t most_copies = 32;
  float signs[run_signs];
  const Tiling& tiling = plan_.tiling;
  const std::int64_t tile_bytes = divide_up(tiling.tile_length, 8);
  const float* x = call.x + first_row * plan_.inputs;
  const auto bytes = static_cast<std::int64_t>(element_bytes(call.finish.type));
  const std::int64_t end = std::min(first_output + run_outputs, plan_.distinct_outputs);

  for (std::int64_t d = first_output; d < end; ++d) {
    const std::int64_t all_copies = divide_up(plan_.outputs - d, plan_.distinct_outputs);
    for (std::int64_t done = 0; done < all_copies; done += most_copies) {
      const std::int64_t copies = std::min(most_copies, all_copies - done);
      const std::int64_t first_n = d + done * plan_.distinct_outputs;
      float totals[most_copies][unit_rows] = {};
      for (std::int64_t k = 0; k < plan_.inputs;) {
        const std::int64_t at = plan_.position(first_n, k);
        const std::int64_t count =
            std::min({run_signs, plan_.inputs - k, tiling.tile_run(at), tiling.scale_run(at)});
        float sums[unit_rows] = {};
        kernels_->expand_signs(call.tile, tile_bytes, tiling.phase(at), count, signs);
        kernels_->dot_rows(signs, x + k, plan_.inputs, rows, count, sums);
        for (std::int64_t c = 0; c < copies; ++c) {
          const std::int64_t n = first_n + c * plan_.distinct_outputs;
          const float scale = scales_[tiling.scale_index(plan_.position(n, k))];
          for (std::int64_t r = 0; r < rows; ++r) totals[c][r] += scale * sums[r];
        }
        k += count;
      }
      for (std::int64_t c = 0; c < copies; ++c) {
        const std::int64_t n = first_n + c * plan_.distinct_outputs;
        for (std::int64_t r = 0; r < rows; ++r) {
          auto* y =
              static_cast<std::uint8_t*>(call.y) + ((first_row + r) * plan_.outputs + n) * bytes;
          kernels_->finish_channel(call.finish, &totals[c][r], 1.0f, call.bias[n], 1, y);
        }
      }
    }
  }
}

// Signs lie along the outputs: every input adds its scaled runs to a stretch of outputs.
void Gemm::run_along_outputs(const Call& call, std::int64_t rows, std::int64_t first_row,
                             std::int64_t first_output) const {
  float signs[run_outputs];
  float sums[unit_rows][run_outputs] = {};
  const Tiling& tiling = plan_.tiling;
  const std::int64_t tile_bytes = divide_up(tiling.tile_length, 8);
  const std::int64_t outputs = std::min(run_outputs, plan_.outputs - first_output);

  for (std::int64_t k = 0; k < plan_.inputs; ++k) {
    for (std::int64_t n = 0; n < outputs;) {
      const std::int64_t at = plan_.position(first_output + n, k);
      const std::int64_t count = std::min({outputs - n, tiling.tile_run(at), tiling.scale_run(at)});
      const float scale = scales_[tiling.scale_index(at)];
      kernels_->expand_signs(call.tile, tile_bytes, tiling.phase(at), count, signs);
      for (std::int64_t r = 0; r < rows; ++r) {
        const float factor = scale * call.x[(first_row + r) * plan_.inputs + k];
        kernels_->add_scaled(factor, signs, count, sums[r] + n);
      }
      n += count;
    }
  }

  const auto bytes = static_cast<std::int64_t>(element_bytes(call.finish.type));
  float ones[run_outputs];
  std::fill(ones, ones + run_outputs, 1.0f);
  for (std::int64_t r = 0; r < rows; ++r) {
    auto* y = static_cast<std::uint8_t*>(call.y) +
              ((first_row + r) * plan_.outputs + first_output) * bytes;
    kernels_->finish_row(call.finish, sums[r], ones, call.bias + first_output, outputs, y);
  }
}

}  // namespace tbn
