#include "plan.h"

#include <algorithm>
#include <numeric>

namespace tbn {
namespace {

// Positions, with offsets added, stay far inside int64.
constexpr std::int64_t most_elements = std::int64_t{1} << 48;
constexpr std::int64_t most_scale_period = std::int64_t{1} << 60;
constexpr std::int64_t most_spatial_extent = std::int64_t{1} << 40;
// Beyond this the packed rows would outgrow the tile absurdly: read the tile instead.
constexpr std::int64_t most_packed_signs = std::int64_t{1} << 33;

void require(bool condition, const std::string& complaint) {
  if (!condition) throw InvalidLayer(complaint);
}

std::string text(std::int64_t value) { return std::to_string(value); }

std::string text(const std::vector<std::int64_t>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? "," : "") + text(shape[i]);
  return out + "]";
}

bool product_at_most(const std::vector<std::int64_t>& factors, std::int64_t most) {
  std::int64_t product = 1;
  return std::all_of(factors.begin(), factors.end(), [&](std::int64_t factor) {
    return !__builtin_mul_overflow(product, factor, &product) && product <= most;
  });
}

bool all_within(const std::vector<std::int64_t>& values, std::int64_t least, std::int64_t most) {
  return std::all_of(values.begin(), values.end(),
                     [&](std::int64_t v) { return v >= least && v <= most; });
}

}  // namespace

Tiling Tiling::shifted(std::int64_t by) const {
  Tiling out = *this;
  out.offset = (by + offset) % tile_length;
  out.scale_offset = (by + scale_offset) % (scale_length * scale_count);
  return out;
}

MatrixPlan plan_matrix(std::int64_t outputs, std::int64_t inputs, Layout layout, Tiling tiling) {
  MatrixPlan plan{outputs, inputs, layout, tiling, Method::lookup, outputs, inputs, false};
  const std::int64_t fast = layout == Layout::NK ? inputs : outputs;
  const std::int64_t slow = layout == Layout::NK ? outputs : inputs;
  const std::int64_t last = outputs * inputs - 1;

  const std::int64_t distinct_fast = std::min(fast, tiling.tile_length);
  const std::int64_t distinct_slow =
      std::min(slow, tiling.tile_length / std::gcd(tiling.tile_length, fast));
  const std::int64_t distinct_inputs = layout == Layout::NK ? distinct_fast : distinct_slow;
  plan.distinct_outputs = layout == Layout::NK ? distinct_slow : distinct_fast;

  const bool one_scale = tiling.scale_count == 1 || last < tiling.scale_run(0);
  const bool along_slow = tiling.scale_length % fast == 0 && tiling.scale_offset % fast == 0;
  const bool along_fast = fast % (tiling.scale_length * tiling.scale_count) == 0;
  const bool by_output = one_scale || (layout == Layout::NK ? along_slow : along_fast);
  const bool by_input = layout == Layout::NK ? along_fast : along_slow;

  if ((!by_output && !by_input) ||
      !product_at_most({plan.distinct_outputs, distinct_inputs}, most_packed_signs)) {
    plan.method = Method::runs;
    // Rows that repeat must also change scale at the same places.
    const bool repeats = layout == Layout::NK &&
                         (one_scale || plan.distinct_outputs * inputs % tiling.scale_length == 0);
    if (!repeats) plan.distinct_outputs = outputs;
    return plan;
  }
  plan.scaled_by_input = !by_output;
  const std::int64_t folding = inputs + plan.distinct_outputs * distinct_inputs;
  if (folding < plan.distinct_outputs * inputs) plan.distinct_inputs = distinct_inputs;
  return plan;
}

