import json
import tempfile

import pytest

from tbn_compile import UsageError, benchmark_model, benchmarking, compile_model


def test_compares_a_model_with_its_artifact(mlp, invoke, tmp_path):
    artifact = tmp_path / "out.onnx"
    compile_model(mlp, output=artifact)
    done = invoke("benchmark", mlp, artifact, "--runs", "4", "--json", "--stock")
    assert (done.exit_code, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report.keys() == {
        "schema_version", "model", "artifact", "original_bytes", "artifact_bytes", "threads",
        "rounds", "timings",
    }  # fmt: skip
    assert (report["schema_version"], report["threads"], report["rounds"]) == (1, 1, 4)
    assert report["original_bytes"] == mlp.stat().st_size
    assert report["artifact_bytes"] == artifact.stat().st_size
    assert [timing["name"] for timing in report["timings"]] == ["original", "library", "stock"]
    for timing in report["timings"]:
        assert timing.keys() == {"name", "p5", "p50", "p95", "speedup"}
        assert 0 < timing["p5"] <= timing["p50"] <= timing["p95"]
    assert report["timings"][0]["speedup"] == 1


def test_compiles_into_a_folder_that_goes_away(mlp, run_tool, tmp_path):
    (tmp_path / "scratch").mkdir()
    done = run_tool("benchmark", mlp, "--runs", "2", TMPDIR=str(tmp_path / "scratch"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "tiled, with library" in done.stdout
    assert "tiled, without library" not in done.stdout
    assert "2 rounds in turns, 1 thread\n" in done.stdout
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not mlp.with_name("model.tbn.onnx").exists()


def test_contenders_run_in_turns_and_are_paired(mlp, monkeypatch):
    order = []
    clock = {"original": [4.0, 40.0, 400.0], "library": [1.0, 20.0, 50.0]}

    class Session:
        def __init__(self, name):
            self.name = name

        def run_raw(self, feeds):
            order.append(self.name)

    def seconds_of(run):
        run()
        return clock[order[-1]].pop(0)

    sessions = [Session("original"), Session("library")]
    monkeypatch.setattr(benchmarking, "Session", lambda *_, **__: sessions.pop(0))
    monkeypatch.setattr(benchmarking, "_seconds_of", seconds_of)
    report = benchmark_model(mlp, runs=3)
    assert order == ["original", "library"] * (len(order) // 2)
    assert len(order) > 6, "there is a warm-up"
    assert report.timings[1].p50 == 20
    assert report.timings[1].speedup == 4, "the median of 4, 2 and 8"


def test_no_round_starts_after_the_time(mlp):
    assert benchmark_model(mlp, runs=1000, seconds=1e-9).rounds == 1


def test_progress(mlp):
    seen = []
    benchmark_model(mlp, runs=3, progress=lambda *step: seen.append(step))
    assert seen == [("benchmark", 1, 3), ("benchmark", 2, 3), ("benchmark", 3, 3)]


def test_input_dims_reach_the_artifact(mlp, monkeypatch):
    feeds = []
    run_raw = benchmarking.Session.run_raw
    monkeypatch.setattr(
        benchmarking.Session, "run_raw", lambda self, x: (feeds.append(x), run_raw(self, x))[1]
    )
    benchmark_model(mlp, runs=1, input_dims={"batch": 7})
    assert {x["x"].shape for x in feeds} == {(7, 32)}


@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"runs": 0}, {"seconds": 0.0}, {"seconds": float("nan")}]
)
def test_options_without_a_meaning(mlp, options):
    with pytest.raises(UsageError, match="must be 1 or more"):
        benchmark_model(mlp, **options)


@pytest.mark.parametrize("option", [("--threads", "0"), ("--runs", "0"), ("--seconds", "-1")])
def test_bad_usage(mlp, invoke, option):
    done = invoke("benchmark", mlp, *option)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("tbn-benchmark: error: ")


def test_without_the_library(mlp, invoke, monkeypatch):
    def missing():
        raise UsageError("libtbn_ort.so is not installed")

    monkeypatch.setattr(benchmarking, "get_library_path", missing)
    done = invoke("benchmark", mlp)
    assert done.exit_code == 2
    assert done.stderr == "tbn-benchmark: error: libtbn_ort.so is not installed\n"


def test_a_failed_run_leaves_no_temporary_folder(mlp, invoke, monkeypatch, tmp_path):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    mlp.write_bytes(b"damaged")
    assert invoke("benchmark", mlp).exit_code == 2
    assert list((tmp_path / "scratch").iterdir()) == []
