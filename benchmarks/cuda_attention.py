"""Checks the attention kernel against float64, and times it beside PyTorch's in the same run.

Building needs tbn-compile and a CUDA compiler but no GPU; running needs a GPU, PyTorch, tvm-ffi and
TVM's runtime libraries.

    python benchmarks/cuda_attention.py build FOLDER
    python benchmarks/cuda_attention.py run FOLDER --runtime TVM_LIBRARIES [--only TEXT]

Inputs are fresh random numbers, the output is poisoned, and a call must give the same bits twice. A
time is the median over replays of a CUDA graph of twenty calls; PyTorch reads the same views.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuda_kernels import command_line, median_us

TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}
"""Largest ‖y − reference‖ / ‖reference‖."""


@dataclass(frozen=True)
class Case:
    """Attention of `queries` to as many keys of the same projection, or to others.

    Attributes:
        fused: from [batch, queries, 3, heads, size]; else queries from [queries, batch, heads,
            size], and keys and values from [keys, batch, 2, heads, size].
    """

    batch: int
    heads: int
    queries: int
    keys: int
    size: int
    dtype: str
    fused: bool = True
    mask: str = "none"
    dynamic: bool = False
    timed: bool = False

    @property
    def name(self) -> str:
        """For a row of the table."""
        length = f"{self.queries}" if self.queries == self.keys else f"{self.queries}×{self.keys}"
        marks = [self.dtype, *([] if self.mask == "none" else [f"{self.mask} mask"])]
        marks += ["dynamic"] if self.dynamic else []
        marks += [] if self.fused else ["cross"]
        return f"{self.batch}×{self.heads}×{length}×{self.size} {' '.join(marks)}"


TIMED = tuple(
    Case(batch, heads, tokens, tokens, size, dtype, timed=True)
    for dtype in ("float16", "float32")
    for batch, heads, tokens, size in (
        *((1, 16, 65, 64), (64, 16, 65, 64), (1, 12, 197, 64), (64, 12, 197, 64)),
        *((1, 16, 1024, 64), (8, 16, 1024, 64), (8, 16, 1024, 128)),
    )
)
CHECKED = (
    *(Case(2, 3, 65, 65, 64, dtype, mask="full") for dtype in TOLERANCE),
    *(Case(40, 4, 130, 130, 32, dtype, mask="causal", dynamic=True) for dtype in TOLERANCE),
    *(Case(2, 3, 50, 50, 48, dtype, dynamic=True) for dtype in TOLERANCE),
    *(Case(2, 5, 33, 70, 20, dtype, fused=False, mask="keys") for dtype in TOLERANCE),
    *(Case(3, 2, 17, 1, 7, dtype, fused=False) for dtype in TOLERANCE),
    *(Case(2, 2, 100, 300, 256, dtype, fused=False) for dtype in TOLERANCE),
    *(Case(60, 2, 100, 100, 256, dtype) for dtype in TOLERANCE),
    *(Case(60, 2, 100, 100, 128, dtype, mask="keys") for dtype in TOLERANCE),
    *(Case(4, 8, 500, 77, 40, dtype, fused=False, dynamic=True) for dtype in TOLERANCE),
)


def build(folder: Path) -> None:
    """Write one library with a function for each case, and what its parameters are."""
    import tvm  # noqa: PLC0415

    from tbn_compile.targets.cuda.compilation import machine_code  # noqa: PLC0415
    from tbn_compile.targets.cuda.fuse_attention import FuseAttention  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    functions, parameters = {}, {}
    for index, case in enumerate((*CHECKED, *TIMED)):
        function = tvm.transform.Sequential([FuseAttention()])(module_of(case))["attention"]
        functions[f"f{index}"] = function.with_attr("global_symbol", f"f{index}")
        parameters[case.name] = [f"f{index}", *(each.name for each in function.params)]
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_90"}, host="llvm")
    path = folder / "attention.so"
    with machine_code(["90"]) as label:
        tvm.compile(tvm.IRModule(functions), target=target).export_library(str(path))
        path.write_bytes(label(path.read_bytes()))
    (folder / "attention.json").write_text(json.dumps(parameters))


def module_of(case: Case) -> Any:
    """Relax of a case, as exporters write it."""
    from tvm import relax, tirx  # noqa: PLC0415

    op, heads, size = relax.op, case.heads, case.size
    b, t, s = case.batch, case.queries, case.keys
    if case.dynamic:
        b, t = (tirx.Var(name, "int64") for name in ("b", "t"))
        s = t if case.fused else tirx.Var("s", "int64")
    shapes = {"x": [b, t, 3 * heads * size]}
    if not case.fused:
        shapes = {"x": [t, b, heads * size], "y": [s, b, 2, heads * size]}
    masks = {"full": [b, heads, t, s], "causal": [t, s], "keys": [b, 1, 1, s]}
    if case.mask != "none":
        shapes["mask"] = masks[case.mask]
    inputs = [
        relax.Var(name, relax.TensorType(shape, case.dtype)) for name, shape in shapes.items()
    ]
    builder = relax.BlockBuilder()
    with builder.function("main", inputs):
        with builder.dataflow():
            if case.fused:
                parts = op.permute_dims(
                    op.reshape(inputs[0], [b, t, 3, heads, size]), [2, 0, 3, 1, 4]
                )
                cut = [op.strided_slice(parts, [0], [i], [i + 1]) for i in range(3)]
                query, key, value = (op.squeeze(each, [0]) for each in cut)
            else:
                query = op.permute_dims(op.reshape(inputs[0], [t, b, heads, size]), [1, 2, 0, 3])
                cut = [op.take(inputs[1], relax.const(i, "int64"), axis=2) for i in range(2)]
                key, value = (
                    op.permute_dims(op.reshape(each, [s, b, heads, size]), [1, 2, 0, 3])
                    for each in cut
                )
            scores = op.matmul(query, op.permute_dims(key, [0, 1, 3, 2]))
            scores = op.multiply(scores, relax.const(size**-0.5, case.dtype))
            if case.mask != "none":
                scores = op.add(scores, inputs[-1])
            result = builder.emit(op.matmul(op.nn.softmax(scores), value))
            output = builder.emit_output(op.permute_dims(result, [0, 2, 1, 3]))
        builder.emit_func_output(output)
    return builder.get()


def run(folder: Path, only: str) -> list[dict[str, Any]]:
    """Check every case, time some, and print a table."""
    import torch  # noqa: PLC0415
    import tvm_ffi  # noqa: PLC0415

    library = tvm_ffi.load_module(str(folder / "attention.so"))
    parameters = json.loads((folder / "attention.json").read_text())
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__)
    print("| batch×heads×tokens×size | PyTorch, µs | ours | speed-up | TFLOP/s | error |")
    print("|---|---|---|---|---|---|")
    rows = []
    for case in (*CHECKED, *TIMED):
        if only in case.name:
            symbol, *names = parameters[case.name]
            rows.append(_measure(torch, case, library[symbol], names))
            print(_line(case, rows[-1]), flush=True)
    return rows


def _measure(torch: Any, case: Case, function: Any, names: Sequence[str]) -> dict[str, Any]:
    inputs, query, key, value, mask = _operands(torch, case)
    shape = (case.batch, case.queries, case.heads, case.size)
    output = torch.full(shape, float("nan"), device="cuda", dtype=query.dtype)
    known = {"b": case.batch, "t": case.queries, "s": case.keys}
    arguments = [*inputs, *(known[name] for name in names if name in known)]
    function(*arguments, output)
    again = torch.full_like(output, float("nan"))
    function(*arguments, again)
    scores = (
        query.double()
        @ key.double().transpose(-1, -2)
        * float(torch.tensor(case.size**-0.5, dtype=query.dtype))
    )
    scores = scores if mask is None else scores + mask.double()
    reference = (scores.softmax(-1) @ value.double()).transpose(1, 2)
    error = float((output.double() - reference).norm() / reference.norm())
    same = torch.equal(output, again)
    row: dict[str, Any] = {"case": case.name, "error": error if same else float("inf")}
    row["right"] = row["error"] < TOLERANCE[case.dtype]
    if not case.timed:
        return row

    attend = torch.nn.functional.scaled_dot_product_attention
    row["ours_us"] = median_us(torch, [lambda: function(*arguments, output)])
    with torch.inference_mode():
        row["torch_us"] = median_us(torch, [lambda: attend(query, key, value)])
    row["flops"] = 4 * case.batch * case.heads * case.queries * case.keys * case.size
    return row


def _operands(torch: Any, case: Case) -> tuple[list[Any], Any, Any, Any, Any]:
    """What the function takes, and query, key, value and mask as views of it."""
    kind = getattr(torch, case.dtype)

    def random(*shape: int) -> Any:
        return torch.randn(*shape, device="cuda").to(kind)

    b, h, t, s, d = case.batch, case.heads, case.queries, case.keys, case.size
    if case.fused:
        x = random(b, t, 3 * h * d)
        inputs = [x, x, x]
        query, key, value = x.view(b, t, 3, h, d).permute(2, 0, 3, 1, 4).unbind(0)
    else:
        x, y = random(t, b, h * d), random(s, b, 2, h * d)
        inputs = [x, y, y]
        query = x.view(t, b, h, d).permute(1, 2, 0, 3)
        key, value = y.view(s, b, 2, h, d).permute(2, 1, 3, 0, 4).unbind(0)
    if case.mask == "none":
        return inputs, query, key, value, None
    lowest = torch.finfo(kind).min
    mask = {
        "full": lambda: random(b, h, t, s),
        "causal": lambda: torch.full((t, s), float("-inf"), device="cuda").triu(1).to(kind),
        "keys": lambda: (torch.rand(b, 1, 1, s, device="cuda") < 0.9).to(kind) * lowest,
    }[case.mask]()
    return [*inputs, mask], query, key, value, mask


def _line(case: Case, row: dict[str, Any]) -> str:
    verdict = f"{row['error']:.1e}{'' if row['right'] else ' WRONG'}"
    if not case.timed:
        return f"| {case.name} | | | | | {verdict} |"
    ours, theirs = row["ours_us"], row["torch_us"]
    rate = row["flops"] / ours / 1e6
    times = f"{theirs:.1f} | {ours:.1f} | {theirs / ours:.2f}×"
    return f"| {case.name} | {times} | {rate:.0f} | {verdict} |"


if __name__ == "__main__":
    command_line("The attention kernel beside PyTorch's", build, run)
