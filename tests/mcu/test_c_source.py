"""Functions in C: exact constants, no idle variables, nothing that TVM's backend gets wrong."""

from __future__ import annotations

import ctypes
import subprocess

import numpy as np
import pytest
from helpers.programs import STRICT
from tvm import s_tir, te, tirx
from tvm.script import tirx as T

from tbn_compile.targets.mcu.compiler.c_source import declaration, extremes, write_functions

PRELUDE = "#include <math.h>\n#include <stdint.h>\n"


def compiled(function, folder):
    """The function as a host library, compiled strictly, and its description."""
    (written,) = write_functions({"f": function}, {"f": 1})
    source = folder / "f.c"
    ours = "\n".join(extremes(written.text))
    source.write_text(f"{PRELUDE}{ours}\n{declaration(written)}\n{written.text}\n")
    library = folder / "f.so"
    command = ["gcc", *STRICT, "-shared", "-fPIC", str(source), "-lm", "-o", str(library)]
    subprocess.run(command, check=True)
    return getattr(ctypes.CDLL(str(library)), written.name), written


def call(function, *arrays):
    function(*(ctypes.c_void_p(array.ctypes.data) for array in arrays))
    return arrays[-1]


def test_a_buffer_becomes_a_parameter_and_a_local_stays(tmp_path):
    @T.prim_func(s_tir=True)
    def total(x: T.Buffer((4,), "float32"), y: T.Buffer((1,), "float32")):
        squares = T.alloc_buffer((4,), "float32")
        sums = T.alloc_buffer((1,), "float32", scope="local")
        for i in range(4):
            squares[i] = x[i] * x[i]
        sums[0] = T.float32(0)
        for i in range(4):
            sums[0] = sums[0] + squares[i]
        y[0] = sums[0]

    function, written = compiled(total, tmp_path)

    assert [(p.dtype, p.elements) for p in written.workspace] == [("float32", 4)]
    assert [p.is_input for p in written.parameters] == [True, False, False]
    x, y, workspace = np.arange(4, dtype=np.float32), np.zeros(1, np.float32), np.zeros(4, "f")
    call(function, x, y, workspace)
    assert y[0] == 14


def test_a_greatest_value_follows_stores(tmp_path):
    """TVM 0.27 names the operands of Max and goes on using the names after a store."""

    @T.prim_func(s_tir=True)
    def greatest(x: T.Buffer((3,), "float32"), y: T.Buffer((1,), "float32")):
        y[0] = T.float32(-1000)
        y[0] = T.max(y[0], x[0])
        y[0] = T.max(y[0], x[1])
        y[0] = T.max(y[0], x[2])

    function, _ = compiled(greatest, tmp_path)

    x = np.array([3, 9, 1], np.float32)
    assert call(function, x, np.zeros(1, np.float32))[0] == 9


@pytest.mark.parametrize("value", [0.1, 1 / 3, 16777217.0, 1e-42, float("inf"), -float("inf")])
def test_a_constant_keeps_all_its_digits(value, tmp_path):
    x = te.placeholder((1,), "float32", name="x")
    y = te.compute((1,), lambda i: x[i] + tirx.const(value, "float32"))

    function, _ = compiled(te.create_prim_func([x, y]), tmp_path)

    result = call(function, np.zeros(1, np.float32), np.zeros(1, np.float32))
    np.testing.assert_array_equal(result, np.float32(value))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_arithmetic_on_narrow_integers_wraps_without_a_warning(dtype, tmp_path):
    x = te.placeholder((256,), dtype, name="x")
    y = te.compute((256,), lambda i: x[i] * x[i] - x[i])
    values = np.arange(256).astype(dtype)

    function, _ = compiled(te.create_prim_func([x, y]), tmp_path)

    result = call(function, values, np.zeros(256, dtype))
    np.testing.assert_array_equal(result, values * values - values)


def test_variables_that_nothing_uses_are_left_out(tmp_path):
    x = te.placeholder((10, 30), "float32", name="x")
    y = te.compute(
        (10, 30),
        lambda i, j: tirx.if_then_else(
            tirx.all((i * 30 + j + 7) % 13 > 3, (i * 30 + j + 7) % 13 < 9),
            x[(i * 30 + j + 7) % 10, (i * 30 + j + 7) % 13],
            x[(i * 30 + j + 7) % 13 % 10, j],
        ),
    )

    function, _ = compiled(te.create_prim_func([x, y]), tmp_path)

    values = np.random.default_rng(0).standard_normal((10, 30)).astype(np.float32)
    place = np.arange(300).reshape(10, 30) + 7
    inside = (place % 13 > 3) & (place % 13 < 9)
    columns = np.broadcast_to(np.arange(30), (10, 30))
    expected = np.where(inside, values[place % 10, place % 13], values[place % 13 % 10, columns])
    np.testing.assert_array_equal(call(function, values, np.zeros_like(values)), expected)


def test_an_unused_parameter_is_named(tmp_path):
    x = te.placeholder((2,), "float32", name="x")
    y = te.compute((2,), lambda i: i.astype("float32"))

    function, _ = compiled(te.create_prim_func([x, y]), tmp_path)

    result = call(function, np.zeros(2, np.float32), np.zeros(2, np.float32))
    np.testing.assert_array_equal(result, [0, 1])


def test_a_chain_of_extremes_grows_in_proportion():
    x = te.placeholder((8,), "float32", name="x")

    def stage(value):
        zero = tirx.const(0, "float32")
        return te.compute((8,), lambda i: tirx.max(-value[i], zero))

    def chain(length):
        value = x
        for _ in range(length):
            value = stage(value)
        function = te.create_prim_func([x, value])
        schedule = s_tir.Schedule(function)
        for block in schedule.get_child_blocks(schedule.get_sblock("root"))[:-1]:
            schedule.compute_inline(block)
        (written,) = write_functions({"f": schedule.mod["main"]}, {"f": 1})
        return len(written.text)

    assert chain(12) < 12 * chain(1)
