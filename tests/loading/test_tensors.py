"""Tensors whose claims do not hold, and data outside the model's folder."""

import logging
import os

import numpy as np
import onnx
import pytest
from helpers.graphs import compile_proto
from onnx import helper, numpy_helper


@pytest.mark.parametrize(
    "dims",
    [
        [2**60, 64],
        [2**31, 2**31],
        [-1, 64],
        [2**62, 2**62],
        [0, 2**60],
        [32, 65],
        [31, 64],
        [2048],
        [],
    ],
)
def test_dimensions(model, refuse_model, dims):
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    refuse_model(model, "shapes contradict" if dims == [2048] else "tensor 'w'")


def test_contradictions_are_told_whatever_the_logging(model, refuse_model):
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.append(2048)
        refuse_model(model, "shapes contradict")
    finally:
        logger.setLevel(level)


@pytest.mark.parametrize("where", ["input", "output", "value_info"])
def test_huge_dimensions_of_values(model, refuse_model, where):
    values = getattr(model.graph, where)
    values.append(
        helper.make_tensor_value_info("v" if where == "value_info" else "x2", 1, [2**60, 4])
    )
    refuse_model(model, "has a dimension of 1152921504606846976")


@pytest.mark.parametrize("length", [0, 1, 8191, 8193, 20000])
def test_raw_data_of_another_length(model, refuse_model, length):
    model.graph.initializer[0].raw_data = bytes(length)
    refuse_model(model, f"stores {length} values or bytes where 8192 are needed")


def test_values_in_the_wrong_field(model, refuse_model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.int64_data.extend([1] * 2048)
    refuse_model(model, "stores 0 values or bytes where 2048 are needed")


@pytest.mark.parametrize("kind", [0, 99, -1])
def test_unknown_types(model, refuse_model, kind):
    model.graph.initializer[0].data_type = kind
    refuse_model(model, "has no known type")


def test_tensors_in_attributes_are_checked(model, refuse_model):
    bad = numpy_helper.from_array(np.zeros(4, np.float32), "t")
    bad.dims[0] = 2**60
    node = helper.make_node("Constant", [], ["unused"], value=bad)
    model.graph.node.insert(0, node)
    refuse_model(model, "tensor 't' claims shape")


def test_tensors_in_branches_are_checked(model, refuse_model):
    bad = numpy_helper.from_array(np.zeros(4, np.float32), "t")
    bad.dims[0] = 5
    graph = helper.make_graph(
        [helper.make_node("Identity", ["t"], ["o"])],
        "g",
        [],
        [helper.make_tensor_value_info("o", 1, [5])],
        [bad],
    )
    model.graph.input.append(helper.make_tensor_value_info("c", 9, []))
    model.graph.node.append(
        helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph)
    )
    refuse_model(model, "tensor 't' of shape [5] stores 16")


def test_sparse_tensors_are_refused(model, refuse_model):
    values = numpy_helper.from_array(np.ones(2, np.float32), "s")
    indices = numpy_helper.from_array(np.array([0, 1]), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**60]))
    refuse_model(model, "tensor 's' is sparse; store it dense")


# --- external data -------------------------------------------------------------------------------


@pytest.fixture
def external(model, tmp_path):
    """Move the weight to `weights.bin`; returns a function that sets the entries."""
    tensor = model.graph.initializer[0]
    content = tensor.raw_data
    (tmp_path / "weights.bin").write_bytes(content)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL

    def entries(**changes):
        del tensor.external_data[:]
        values = {"location": "weights.bin", "offset": "0", "length": str(len(content)), **changes}
        for key, value in values.items():
            if value is not None:
                tensor.external_data.add(key=key, value=value)
        return model

    return entries


def test_good_external_data_loads(external, tmp_path):
    assert len(compile_proto(external(), tmp_path).tiled) == 1
    assert len(compile_proto(external(offset=None, length=None), tmp_path).tiled) == 1


