// From a layer's attributes to checked geometry and its reuse plan. Knows no framework.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace tbn {

// What is wrong with a layer, in one line that says how to mend it.
class InvalidLayer : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// weight[i] = scale[scale_index(i)] * (bit[phase(i)] ? +1 : -1), i the position in stored order.
struct Tiling {
  std::int64_t tile_length;
  std::int64_t offset;
  std::int64_t scale_count;
  std::int64_t scale_length;
  std::int64_t scale_offset;

  std::int64_t phase(std::int64_t i) const { return (i + offset) % tile_length; }
  std::int64_t scale_index(std::int64_t i) const {
    return (i + scale_offset) / scale_length % scale_count;
  }
  std::int64_t scale_run(std::int64_t i) const {
    return scale_length - (i + scale_offset) % scale_length;
  }
  std::int64_t tile_run(std::int64_t i) const { return tile_length - phase(i); }
  Tiling shifted(std::int64_t by) const;
};

// Which index runs fastest in the stored weight: NK is [outputs, inputs], KN is [inputs, outputs].
enum class Layout { NK, KN };

// lookup: one scale an output or an input; distinct rows are packed for the lookup kernel.
// runs: any scale; signs are read from the tile itself, run by run.
enum class Method { lookup, runs };

// The reuse plan of a matrix. With u[d] = sum over c of sign(d, c) * folded[c], and
// folded[c] = sum of inputs k = c mod distinct_inputs, output n is scale_n * u[n mod
// distinct_outputs].
struct MatrixPlan {
  std::int64_t outputs;
  std::int64_t inputs;
  Layout layout;
  Tiling tiling;
  Method method;
  std::int64_t distinct_outputs;
  std::int64_t distinct_inputs;
  bool scaled_by_input;  // else by output

  std::int64_t output_step() const { return layout == Layout::NK ? inputs : 1; }
  std::int64_t input_step() const { return layout == Layout::NK ? 1 : outputs; }
  std::int64_t position(std::int64_t output, std::int64_t input) const {
    return output * output_step() + input * input_step();
  }
};

MatrixPlan plan_matrix(std::int64_t outputs, std::int64_t inputs, Layout layout, Tiling tiling);

struct Activation {
  float minimum;
  float maximum;
};

// Attributes as they stand on the node, unchecked.
struct WeightAttributes {
  std::vector<std::int64_t> weight_shape;
  std::int64_t tile_length;
  std::int64_t offset;
  std::int64_t scale_length;
  std::int64_t scale_offset;
  Activation activation;
};

struct ConvAttributes {
  std::vector<std::int64_t> strides;
  std::vector<std::int64_t> dilations;
  std::vector<std::int64_t> pads;
  std::string auto_pad;
  std::int64_t group;
};

// Throws InvalidLayer unless the attributes hold together; does not know the inputs yet.
void check_weight(const WeightAttributes& weight);
void check_gemm(const WeightAttributes& weight, std::int64_t transposed);
// Also fills in ONNX's defaults.
void check_conv(const WeightAttributes& weight, ConvAttributes& conv);

struct InputShapes {
  std::vector<std::int64_t> tile;
  std::vector<std::int64_t> scale;
  std::vector<std::int64_t> bias;
  bool has_bias;
};
// Throws InvalidLayer unless the inputs have the lengths the attributes ask for.
void check_inputs(const WeightAttributes& weight, std::int64_t outputs, const InputShapes& shapes);

Tiling tiling_of(const WeightAttributes& weight, std::int64_t scale_count);

// A convolution over three spatial dimensions; missing leading ones have length 1.
struct ConvGeometry {
  struct Axis {
    std::int64_t input;
    std::int64_t kernel;
    std::int64_t stride;
    std::int64_t dilation;
    std::int64_t pad;  // in front
    std::int64_t output;
  };
  std::int64_t batch;
  std::int64_t channels;  // of one group
  std::int64_t outputs;   // of one group
  std::int64_t groups;
  Axis axes[3];

  std::int64_t taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
  std::int64_t input_pixels() const { return axes[0].input * axes[1].input * axes[2].input; }
  std::int64_t output_pixels() const { return axes[0].output * axes[1].output * axes[2].output; }
};

// `input` is the shape of X. Throws InvalidLayer where X does not fit the weight.
ConvGeometry conv_geometry(const WeightAttributes& weight, const ConvAttributes& conv,
                           const std::vector<std::int64_t>& input);
std::vector<std::int64_t> conv_output_shape(const ConvGeometry& geometry, std::size_t rank);

}  // namespace tbn
