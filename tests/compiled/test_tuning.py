"""Schedules by search: what is searched, kept and used again, and which files are refused."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import psutil
import pytest
from helpers.graphs import GraphBuilder
from helpers.weights import tiled_array
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule

from tbn_compile import CompileOptions, UsageError, compile_model
from tbn_compile.targets import Tuning
from tbn_compile.targets.compiled import cuda_device, tuning
from tbn_compile.targets.compiled.tuning import check_tuning, tuning_lines
from tbn_compile.targets.compiled.tuning_file import check_steps, read_tuning

TRIALS = 2


def compiled(model, folder, file=None, trials=0, tracker=None, **options):
    """The artifact's bytes."""
    asked = Tuning(file, trials, tracker) if file is not None else None
    output = folder / "model.so"
    compile_model(model, "llvm", output, CompileOptions(tuning=asked, **options))
    return output.read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiled layer, a dense one and a Softmax, all of fixed extents."""
    graph = GraphBuilder()
    x = graph.input("x", [8, 32])
    tiled = graph.weight("w", tiled_array((64, 32), 32 * 16, 0.25))
    hidden = graph.node("Gemm", [x, tiled], transB=1)
    dense = graph.weight("d", np.random.default_rng(0).standard_normal((64, 16)).astype("float32"))
    graph.node("Softmax", [graph.node("MatMul", [hidden, dense])], "y")
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(graph.model("y", rank=2), path)
    return path


@pytest.fixture(scope="module")
def tuned(model, tmp_path_factory):
    """What one search left: its file and its artifact."""
    folder = tmp_path_factory.mktemp("tuned")
    artifact = compiled(model, folder, folder / "found.json", TRIALS)
    return SimpleNamespace(file=folder / "found.json", artifact=artifact)


def test_a_search_measures_all_but_tiled_layers(tuned):
    content = read_tuning(tuned.file)
    assert sorted(each.name for each in content.schedules) == ["matmul", "softmax"]
    (search,) = content.searches
    assert (search.functions, search.scheduled, search.variants) == (2, 2, TRIALS)
    assert search.failed == 0, search.first_failure


def test_later_compilations_use_what_was_found(model, tuned, tmp_path):
    before = tuned.file.read_bytes()
    assert compiled(model, tmp_path, tuned.file) == tuned.artifact
    assert compiled(model, tmp_path) != tuned.artifact
    assert tuned.file.read_bytes() == before


def test_the_terminal_is_told(tuned):
    first, *more = tuning_lines(Tuning(tuned.file, TRIALS))
    assert first.startswith(
        f"Tuned 2 of 2 functions by {TRIALS} variants, ranked by the cost model"
    )
    assert not more
    assert tuning_lines(Tuning(tuned.file)) == tuning_lines(None) == ()


def test_failed_measurements_are_told(tuned, tmp_path):
    content = json.loads(tuned.file.read_text())
    content["searches"][-1] |= {"failed": 3, "first_failure": "out of registers"}
    (tmp_path / "found.json").write_text(json.dumps(content))
    assert tuning_lines(Tuning(tmp_path / "found.json", TRIALS))[1] == (
        "3 variants failed, the first with: out of registers"
    )


def test_no_worker_is_left(tuned):
    assert tuned.artifact
    workers = [each.cmdline() for each in psutil.Process().children(recursive=True)]
    assert not [line for line in workers if "tvm.exec.popen_worker" in line]


@derived_object
class BrokenBuilder(meta_schedule.builder.PyBuilder):
    def build(self, variants):
        message = "Traceback:\n  too long\nlinker: no space left\n"
        return [meta_schedule.builder.BuilderResult(None, message) for _ in variants]


def test_a_search_that_measures_nothing_says_why(model, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "_builder", lambda _: BrokenBuilder())
    with pytest.raises(UsageError, match="no variant could be measured: linker: no space left;"):
        compiled(model, tmp_path, tmp_path / "found.json", 2)
    assert not list(tmp_path.iterdir())


def test_the_faster_of_two_schedules_stays(tuned):
    content = read_tuning(tuned.file)
    slow, other = content.schedules
    fast = type(slow)(slow.function, slow.target, slow.name, slow.seconds / 2, slow.steps)
    merged = content.with_search(content.searches[0], [fast])
    assert sorted(merged.schedules, key=str) == sorted([fast, other], key=str)
    assert content.with_search(content.searches[0], [other]).schedules_for(other.target) == (
        content.schedules_for(other.target)
    )
    assert len(merged.searches) == 2


def test_another_processor_needs_its_own_search(model, tuned, tmp_path):
    with pytest.raises(UsageError, match=r"found\.json has no schedule for this model and proc"):
        compiled(model, tmp_path, tuned.file, cpu="x86-64")


def test_schedules_of_something_else_are_refused(model, tuned, tmp_path):
    content = json.loads(tuned.file.read_text())
    for each in content["schedules"]:
        each["steps"] = [[["GetSBlock", [], ["elsewhere", "main"], ["b0"]]], []]
    (tmp_path / "found.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"the schedule of \w+ does not suit it; tune to a new"):
        compiled(model, tmp_path, tmp_path / "found.json")


def test_symbolic_extents_are_not_searched(tmp_path):
    text = '<ir_version: 9, opset_import: ["" : 18]> g (float[n, 4] x) => (float[n, 4] y) '
    onnx.save(onnx.parser.parse_model(text + "{ y = Softmax(x) }"), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r"nothing to tune.* --input-dim"):
        compiled(tmp_path / "model.onnx", tmp_path, tmp_path / "found.json", 2)


FOREIGN = {
    "empty": "",
    "text": "no JSON",
    "list": "[]",
    "deep": "[" * 100_000,
    "another format": '{"schedules": []}',
    "binary": "\0\1",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_foreign_files_are_refused(content, tmp_path):
    (tmp_path / "found.json").write_text(content)
    with pytest.raises(UsageError, match=r"^found\.json is no tuning file; name another"):
        check_tuning(Tuning(tmp_path / "found.json"))


def test_files_of_another_tvm_are_refused(tmp_path):
    (tmp_path / "found.json").write_text('{"format": 1, "tvm": "0.1\\u001b"}')
    with pytest.raises(UsageError, match=r"made with TVM 0\.1\?, this is .*; tune to a new file"):
        check_tuning(Tuning(tmp_path / "found.json"))


EMPTY = {"format": 1, "tvm": version("apache-tvm"), "schedules": [], "searches": []}
BLOCK = ["GetSBlock", [], ["matmul", "main"], ["b0"]]
LOOPS = ["GetLoops", ["b0"], [], ["l1", "l2"]]
TILE = ["SamplePerfectTile", ["l1"], [2, 64], ["v3", "v4"]]
DAMAGED = {
    "no lists": None,
    "unknown step": [[["UnsafeHideBufferAccess", [], [], []]], []],
    "unknown block": [[["GetLoops", ["b0"], [], ["l1"]]], []],
    "unknown block in a list": [[BLOCK, ["CacheRead", ["b0", ["b9"]], [0, "local"], ["b1"]]], []],
    "loop for a block": [[BLOCK, LOOPS, ["GetLoops", ["l1"], [], ["l3"]]], []],
    "no loop": [[BLOCK, ["Vectorize", [None], [], []]], []],
    "number for a loop": [[BLOCK, ["Vectorize", [0], [], []]], []],
    "code": [[BLOCK, ["Annotate", ["b0", "int f;"], ["pragma_import_c"], []]], []],
    "large number": [[BLOCK, LOOPS, ["Split", ["l1", 2**40, 1], [1, 0], ["l3", "l4"]]], []],
    "infinite": [[BLOCK, ["Annotate", ["b0", math.inf], ["meta_schedule.x"], []]], []],
    "decision of nothing": [[BLOCK], [[1, 0]]],
    "decision before": [[BLOCK, LOOPS, TILE], [[-1, [4, 8]]]],
    "no tile": [[BLOCK, LOOPS, TILE], [[2, [4, 0]]]],
    "tile of another rank": [[BLOCK, LOOPS, TILE], [[2, [4, 8, 1]]]],
    "huge tile": [[BLOCK, LOOPS, TILE], [[2, [2**30, 2**30]]]],
}


@pytest.mark.parametrize("steps", DAMAGED.values(), ids=DAMAGED)
def test_steps_that_no_search_makes_are_refused(steps, tmp_path):
    found = {"function": "0", "target": "{}", "name": "f", "seconds": 1.0, "steps": steps}
    (tmp_path / "found.json").write_text(json.dumps(EMPTY | {"schedules": [found]}))
    with pytest.raises(UsageError, match=r"^found\.json is damaged; tune to a new file$"):
        check_tuning(Tuning(tmp_path / "found.json"))


def test_steps_of_a_search_are_taken():
    check_steps([[BLOCK, LOOPS, TILE], [[2, [4, 8]]]])


def test_what_cannot_run_is_refused_before_the_work(tmp_path, monkeypatch):
    file = tmp_path / "found.json"
    with pytest.raises(UsageError, match=r"no tuning file found\.json; --tune TRIALS makes one"):
        check_tuning(Tuning(file))
    with pytest.raises(UsageError, match="1 trial or more"):
        check_tuning(Tuning(file, -1))
    with pytest.raises(UsageError, match=r"no folder for the tuning file found\.json; make it"):
        check_tuning(Tuning(tmp_path / "none" / "found.json", 1))
    file.write_text(json.dumps(EMPTY))
    with pytest.raises(UsageError, match="--rpc-tracker is for a search; give --tune TRIALS too"):
        check_tuning(Tuning(file, 0, "host:1/key"))
    for tracker in ("here", "host:1", "host:123456/key", "host:1/a b"):
        with pytest.raises(UsageError, match="HOST:PORT/KEY, not"):
            check_tuning(Tuning(file, 1, tracker))
    with pytest.raises(UsageError, match=r"no RPC tracker answers at 127\.0\.0\.1:1; start one"):
        check_tuning(Tuning(file, 1, "127.0.0.1:1/key"))
    monkeypatch.setattr(cuda_device, "find_gpu", lambda: None)
    with pytest.raises(UsageError, match=r"on a machine that has one, or .* --rpc-tracker"):
        check_tuning(Tuning(file, 1), gpu=True)


@pytest.fixture
def tracker():
    """A tracker and a device on this machine, as HOST:PORT/KEY."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    at = ["--host", "127.0.0.1"]
    commands = (
        ["rpc_tracker", *at, "--port", str(port), "--port-end", str(port + 1)],
        ["rpc_server", *at, "--tracker", f"127.0.0.1:{port}", "--key", "here"],
    )
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", f"tvm.exec.{name}", *options],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name, *options in commands
    ]
    yield f"127.0.0.1:{port}/here"
    for program in programs:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def wait_for_device(tracker, file):
    for _ in range(60):
        try:
            check_tuning(Tuning(file, 1, tracker))
        except UsageError:
            time.sleep(1)
        else:
            return
    raise TimeoutError(tracker)


@pytest.mark.slow
def test_a_remote_device_measures(model, tracker, tmp_path):
    file = tmp_path / "found.json"
    wait_for_device(tracker, file)
    with pytest.raises(UsageError, match="knows no device there; start one there with"):
        check_tuning(Tuning(file, 1, tracker.replace("/here", "/there")))
    compiled(model, tmp_path, file, TRIALS, tracker)
    (search,) = read_tuning(file).searches
    assert (search.scheduled, search.failed) == (2, 0), search.first_failure