@pytest.mark.parametrize(
    "location",
    [
        "../weights.bin",
        "a/../weights.bin",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a/../../weights.bin",
        "./../x",
    ],
)
def test_traversal(external, refuse_model, location, tmp_path):
    (tmp_path.parent / "weights.bin").write_bytes(bytes(8192))
    refuse_model(external(location=location), "external data")


def test_no_location(external, refuse_model):
    refuse_model(external(location=None), "leaves the folder")


@pytest.mark.parametrize(
    "location", ["missing.bin", "folder", "pipe", "x" * 5000, "weights.bin/x", "a\\..\\b"]
)
def test_what_is_no_file(external, refuse_model, location, tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    refuse_model(external(location=location), "tensor 'w': external data")


def test_a_null_byte(external, refuse_model):
    refuse_model(external(location="weights.bin\0.txt"), "external data")


def test_links(external, refuse_model, tmp_path):
    outside = tmp_path.parent / "outside.bin"
    outside.write_bytes(bytes(8192))
    (tmp_path / "link.bin").symlink_to(outside)
    refuse_model(external(location="link.bin"), "'link.bin' is a link")
    (tmp_path / "inner.bin").symlink_to(tmp_path / "weights.bin")
    refuse_model(external(location="inner.bin"), "is a link")
    (tmp_path / "folder").symlink_to(tmp_path.parent, target_is_directory=True)
    refuse_model(external(location="folder/outside.bin"), "is a link")
    os.link(outside, tmp_path / "hard.bin")
    refuse_model(external(location="hard.bin"), "'hard.bin' is a hard link")


def test_a_model_folder_that_is_a_link_is_fine(external, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "weights.bin").rename(tmp_path / "real" / "weights.bin")
    (tmp_path / "alias").symlink_to(tmp_path / "real", target_is_directory=True)
    assert len(compile_proto(external(), tmp_path / "alias").tiled) == 1


@pytest.mark.parametrize(
    "offset", ["-1", "1", "8192", "1e3", "0x10", "", " 1", "٣", str(2**63), "9" * 19, "9" * 400]
)
def test_offsets(external, refuse_model, offset):
    refuse_model(external(offset=offset), "tensor 'w': external data")


@pytest.mark.parametrize("length", ["-1", "0", "8191", "8193", "4096", str(2**64), "nan"])
def test_lengths(external, refuse_model, length):
    refuse_model(external(length=length), "tensor 'w': external data")


def test_two_locations(external, refuse_model):
    model = external()
    model.graph.initializer[0].external_data.add(key="location", value="other.bin")
    refuse_model(model, "says two things at once")


def test_a_short_file(external, refuse_model, tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(8191))
    refuse_model(external(), "does not fit a file of 8191 bytes")


@pytest.mark.parametrize("where", ["attribute", "branch", "function"])
def test_external_data_is_checked_everywhere(model, refuse_model, where):
    bad = onnx.TensorProto(name="t", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    bad.external_data.add(key="location", value="../secret")
    constant = helper.make_node("Constant", [], ["o"], value=bad)
    info = helper.make_tensor_value_info("o", 1, [4])
    if where == "attribute":
        model.graph.node.append(constant)
    elif where == "branch":
        graph = helper.make_graph([constant], "g", [], [info])
        model.graph.input.append(helper.make_tensor_value_info("c", 9, []))
        model.graph.node.append(
            helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph)
        )
    else:
        imports = [helper.make_opsetid("", 18)]
        model.functions.append(helper.make_function("f", "F", [], ["o"], [constant], imports))
        model.opset_import.append(helper.make_opsetid("f", 1))
    refuse_model(model, "tensor 't': external data '../secret' leaves the folder")


def test_the_data_of_another_tensor_may_be_shared(external, tmp_path):
    """Two tensors on one range: tied weights, as exporters write them."""
    model = external()
    copy = model.graph.initializer.add()
    copy.CopyFrom(model.graph.initializer[0])
    copy.name = "w2"
    model.graph.node.append(helper.make_node("Gemm", ["x", "w2"], ["z"], transB=1))
    model.graph.output.append(helper.make_tensor_value_info("z", 1, [5, 32]))
    compiled = compile_proto(model, tmp_path)
    assert len(compiled.tiled) == 2