void check_weight(const WeightAttributes& weight) {
  const auto& shape = weight.weight_shape;
  require(all_within(shape, 1, most_elements), "weight_shape " + text(shape) +
                                                   " needs every length between 1 and "
                                                   "2^48");
  require(product_at_most(shape, most_elements),
          "weight_shape " + text(shape) + " has more than 2^48 elements; split the layer");
  require(weight.tile_length >= 1 && weight.tile_length <= most_elements,
          "tile_length " + text(weight.tile_length) + " must lie between 1 and 2^48");
  require(weight.offset >= 0 && weight.offset < weight.tile_length,
          "offset " + text(weight.offset) + " must lie in [0, tile_length), tile_length is " +
              text(weight.tile_length));
  require(weight.scale_length >= 1 && weight.scale_length <= most_elements,
          "scale_length " + text(weight.scale_length) + " must lie between 1 and 2^48");
  require(weight.scale_offset >= 0,
          "scale_offset " + text(weight.scale_offset) + " must not be negative");
  require(!(weight.activation.minimum > weight.activation.maximum) &&
              weight.activation.minimum == weight.activation.minimum &&
              weight.activation.maximum == weight.activation.maximum,
          "activation_min must not exceed activation_max, and neither may be NaN");
}

void check_gemm(const WeightAttributes& weight, std::int64_t transposed) {
  require(weight.weight_shape.size() == 2, "weight_shape " + text(weight.weight_shape) +
                                               " must have 2 dimensions, [N,K] with transB=1 or "
                                               "[K,N] with transB=0");
  require(transposed == 0 || transposed == 1, "transB " + text(transposed) + " must be 0 or 1");
  check_weight(weight);
}

void check_conv(const WeightAttributes& weight, ConvAttributes& conv) {
  const std::size_t rank = weight.weight_shape.size();
  require(rank >= 3 && rank <= 5, "weight_shape " + text(weight.weight_shape) +
                                      " must be [N,channels/group,k1..kn] with n = 1, 2 or 3");
  check_weight(weight);
  const std::size_t spatial = rank - 2;
  const std::string lengths =
      " must have " + std::to_string(spatial) + " values between 1 and 2^40";
  if (conv.strides.empty()) conv.strides.assign(spatial, 1);
  if (conv.dilations.empty()) conv.dilations.assign(spatial, 1);
  require(conv.strides.size() == spatial && all_within(conv.strides, 1, most_spatial_extent),
          "strides " + text(conv.strides) + lengths);
  require(conv.dilations.size() == spatial && all_within(conv.dilations, 1, most_spatial_extent),
          "dilations " + text(conv.dilations) + lengths);
  for (std::size_t axis = 0; axis < spatial; ++axis) {
    require(
        product_at_most({weight.weight_shape[axis + 2], conv.dilations[axis]}, most_spatial_extent),
        "dilations " + text(conv.dilations) + " stretch the kernel beyond 2^40");
  }
  const bool automatic =
      conv.auto_pad == "SAME_UPPER" || conv.auto_pad == "SAME_LOWER" || conv.auto_pad == "VALID";
  require(automatic || conv.auto_pad == "NOTSET",
          "auto_pad must be NOTSET, SAME_UPPER, SAME_LOWER or VALID");
  require(!automatic || conv.pads.empty(),
          "pads and auto_pad cannot both be given; leave out one of them");
  if (conv.pads.empty()) conv.pads.assign(2 * spatial, 0);
  require(conv.pads.size() == 2 * spatial && all_within(conv.pads, 0, most_spatial_extent),
          "pads " + text(conv.pads) + " must have " + std::to_string(2 * spatial) +
              " values between 0 and 2^40");
  require(conv.group >= 1 && weight.weight_shape[0] % conv.group == 0,
          "group " + text(conv.group) + " must divide the " + text(weight.weight_shape[0]) +
              " output channels of weight_shape");
}

