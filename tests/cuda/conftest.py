"""Tests marked `gpu` run kernels and need a GPU of compute capability 9.0."""

import pytest
import tvm


def pytest_collection_modifyitems(items):
    if tvm.cuda(0).exist:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
