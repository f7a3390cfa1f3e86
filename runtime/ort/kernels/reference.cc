#include "kernels/reference.h"

namespace tbn::reference {
namespace {

double clamp(double value, Activation activation) {
  if (value < activation.minimum) return activation.minimum;
  if (value > activation.maximum) return activation.maximum;
  return value;
}

// The input coordinate a tap reads, or -1 in the padding.
std::int64_t source(const ConvGeometry::Axis& axis, std::int64_t output, std::int64_t tap) {
  const std::int64_t at = output * axis.stride - axis.pad + tap * axis.dilation;
  return at < axis.input ? at : -1;
}

double convolve_at(const Weight& weight, const ConvGeometry& geometry, const float* x,
                   std::int64_t channel, const std::int64_t (&output)[3]) {
  const auto& axes = geometry.axes;
  double sum = 0;
  std::int64_t position = channel * geometry.channels * geometry.taps();
  for (std::int64_t c = 0; c < geometry.channels; ++c, x += geometry.input_pixels()) {
    for (std::int64_t kz = 0; kz < axes[0].kernel; ++kz) {
      for (std::int64_t ky = 0; ky < axes[1].kernel; ++ky) {
        for (std::int64_t kx = 0; kx < axes[2].kernel; ++kx, ++position) {
          const std::int64_t z = source(axes[0], output[0], kz);
          const std::int64_t y = source(axes[1], output[1], ky);
          const std::int64_t column = source(axes[2], output[2], kx);
          if (z < 0 || y < 0 || column < 0) continue;
          sum += weight.at(position) * x[(z * axes[1].input + y) * axes[2].input + column];
        }
      }
    }
  }
  return sum;
}

}  // namespace

void gemm(const Weight& weight, Layout layout, std::int64_t rows, std::int64_t outputs,
          std::int64_t inputs, const float* x, const float* bias, Activation activation,
          double* y) {
  for (std::int64_t row = 0; row < rows; ++row, x += inputs) {
    for (std::int64_t n = 0; n < outputs; ++n) {
      double sum = bias[n];
      for (std::int64_t k = 0; k < inputs; ++k) {
        sum += x[k] * weight.at(layout == Layout::NK ? n * inputs + k : k * outputs + n);
      }
      *y++ = clamp(sum, activation);
    }
  }
}

void conv(const Weight& weight, const ConvGeometry& geometry, const float* x, const float* bias,
          Activation activation, double* y) {
  const auto& axes = geometry.axes;
  const std::int64_t group_floats = geometry.channels * geometry.input_pixels();
  for (std::int64_t batch = 0; batch < geometry.batch; ++batch) {
    for (std::int64_t channel = 0; channel < geometry.outputs * geometry.groups; ++channel) {
      const std::int64_t group = channel / geometry.outputs;
      const float* input = x + (batch * geometry.groups + group) * group_floats;
      std::int64_t at[3];
      for (at[0] = 0; at[0] < axes[0].output; ++at[0]) {
        for (at[1] = 0; at[1] < axes[1].output; ++at[1]) {
          for (at[2] = 0; at[2] < axes[2].output; ++at[2]) {
            const double sum = convolve_at(weight, geometry, input, channel, at);
            *y++ = clamp(sum + bias[channel], activation);
          }
        }
      }
    }
  }
}

}  // namespace tbn::reference
