"""A program for microcontrollers, written by hand: y = max(0, x[:4] − x[4:]) in two operators."""

from dataclasses import replace

import numpy as np

from tbn_compile.targets.mcu.program import Operator, Program, Sample, Tensor

STRUCTS = """\
struct tvmgen_default_inputs {
  void* x;
};
struct tvmgen_default_outputs {
  void* y;
};
int32_t tvmgen_default_run(struct tvmgen_default_inputs* inputs,
                           struct tvmgen_default_outputs* outputs);
"""

HEADER = f"""\
#ifndef TVMGEN_DEFAULT_H_
#define TVMGEN_DEFAULT_H_
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define TVMGEN_DEFAULT_X_SIZE 32
#define TVMGEN_DEFAULT_Y_SIZE 16
#define TVMGEN_DEFAULT_WORKSPACE_SIZE 16

{STRUCTS}
#ifdef __cplusplus
}}
#endif

#endif
"""

RUN = f"""\
#include <stdint.h>
#ifdef __has_include
#if __has_include("tvmgen_default.h")
#include "tvmgen_default.h"
#endif
#endif
#ifndef TVMGEN_DEFAULT_H_
{STRUCTS}#endif

int32_t tvmgen_default___tvm_main__(void* x, void* y);

int32_t tvmgen_default_run(struct tvmgen_default_inputs* inputs,
                           struct tvmgen_default_outputs* outputs) {{
  return tvmgen_default___tvm_main__(inputs->x, outputs->y);
}}
"""

KERNELS = """\
#include <stdint.h>

static float workspace[4];

void tvmgen_default_difference(const float* x, float* u);
void tvmgen_default_difference(const float* x, float* u) {
  int32_t i;
  for (i = 0; i < 4; ++i) {
    u[i] = x[i] - x[i + 4];
  }
}

void tvmgen_default_relu(const float* u, float* y);
void tvmgen_default_relu(const float* u, float* y) {
  int32_t i;
  for (i = 0; i < 4; ++i) {
    y[i] = u[i] > 0.0f ? u[i] : 0.0f;
  }
}

int32_t tvmgen_default___tvm_main__(void* x, void* y);
int32_t tvmgen_default___tvm_main__(void* x, void* y) {
  tvmgen_default_difference((const float*)x, workspace);
  tvmgen_default_relu(workspace, (float*)y);
  return 0;
}
"""

X = np.array([[1.5, -2.0, 0.1, 7.0, 0.25, 3.0, -0.2, 7.0]], np.float32)

SMALL_PROGRAM = Program(
    model_name="small",
    core="cortex-m4",
    inputs=(Tensor("x", "x", (1, 8), "float32"),),
    outputs=(Tensor("y", "y", (1, 4), "float32"),),
    operators=(
        Operator("tvmgen_default_difference", "difference", 0, 16),
        Operator("tvmgen_default_relu", "relu", 0, 16),
    ),
    workspace_bytes=16,
    constant_bytes=0,
    weight_bytes=0,
    sources={"tvmgen_default.h": HEADER, "default_lib0.c": RUN, "default_lib1.c": KERNELS},
    sample=Sample((X,), (np.maximum(X[:, :4] - X[:, 4:], 0),)),
)


def with_names(name: str) -> Program:
    """The program, but a model that calls everything by one name."""
    return replace(
        SMALL_PROGRAM,
        model_name=name,
        inputs=tuple(replace(tensor, name=name) for tensor in SMALL_PROGRAM.inputs),
        outputs=tuple(replace(tensor, name=name) for tensor in SMALL_PROGRAM.outputs),
        operators=tuple(replace(operator, layer=name) for operator in SMALL_PROGRAM.operators),
    )
