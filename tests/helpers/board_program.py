"""Programs for boards with an operator written by the test, on eight floats."""

import numpy as np

from tbn_compile.targets.mcu.program import Operator, Program, Sample, Tensor

HEADER = """\
#ifndef TVMGEN_DEFAULT_H_
#define TVMGEN_DEFAULT_H_
#include <stdint.h>
struct tvmgen_default_inputs { void* x; };
struct tvmgen_default_outputs { void* y; };
int32_t tvmgen_default_run(struct tvmgen_default_inputs* inputs,
                           struct tvmgen_default_outputs* outputs);
#endif
"""
ENTRY = """\
#include "tvmgen_default.h"
int32_t tvmgen_default___tvm_main__(void* x, void* y);
int32_t tvmgen_default_run(struct tvmgen_default_inputs* inputs,
                           struct tvmgen_default_outputs* outputs) {
  return tvmgen_default___tvm_main__(inputs->x, outputs->y);
}
"""
KERNELS = """\
#include <math.h>
#include <stdint.h>
#include <string.h>
DECLARATIONS
static float workspace[8];
__attribute__((noinline)) void tvmgen_default_copy(const float* x, float* u);
void tvmgen_default_copy(const float* x, float* u) {
  for (int32_t i = 0; i < 8; i++) { u[i] = x[i]; }
}
__attribute__((noinline)) int32_t tvmgen_default_custom(const float* x, float* y);
int32_t tvmgen_default_custom(const float* x, float* y) {
  int32_t status = 0;
  BODY
  y[0] = y[0] + x[0] * 0.0f;
  return status;
}
int32_t tvmgen_default___tvm_main__(void* x, void* y);
int32_t tvmgen_default___tvm_main__(void* x, void* y) {
  tvmgen_default_copy((const float*)x, workspace);
  const int32_t status = tvmgen_default_custom(workspace, (float*)y);
  return status;
}
"""
NORMALISE = """
  float sum = 0.0f;
  for (int32_t i = 0; i < 8; i++) { sum += x[i] * x[i]; }
  for (int32_t i = 0; i < 8; i++) { y[i] = (x[i] - 0.1f * (float)i) / sum; }
"""
"""Float arithmetic that has the same bits wherever IEEE 754 holds."""

INPUTS = np.array([1.5, -2.0, 0.3, 7.0, 0.25, 3.1, -0.2, 0.7], np.float32)


def board_program(
    body: str = NORMALISE, core: str = "cortex-m4", declarations: str = ""
) -> Program:
    """A copy, then `body`: C statements that read `x`, write `y` and may set `status`."""
    kernels = KERNELS.replace("BODY", body).replace("DECLARATIONS", declarations)
    return Program(
        model_name="written by hand",
        core=core,
        inputs=(Tensor("x", "x", (8,), "float32"),),
        outputs=(Tensor("y", "y", (8,), "float32"),),
        operators=(
            Operator("tvmgen_default_copy", "copy", 0, 32),
            Operator("tvmgen_default_custom", "custom", 0, 32),
        ),
        workspace_bytes=32,
        constant_bytes=0,
        weight_bytes=0,
        sources={"tvmgen_default.h": HEADER, "default_lib0.c": ENTRY, "default_lib1.c": kernels},
        sample=Sample((INPUTS,), (INPUTS,)),
    )
