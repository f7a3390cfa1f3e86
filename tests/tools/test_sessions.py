import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tbn_compile import ModelError, UsageError, operators, sessions

KINDS = {"float": "f4", "double": "f8", "float16": "f2", "int64": "i8", "uint8": "u1", "bool": "?"}


@pytest.fixture
def model(save_text):
    inputs = ", ".join(f"{kind}[n, 5] {kind}" for kind in KINDS)
    outputs = ", ".join(f"{kind}[n, 5] {kind}_out" for kind in KINDS)
    nodes = " ".join(f"{kind}_out = Identity({kind})" for kind in KINDS)
    path = save_text("kinds.onnx", f"g ({inputs}) => ({outputs}) {{ {nodes} }}")
    return sessions.check_model(path)


def test_random_inputs_fit_and_run(model):
    feeds = sessions.random_inputs(model, 0, {"n": 400})
    assert {name: array.dtype for name, array in feeds.items()} == {
        kind: np.dtype(code) for kind, code in KINDS.items()
    }
    assert {array.shape for array in feeds.values()} == {(400, 5)}
    for kind in ("int64", "uint8", "bool"):
        assert set(feeds[kind].reshape(-1).tolist()) == {0, 1}
    assert abs(float(feeds["float"].mean())) < 0.1
    assert float(feeds["float"].std()) == pytest.approx(1, abs=0.1)
    outputs = sessions.Session(model).run(feeds)
    np.testing.assert_array_equal(outputs["float16_out"], feeds["float16"])


def test_random_inputs_depend_on_the_seed_alone(model):
    first, again, other = (sessions.random_inputs(model, seed, {})["float"] for seed in (1, 1, 2))
    assert first.shape == (1, 5)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("string[2] x", "input 'x' is STRING"),
        ("bfloat16[2] x", "input 'x' is BFLOAT16"),
        ("seq(float[2]) x", "no tensor of known rank"),
        ("float[2147483647, 8192] x", "too large; at most"),
    ],
)
def test_inputs_that_cannot_be_made_up(save_text, declared, message):
    output = declared.replace(" x", " y")
    path = save_text("odd.onnx", f"g ({declared}) => ({output}) {{ y = Identity(x) }}")
    with pytest.raises(ModelError, match=message):
        sessions.random_inputs(sessions.check_model(path), 0, {})


def test_inputs_with_a_default_are_left_to_it(save_text):
    path = save_text("default.onnx", "g (float[2] x) => (float[2] y) { y = Add(x, w) }")
    proto = onnx.load(path)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    proto.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [2], [1, 2]))
    onnx.save(proto, path)
    model = sessions.check_model(path)
    assert model.input_names == ["x"]
    outputs = sessions.Session(model).run({"x": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(outputs["y"], [1, 2])


@pytest.fixture
def one_input(save_text):
    path = save_text("one.onnx", "g (float[2] x) => (float[2] y) { y = Relu(x) }")
    return sessions.check_model(path)


def test_reads_inputs(one_input, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones(2, np.float32))
    np.testing.assert_array_equal(
        sessions.read_inputs(one_input, tmp_path / "x.npz")["x"], np.ones(2, np.float32)
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds none; the inputs are x"),
        ({"z": np.ones(2, np.float32)}, "holds z; the inputs are x"),
        ({"x": np.ones(2, np.float32), "z": np.ones(2)}, "holds x, z; the inputs are x"),
        ({"x": np.ones(2)}, "'x' is float64, not float32"),
        ({"x": np.array([None, {}])}, "cannot be read as an .npz file of numbers"),
    ],
)
def test_inputs_that_do_not_fit(one_input, tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        sessions.read_inputs(one_input, tmp_path / "x.npz")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4" + bytes(40), None, "npy"], ids=repr)
def test_files_of_inputs_that_cannot_be_read(one_input, tmp_path, content):
    path = tmp_path / "x.npz"
    if content == "npy":
        with path.open("wb") as file:
            np.save(file, np.ones(2))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.npz: cannot be read"):
        sessions.read_inputs(one_input, path)


@pytest.fixture
def save_tiled(tmp_path):
    """Write a chain of Gemms on one tile of 8 signs."""

    def save(nodes, side, scales=1, scale_length=8):
        attributes = {"weight_shape": [side, side], "tile_length": 8, "scale_length": scale_length}
        chain = [
            helper.make_node(
                operators.GEMM, [f"v{index}", "tile", "scale"], [f"v{index + 1}"],
                domain=operators.DOMAIN, **attributes,
            )
            for index in range(nodes)
        ]  # fmt: skip
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, side])
            for name in ("v0", f"v{nodes}")
        ]
        tensors = [
            helper.make_tensor("tile", TensorProto.UINT8, [1], [0x5A]),
            helper.make_tensor("scale", TensorProto.FLOAT, [scales], [1.0] * scales),
        ]
        graph = helper.make_graph(chain, "g", values[:1], values[1:], tensors)
        imports = [helper.make_opsetid("", 18), helper.make_opsetid(operators.DOMAIN, 1)]
        onnx.save(
            helper.make_model(graph, opset_imports=imports, ir_version=9),
            tmp_path / "tiled.onnx",
        )
        return sessions.check_model(tmp_path / "tiled.onnx")

    return save


def test_expanded_weights_are_counted(save_tiled):
    one, two = (sessions.expanded_bytes(save_tiled(count, 100).graph) for count in (1, 2))
    assert two - one == 4 * 100 * 100, "each dense weight stays"
    assert 4 * 4 * 100 * 100 <= one <= 6 * 4 * 100 * 100, "the steps of one body come on top"


def test_a_cycle_of_scales_is_counted(save_tiled):
    model = save_tiled(1, 100, scales=1000, scale_length=10_000)
    assert sessions.expanded_bytes(model.graph) > 4 * 1000 * 10_000


def test_a_stock_runtime_is_not_given_more_than_the_memory(save_tiled, invoke):
    model = save_tiled(2000, 65_536)
    with pytest.raises(ModelError, match="more than the machine's"):
        sessions.Session(model)
    done = invoke("validate", model.path, model.path)
    assert done.exit_code == 2
    assert "without our library, more than the machine's" in done.stderr


def test_what_onnx_runtime_says_reaches_the_error_without_its_codes(one_input):
    with pytest.raises(ModelError, match=r"^one\.onnx: ONNX Runtime cannot run it: Got invalid"):
        sessions.Session(one_input).run({"x": np.ones(3, np.float32)})
