"""Whatever a tensor is called, its C identifier is valid and its own."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbn_compile.targets.mcu.compiler.identifiers import identifiers


@pytest.mark.parametrize(
    "name, expected",
    [
        ("input", "input"),
        ("input.1", "input_1"),
        ("onnx::Gemm_0", "onnx__Gemm_0"),
        ("0", "tensor_0"),
        ("", "tensor"),
        ("int", "tensor_int"),
        ("while", "tensor_while"),
        ("class", "tensor_class"),
        ("workspace", "tensor_workspace"),
        ("static_cast", "tensor_static_cast"),
        ("linux", "tensor_linux"),
        ("INPUT", "tensor_INPUT"),
        ("X", "X"),
        ("*/ int x; /*", "int_x"),
        ("a\nb", "a_b"),
        ("😀", "tensor"),
        ("été", "t"),
    ],
)
def test_an_awkward_name(name, expected):
    assert identifiers([name]) == [expected]


def test_names_that_become_equal_get_numbers():
    assert identifiers(["a.b", "a b", "A_b", "a_b_2"]) == ["a_b", "a_b_2", "A_b_3", "a_b_2_2"]


def test_a_long_name_is_cut():
    first, second = identifiers(["x" * 10_000, "x" * 10_001])

    assert len(first) == 40
    assert second == f"{first}_2"


@given(st.lists(st.text(max_size=60), max_size=8))
def test_any_names_give_valid_distinct_identifiers(names):
    found = identifiers(names)

    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", each) for each in found)
    assert len({each.upper() for each in found}) == len(names)
