// Compares the kernels of every instruction set this processor has with the plain reference, on
// random layers. Usage: tbn_native_test [layers]. A failure prints the seed that reproduces it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "conv.h"
#include "gemm.h"
#include "kernels/number_formats.h"
#include "kernels/reference.h"

namespace {

using tbn::ElementType;
using tbn::KernelSet;
using Random = std::mt19937_64;

constexpr double tolerance = 1e-5;

int failures = 0;
int checks = 0;

void expect(bool good, const std::string& what) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

std::int64_t between(Random& random, std::int64_t least, std::int64_t most) {
  return std::uniform_int_distribution<std::int64_t>(least, most)(random);
}

std::vector<float> normals(Random& random, std::int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

// Memory for a layer or a unit, exactly as long as asked for so that the sanitizer sees overruns.
struct Aligned {
  explicit Aligned(std::int64_t bytes)
      : memory(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{64})) {}
  ~Aligned() { ::operator delete(memory, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  void* memory;
};

struct Layer {
  tbn::Tiling tiling;
  std::vector<std::uint8_t> tile;
  std::vector<float> scale;
  std::vector<float> bias;
  tbn::Activation activation;

  tbn::reference::Weight weight() const { return {tiling, tile.data(), scale.data()}; }
  tbn::Parameters parameters() const { return {tile.data(), scale.data(), ElementType::float32}; }
};

// `fast` is the length of the stored weight's last dimension, `outputs` the number of biases.
Layer random_layer(Random& random, std::int64_t elements, std::int64_t fast, std::int64_t outputs) {
  Layer layer;
  tbn::Tiling& tiling = layer.tiling;
  const std::int64_t slow = elements / fast;
  const std::int64_t lengths[] = {fast * between(random, 1, slow), between(random, 1, 40),
                                  between(random, 1, elements), fast, 2 * elements};
  tiling.tile_length = lengths[between(random, 0, 4)];
  tiling.offset = between(random, 0, 1) * between(random, 0, tiling.tile_length - 1);
  switch (between(random, 0, 4)) {
    case 0:  // a layer
      tiling.scale_length = elements, tiling.scale_count = 1, tiling.scale_offset = 0;
      break;
    case 1:  // a tile
      tiling.scale_length = tiling.tile_length, tiling.scale_offset = tiling.offset;
      tiling.scale_count = (elements + tiling.offset - 1) / tiling.tile_length + 1;
      break;
    case 2:  // a stored row
      tiling.scale_length = fast, tiling.scale_count = slow, tiling.scale_offset = 0;
      break;
    case 3:  // a stored column
      tiling.scale_length = 1, tiling.scale_count = fast, tiling.scale_offset = 0;
      break;
    default:  // anything
      tiling.scale_length = between(random, 1, elements);
      tiling.scale_count = between(random, 1, 5);
      tiling.scale_offset = between(random, 0, tiling.scale_length * tiling.scale_count - 1);
  }
  layer.tile.resize(static_cast<std::size_t>(tbn::divide_up(tiling.tile_length, 8)));
  for (auto& byte : layer.tile) byte = static_cast<std::uint8_t>(between(random, 0, 255));
  layer.scale = normals(random, tiling.scale_count);
  layer.bias = normals(random, outputs);
  layer.activation = {-std::numeric_limits<float>::infinity(),
                      std::numeric_limits<float>::infinity()};
  if (between(random, 0, 1)) layer.activation = {0.0f, 6.0f};
  return layer;
}

double relative_error(const std::vector<float>& actual, const std::vector<double>& expected) {
  double error = 0, largest = 1e-30;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    error = std::max(error, std::isnan(actual[i]) ? 1e30 : std::abs(actual[i] - expected[i]));
    largest = std::max(largest, std::abs(expected[i]));
  }
  return error / largest;
}

std::string describe(const KernelSet& kernels, const char* what, std::uint64_t seed) {
  return std::string(kernels.name) + " " + what + ", seed " + std::to_string(seed);
}

void test_gemm(const KernelSet& kernels, std::uint64_t seed) {
  Random random(seed);
  const std::int64_t rows = between(random, 1, 21), outputs = between(random, 1, 90);
  const std::int64_t inputs = between(random, 1, between(random, 0, 9) ? 90 : 700);
  const auto layout = between(random, 0, 1) ? tbn::Layout::NK : tbn::Layout::KN;
  const std::int64_t fast = layout == tbn::Layout::NK ? inputs : outputs;
  const Layer layer = random_layer(random, outputs * inputs, fast, outputs);
  const std::vector<float> x = normals(random, rows * inputs);
  std::vector<double> expected(static_cast<std::size_t>(rows * outputs));
  tbn::reference::gemm(layer.weight(), layout, rows, outputs, inputs, x.data(), layer.bias.data(),
                       layer.activation, expected.data());

  tbn::Gemm gemm(tbn::plan_matrix(outputs, inputs, layout, layer.tiling), kernels);
  const Aligned memory(gemm.memory());
  gemm.prepare(layer.parameters(), memory.memory);
  std::vector<float> y(expected.size(), std::nanf(""));
  const tbn::Call call{x.data(),
                       layer.bias.data(),
                       layer.tile.data(),
                       y.data(),
                       {layer.activation.minimum, layer.activation.maximum, ElementType::float32}};
  for (std::int64_t unit = gemm.units(rows); unit-- > 0;) gemm.run(call, rows, unit);
  expect(relative_error(y, expected) < tolerance, describe(kernels, "gemm", seed));
}

void test_conv(const KernelSet& kernels, std::uint64_t seed) {
  Random random(seed);
  const bool depthwise = between(random, 0, 3) == 0;
  const std::int64_t groups = depthwise               ? between(random, 2, 40)
                              : between(random, 0, 2) ? 1
                                                      : between(random, 2, 5);
  const std::int64_t spatial = between(random, 1, 3);
  tbn::WeightAttributes weight{};
  weight.weight_shape = {groups * (depthwise ? 1 : between(random, 1, 40)),
                         between(random, 1, between(random, 0, 1) ? 4 : 14)};
  tbn::ConvAttributes attributes{{}, {}, {}, "NOTSET", groups};
  std::vector<std::int64_t> x_shape{between(random, 1, 2), weight.weight_shape[1] * groups};
  for (std::int64_t axis = 0; axis < spatial; ++axis) {
    weight.weight_shape.push_back(between(random, 1, 3));
    attributes.strides.push_back(between(random, 1, 3));
    attributes.dilations.push_back(between(random, 1, 3));
    x_shape.push_back(between(random, 7, spatial == 3 ? 8 : spatial == 2 ? 21 : 90));
  }
  for (std::int64_t pad = 0; pad < 2 * spatial; ++pad) {
    attributes.pads.push_back(between(random, 0, 3));
  }
  std::int64_t elements = 1;
  for (const std::int64_t length : weight.weight_shape) elements *= length;
  const Layer layer =
      random_layer(random, elements, elements / weight.weight_shape[0], weight.weight_shape[0]);
  const tbn::ConvGeometry geometry = tbn::conv_geometry(weight, attributes, x_shape);
  const std::vector<float> x =
      normals(random, geometry.batch * geometry.channels * groups * geometry.input_pixels());
  std::vector<double> expected(
      static_cast<std::size_t>(geometry.batch * weight.weight_shape[0] * geometry.output_pixels()));
  tbn::reference::conv(layer.weight(), geometry, x.data(), layer.bias.data(), layer.activation,
                       expected.data());

  tbn::Conv conv(weight.weight_shape, groups, layer.tiling, kernels);
  const Aligned memory(conv.memory());
  conv.prepare(layer.parameters(), memory.memory);
  std::vector<float> y(expected.size(), std::nanf(""));
  const tbn::Call call{x.data(),
                       layer.bias.data(),
                       layer.tile.data(),
                       y.data(),
                       {layer.activation.minimum, layer.activation.maximum, ElementType::float32}};
  const tbn::Conv::Schedule schedule = conv.schedule(geometry, between(random, 1, 8));
  const Aligned workspace(schedule.workspace);
  for (std::int64_t unit = schedule.units; unit-- > 0;) {
    conv.run(call, geometry, schedule, unit, workspace.memory);
  }
  expect(relative_error(y, expected) < tolerance, describe(kernels, "conv", seed));
}

// Sums of more inputs than a kernel adds at one go.
void test_few_rows_of_many_inputs(const KernelSet& kernels) {
  constexpr std::int64_t inputs = 700, count = 21, channels = 11, pitch = count + 16;
  Random random(1);
  const std::vector<float> x = normals(random, inputs * pitch);
  const std::vector<float> weights = normals(random, channels * inputs);
  std::vector<std::ptrdiff_t> offsets;
  for (std::int64_t i = 0; i < inputs; ++i) offsets.push_back(i * pitch);
  std::vector<float> sums(channels * pitch), actual;
  kernels.sum_taps({x.data(), 0, offsets.data(), weights.data(), inputs, channels, 1, count,
                    sums.data(), pitch});
  std::vector<double> expected;
  for (std::int64_t c = 0; c < channels; ++c) {
    for (std::int64_t column = 0; column < count; ++column) {
      double sum = 0;
      for (std::int64_t i = 0; i < inputs; ++i) {
        sum += double{weights[static_cast<std::size_t>(c * inputs + i)]} *
               x[static_cast<std::size_t>(i * pitch + column)];
      }
      expected.push_back(sum);
      actual.push_back(sums[static_cast<std::size_t>(c * pitch + column)]);
    }
  }
  expect(relative_error(actual, expected) < tolerance, describe(kernels, "sum_taps", 0));
}

// Every 16-bit pattern must survive the trip to float32 and back, NaNs as some NaN.
void test_formats(const KernelSet& kernels) {
  constexpr std::int64_t count = 1 << 16;
  std::vector<std::uint16_t> patterns(count), back(count);
  for (std::size_t i = 0; i < count; ++i) patterns[i] = static_cast<std::uint16_t>(i);
  std::vector<float> values(count);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const auto type : {ElementType::float16, ElementType::bfloat16}) {
    kernels.to_float(type, patterns.data(), count, values.data());
    kernels.finish_channel({-infinity, infinity, type}, values.data(), 1.0f, -0.0f, count,
                           back.data());
    const std::uint16_t quiet = type == ElementType::float16 ? 0x7c00 : 0x7f80;
    for (std::size_t i = 0; i < count; ++i) {
      const bool nan = (patterns[i] & 0x7fff) > quiet;
      const bool same = nan ? (back[i] & 0x7fff) > quiet : back[i] == patterns[i];
      if (!same || nan != std::isnan(values[i])) {
        return expect(false, describe(kernels, "16-bit round trip", i));
      }
    }
  }
  expect(true, "formats");
}

// Random float32 values must round to the nearest 16-bit value, ties to even.
void test_rounding(const KernelSet& kernels, std::uint64_t seed) {
  Random random(seed);
  constexpr std::int64_t count = 1024;
  const float infinity = std::numeric_limits<float>::infinity();
  for (const auto type : {ElementType::float16, ElementType::bfloat16}) {
    std::vector<float> values(count);
    for (float& value : values) {
      value = std::ldexp(normals(random, 1)[0], static_cast<int>(between(random, -28, 17)));
    }
    // Halfway between neighbours, from random patterns.
    std::vector<std::uint16_t> low(count), high(count), rounded(count);
    const std::uint16_t finite = type == ElementType::float16 ? 0x7bfe : 0x7f7e;
    for (std::size_t i = 0; i < count; ++i) {
      low[i] = static_cast<std::uint16_t>(between(random, 0, finite));
      high[i] = static_cast<std::uint16_t>(low[i] + 1);
    }
    std::vector<float> below(count), above(count);
    kernels.to_float(type, low.data(), count, below.data());
    kernels.to_float(type, high.data(), count, above.data());
    for (std::size_t i = 0; i < count / 2; ++i) values[i] = below[i] + (above[i] - below[i]) / 2;
    kernels.finish_channel({-infinity, infinity, type}, values.data(), 1.0f, 0.0f, count,
                           rounded.data());
    for (std::size_t i = 0; i < count / 2; ++i) {
      expect(rounded[i] == (low[i] % 2 ? high[i] : low[i]), describe(kernels, "tie", seed));
    }
    std::vector<float> back(count);
    kernels.to_float(type, rounded.data(), count, back.data());
    for (std::size_t i = count / 2; i < count; ++i) {
      std::uint16_t neighbours[2] = {static_cast<std::uint16_t>(rounded[i] - 1),
                                     static_cast<std::uint16_t>(rounded[i] + 1)};
      float around[2];
      kernels.to_float(type, neighbours, 2, around);
      const float error = std::abs(back[i] - values[i]);
      const bool nearest = std::isinf(back[i]) || (!(std::abs(around[0] - values[i]) < error) &&
                                                   !(std::abs(around[1] - values[i]) < error));
      expect(nearest, describe(kernels, "rounding", seed));
    }
  }
}

// NaN passes the clamp, and outputs stay inside it.
void test_clamp(const KernelSet& kernels) {
  const std::vector<float> u = {std::nanf(""), -3.0f, 0.5f, 9.0f};
  std::vector<float> y(u.size());
  kernels.finish_channel({0.0f, 6.0f, ElementType::float32}, u.data(), 1.0f, 0.0f,
                         static_cast<std::int64_t>(u.size()), y.data());
  expect(std::isnan(y[0]) && y[1] == 0.0f && y[2] == 0.5f && y[3] == 6.0f,
         describe(kernels, "clamp", 0));
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t layers = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 400;
  for (const KernelSet* kernels : tbn::usable_kernels()) {
    test_formats(*kernels);
    test_clamp(*kernels);
    test_few_rows_of_many_inputs(*kernels);
    for (std::uint64_t seed = 1; seed <= 4; ++seed) test_rounding(*kernels, seed);
    for (std::uint64_t seed = 1; seed <= layers; ++seed) {
      test_gemm(*kernels, seed);
      test_conv(*kernels, seed);
    }
    std::printf("tested %s\n", kernels->name);
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures ? 1 : 0;
}
