"""Activations made ready: zeros around them, tables of signed sums."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tbn_compile.passes.relax.tiled_layer import Window
from tbn_compile.targets.llvm.kernels.block import vector_of
from tbn_compile.targets.llvm.kernels.extents import own_extents


def pad_function(window: Window, kernel: Sequence[int], x: Sequence[Any], dtype: str) -> Any:
    """The PrimFunc (x, padded): zeros everywhere, then whole rows of the image.

    Args:
        window: of the convolution.
        kernel: its spatial extents.
        x: the extents of the activation: [batch, channels, d1..dn].
        dtype: of its elements.
    """
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        extents = own_extents(x)
        source = T.arg("x", T.buffer(extents, dtype))
        padded = T.arg("padded", T.buffer(padded_shape(window, kernel, extents), "float32"))
        places = window.place(extents[2:], kernel)
        with T.sblock("root"):
            with ExitStack() as loops:
                place = [loops.enter_context(T.serial(0, extent)) for extent in padded.ty.shape]
                T.buffer_store(padded, tirx.const(0.0, "float32"), place)
            with ExitStack() as loops:
                place = [loops.enter_context(T.serial(0, extent)) for extent in extents]
                moved = [at + before for at, (before, _) in zip(place[2:], places, strict=True)]
                T.buffer_store(padded, source[tuple(place)].astype("float32"), [*place[:2], *moved])
    return builder.get()


def table_function(window: Window, kernel: Sequence[int], x: Sequence[Any], lanes: int) -> Any:
    """The PrimFunc (x, tables) of a convolution: tables of its channels, zeros around them.

    Args:
        window: of the convolution; no table mixes channels of different groups.
        kernel: its spatial extents.
        x: float32[batch, channels, d1..dn].
        lanes: entries of a table.
    """
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        extents = own_extents(x)
        source = T.arg("x", T.buffer(extents, "float32"))
        shape = table_shape(window, kernel, extents, lanes)
        tables = T.arg("tables", T.buffer(shape, "float32"))
        channels, codes = extents[1] // window.groups, shape[1] // window.groups
        places = window.place(extents[2:], kernel)
        every = vector_of(lanes)
        with T.sblock("root"), ExitStack() as loops:
            image, group = (
                loops.enter_context(T.serial(0, extent)) for extent in (extents[0], window.groups)
            )
            for first, count, inputs in table_parts(channels, lanes):
                with ExitStack() as inner:
                    index, *at = [
                        inner.enter_context(T.serial(0, extent)) for extent in (count, *shape[2:-1])
                    ]
                    code = first + index
                    channel = group * channels + code * group_of(lanes)
                    place = [each - ahead for each, (ahead, _) in zip(at, places, strict=True)]
                    target = [image, group * codes + code, *at, every]
                    inside = tirx.all(
                        *(
                            tirx.all(each >= 0, each < extent)
                            for each, extent in zip(place, extents[2:], strict=True)
                        )
                    )
                    with T.If(inside):
                        with T.Then():
                            values = [source[(image, channel + j, *place)] for j in range(inputs)]
                            T.buffer_store(tables, table(values, lanes), target)
                        with T.Else():
                            zeros = T.broadcast(tirx.const(0.0, "float32"), lanes)
                            T.buffer_store(tables, zeros, target)
    return builder.get()


def table_parts(inputs: int, lanes: int) -> list[tuple[int, int, int]]:
    """(first code, codes, inputs of each) of whole tables, and of the last one if it is not."""
    whole, rest = divmod(inputs, group_of(lanes))
    parts = [(0, whole, group_of(lanes)), (whole, 1, rest)]
    return [part for part in parts if part[1] and part[2]]


def table(values: Sequence[Any], lanes: int) -> Any:
    """A vector of the sums that a code can name, half of them; the other half are the negatives.

    Bit j of an entry's number tells whether input j is added, or else taken off. The last of
    log2(lanes) + 1 inputs is added; inputs that are not there are zero.
    """
    last = group_of(lanes) - 1
    total: Any = T.broadcast(tirx.const(0.0, "float32"), lanes)
    for j, value in enumerate(values):
        signs = [1.0 if j == last or (entry >> j) & 1 else -1.0 for entry in range(lanes)]
        constants = [tirx.const(sign, "float32") for sign in signs]
        total = total + T.broadcast(value, lanes) * tirx.Shuffle(constants, list(range(lanes)))
    return total


def table_shape(window: Window, kernel: Sequence[int], x: Sequence[Any], lanes: int) -> list[Any]:
    """The extents of the tables: [batch, codes of all groups, d1..dn with the padding, lanes]."""
    batch, channels, *spatial = padded_shape(window, kernel, x)
    codes = window.groups * codes_of(int(channels) // window.groups, lanes)
    return [batch, codes, *spatial, lanes]


def codes_of(inputs: int, lanes: int) -> int:
    """How many tables serve so many inputs."""
    return -(-inputs // group_of(lanes))


def group_of(lanes: int) -> int:
    """Inputs of a table: half of their signed sums fill a vector."""
    return lanes.bit_length()


def any_padding(window: Window) -> bool:
    """Whether a convolution sees zeros around its input."""
    return window.auto_pad not in ("NOTSET", "VALID") or any(window.pads)


def padded_shape(window: Window, kernel: Sequence[int], x: Sequence[Any]) -> list[Any]:
    """The extents of the padded activation: what the results reach, and no less than the image."""
    spatial = []
    for extent, reach, stride, (before, result) in zip(
        x[2:], window.reach(kernel), window.strides, window.place(list(x[2:]), kernel), strict=True
    ):
        spatial.append(tirx.max((result - 1) * stride + reach, extent + before))
    return [*x[:2], *spatial]