void check_inputs(const WeightAttributes& weight, std::int64_t outputs, const InputShapes& shapes) {
  const std::int64_t tile_bytes = (weight.tile_length + 7) / 8;
  require(shapes.tile == std::vector<std::int64_t>{tile_bytes},
          "tile has shape " + text(shapes.tile) + ", but tile_length " + text(weight.tile_length) +
              " needs uint8[" + text(tile_bytes) + "]; pack the bits LSB first, padded with zeros");
  require(shapes.scale.size() == 1 && shapes.scale[0] >= 1,
          "scale has shape " + text(shapes.scale) + "; it must be a vector of at least one value");
  std::int64_t period = 0;
  require(!__builtin_mul_overflow(shapes.scale[0], weight.scale_length, &period) &&
              period <= most_scale_period,
          "scale_length " + text(weight.scale_length) + " times the " + text(shapes.scale[0]) +
              " values of scale is too large; shorten scale to the values the weight uses");
  require(weight.scale_offset < period,
          "scale_offset " + text(weight.scale_offset) + " must be below scale_length times the " +
              text(shapes.scale[0]) + " values of scale, which is " + text(period));
  require(
      !shapes.has_bias || shapes.bias == std::vector<std::int64_t>{outputs},
      "bias has shape " + text(shapes.bias) + ", but weight_shape needs [" + text(outputs) + "]");
}

Tiling tiling_of(const WeightAttributes& weight, std::int64_t scale_count) {
  return {weight.tile_length, weight.offset, scale_count, weight.scale_length, weight.scale_offset};
}

namespace {

ConvGeometry::Axis conv_axis(std::int64_t input, std::int64_t kernel, std::int64_t stride,
                             std::int64_t dilation, std::int64_t begin, std::int64_t end,
                             const std::string& auto_pad) {
  const std::int64_t reach = (kernel - 1) * dilation + 1;
  if (auto_pad == "SAME_UPPER" || auto_pad == "SAME_LOWER") {
    const std::int64_t output = (input + stride - 1) / stride;
    const std::int64_t total = std::max<std::int64_t>(0, (output - 1) * stride + reach - input);
    begin = auto_pad == "SAME_UPPER" ? total / 2 : total - total / 2;
    return {input, kernel, stride, dilation, begin, output};
  }
  const std::int64_t room = input + begin + end - reach;
  return {input, kernel, stride, dilation, begin, room < 0 ? 0 : room / stride + 1};
}

}  // namespace

ConvGeometry conv_geometry(const WeightAttributes& weight, const ConvAttributes& conv,
                           const std::vector<std::int64_t>& input) {
  const auto& shape = weight.weight_shape;
  require(input.size() == shape.size(), "X has shape " + text(input) + ", but weight_shape " +
                                            text(shape) + " needs " + std::to_string(shape.size()) +
                                            " dimensions");
  ConvGeometry geometry{};
  geometry.batch = input[0];
  geometry.channels = shape[1];
  geometry.outputs = shape[0] / conv.group;
  geometry.groups = conv.group;
  require(
      product_at_most({shape[1], conv.group}, most_elements) && input[1] == shape[1] * conv.group,
      "X has " + text(input[1]) + " channels, but weight_shape " + text(shape) + " with group " +
          text(conv.group) + " needs " + text(shape[1]) + " times the group");
  const std::size_t spatial = shape.size() - 2;
  const std::size_t missing = 3 - spatial;
  for (std::size_t axis = 0; axis < missing; ++axis) geometry.axes[axis] = {1, 1, 1, 1, 0, 1};
  for (std::size_t axis = 0; axis < spatial; ++axis) {
    geometry.axes[missing + axis] =
        conv_axis(input[axis + 2], shape[axis + 2], conv.strides[axis], conv.dilations[axis],
                  conv.pads[axis], conv.pads[axis + spatial], conv.auto_pad);
    require(geometry.axes[missing + axis].output >= 1,
            "X has shape " + text(input) + ", too small for the kernel of weight_shape " +
                text(shape) + " with pads " + text(conv.pads));
  }
  return geometry;
}

std::vector<std::int64_t> conv_output_shape(const ConvGeometry& geometry, std::size_t rank) {
  std::vector<std::int64_t> shape{geometry.batch, geometry.outputs * geometry.groups};
  for (std::size_t axis = 5 - rank; axis < 3; ++axis) shape.push_back(geometry.axes[axis].output);
  require(product_at_most(shape, most_elements),
          "the output shape " + text(shape) + " has more than 2^48 elements");
  return shape;
}

}  // namespace tbn
