"""The self-test in C: what it accepts and what it finds."""

import subprocess
from dataclasses import replace

import numpy as np
import pytest
from helpers.mcu_program import SMALL_PROGRAM

from tbn_compile.errors import ModelError
from tbn_compile.targets.mcu.archive.self_test import self_test_sources
from tbn_compile.targets.mcu.program import Sample, Tensor

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic"]
MAIN = """\
#include "tvmgen_default_self_test.h"
int main(void) { return (int)tvmgen_default_self_test(); }
"""
RUN = """\
#include "tvmgen_default.h"
#include <string.h>
int32_t tvmgen_default_run(struct tvmgen_default_inputs* inputs,
                           struct tvmgen_default_outputs* outputs) {
  memcpy(outputs->y, inputs->x, SIZE);
  return RESULT;
}
"""


def wrong_elements(actual, expected, tmp_path, compiler="gcc", language="c", result=0):
    """What the self-test returns for a model that gives `actual` where `expected` should be."""
    dtype = expected.dtype.name
    program = replace(
        SMALL_PROGRAM,
        inputs=(Tensor("x", "x", actual.shape, dtype),),
        outputs=(Tensor("y", "y", expected.shape, dtype),),
        sample=Sample((actual,), (expected,)),
    )
    texts = {
        **self_test_sources(program),
        "main.c": MAIN,
        "run.c": RUN,
        "tvmgen_default.h": SMALL_PROGRAM.sources["tvmgen_default.h"],
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    sources = [str(tmp_path / name) for name in sorted(texts) if name.endswith(".c")]
    flags = [*STRICT, f"-DSIZE={actual.nbytes}", f"-DRESULT={result}"]
    if language == "c++":
        flags = ["-xc++", *flags[1:]]
    command = [compiler, *flags, *sources, "-o", str(tmp_path / "program")]
    subprocess.run(command, check=True)
    return subprocess.run([str(tmp_path / "program")], check=False).returncode


EXTREMES = [
    np.array([0.1, -0.0, 1e-45, 3.4028235e38, -1.17e-38], np.float32),
    np.array([np.nan, np.inf, -np.inf, 1], np.float32),
    np.array([], np.float32),
    np.array(1.5, np.float32),
    np.array([-128, 127], np.int8),
    np.array([0, 255], np.uint8),
    np.array([True, False]),
    *(
        np.array([np.iinfo(dtype).min, np.iinfo(dtype).max, 0], dtype)
        for dtype in ("int16", "uint16", "int32", "uint32", "int64", "uint64")
    ),
]


@pytest.mark.parametrize("values", EXTREMES, ids=lambda v: f"{v.dtype}{v.shape}")
@pytest.mark.parametrize(("compiler", "language"), [("gcc", "c"), ("clang", "c"), ("gcc", "c++")])
def test_exact_outputs_pass_without_a_warning(values, compiler, language, tmp_path):
    assert wrong_elements(values, values, tmp_path, compiler, language) == 0


@pytest.mark.parametrize(
    "actual,expected,wrong",
    [
        ([100.0009, 1.0009, -1.0], [100, 1, -1], 0),
        ([100.002, 0.998, -1.002], [100, 1, -1], 3),
        ([1e-30, 0], [0, 0], 1),
        ([np.nan, 1, np.inf], [1, np.nan, 1], 3),
        ([np.inf, -np.inf, 1], [-np.inf, np.inf, np.inf], 3),
    ],
)
def test_floats(actual, expected, wrong, tmp_path):
    arrays = [np.array(values, np.float32) for values in (actual, expected)]
    assert wrong_elements(*arrays, tmp_path) == wrong


def test_quantised_activations_may_be_off_by_one_step(tmp_path):
    actual = np.array([-128, -126, 126, 125, 5], np.int8)
    expected = np.array([-127, -128, 127, 127, 5], np.int8)
    assert wrong_elements(actual, expected, tmp_path) == 2


def test_other_integers_must_be_equal(tmp_path):
    actual, expected = np.array([1, 2, 3], np.int64), np.array([1, 2, 4], np.int64)
    assert wrong_elements(actual, expected, tmp_path) == 1


def test_result_of_the_model(tmp_path):
    values = np.zeros(3, np.float32)
    assert wrong_elements(values, values + 1, tmp_path, result=77) == 77


def test_type_that_c_lacks():
    half = Sample(SMALL_PROGRAM.sample.inputs, (np.zeros((1, 4), np.float16),))
    with pytest.raises(ModelError, match="C has no type for float16; cast such tensors"):
        self_test_sources(replace(SMALL_PROGRAM, sample=half))
