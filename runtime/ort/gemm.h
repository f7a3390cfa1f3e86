// Y[m, n] = clamp(sum over k of X[m, k] * W[n, k] + bias[n]) for a tiled binary W.
#pragma once

#include "layer.h"

namespace tbn {

class Gemm {
 public:
  Gemm(const MatrixPlan& plan, const KernelSet& kernels) : plan_(plan), kernels_(&kernels) {}

  // Bytes `prepare` fills; the memory must outlive every run.
  std::int64_t memory() const;
  void prepare(const Parameters& parameters, void* memory);

  // A call on `rows` rows of X splits into units that may run in any order and at once.
  std::int64_t units(std::int64_t rows) const;
  void run(const Call& call, std::int64_t rows, std::int64_t unit) const;

  const MatrixPlan& plan() const { return plan_; }

 private:
  void carve(Carver& carver);
  const float* load_inputs(const float* x, std::int64_t first, std::int64_t count,
                           float* space) const;
  void run_lookup(const Call& call, std::int64_t rows, std::int64_t first_row,
                  std::int64_t first_output) const;
  void run_along_inputs(const Call& call, std::int64_t rows, std::int64_t first_row,
                        std::int64_t first_output) const;
  void run_along_outputs(const Call& call, std::int64_t rows, std::int64_t first_row,
                         std::int64_t first_output) const;
  std::int64_t outputs_a_unit() const;
  std::int64_t groups() const { return divide_up(plan_.distinct_inputs, kernels_->group); }
  std::int64_t words() const { return divide_up(groups(), kernels_->codes_per_word()); }

  MatrixPlan plan_;
  const KernelSet* kernels_;
  std::uint32_t* codes_ = nullptr;
  float* scales_ = nullptr;        // as stored
  float* output_scale_ = nullptr;  // [outputs]
  float* input_scale_ = nullptr;   // [inputs], only where the plan scales inputs
};

}  // namespace tbn
