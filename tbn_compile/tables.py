"""Reports as tables for people, and as CSV. All names are untrusted text and are cleaned here."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from tbn_compile.errors import clean
from tbn_compile.reports import LayerReport, ModelReport

if TYPE_CHECKING:
    from tbn_compile.benchmarking import BenchmarkReport
    from tbn_compile.targets.mcu.benchmarking import BoardReport
    from tbn_compile.validation import Comparison, ValidationReport

_LONGEST_NAME = 60
_PREFIXES = ("", "k", "M", "G", "T", "P")
_WORDS = ("Layer", "Weight", "Outcome", "Output", "Model", "Program")
_LIBRARY = {"stock": "without", "library": "with"}
_CONTENDERS = {
    "original": "original, dense",
    "library": "tiled, with library",
    "stock": "tiled, without library",
    "llvm": "tiled, compiled for this CPU",
    "cuda": "tiled, compiled for this GPU",
}


def layers_table(report: ModelReport) -> Table:
    """One row per layer: what became of it, or why it was left alone."""
    table = _table("Layer", "Weight", "p", "Bits per weight", "Bytes", "Multiply adds", "Outcome")
    for layer in report.layers:
        lowered = layer.status == "lowered"
        table.add_row(
            _cell(f"{clean(layer.name, _LONGEST_NAME)} ({layer.operator})"),
            _cell(_weight(layer)),
            _cell(f"{layer.tiles:g}" if layer.tiles is not None else ""),
            _cell(f"{layer.bits_per_weight:.3g}" if layer.shape else ""),
            _cell(_change(layer.original_bytes, layer.stored_bytes, "B")),
            _cell(_change(layer.dense_multiply_adds, layer.multiply_adds)),
            Text(_outcome(layer), style="" if lowered else "yellow", overflow="fold"),
        )
    return table


def summary_lines(report: ModelReport) -> list[str]:
    """Totals, file sizes and the seconds of each phase."""
    layers, lowered = report.layers, report.lowered
    if not layers:
        lines = [f"{clean(report.model, _LONGEST_NAME)}: no Gemm, MatMul or Conv"]
    else:
        smaller = _ratio(
            sum(layer.original_bytes for layer in layers),
            sum(layer.stored_bytes for layer in layers),
        )
        less_work = _ratio(
            sum(layer.dense_multiply_adds for layer in layers),
            sum(layer.multiply_adds for layer in layers),
        )
        lines = [
            f"{len(lowered)} of {len(layers)} layers lowered: weights {smaller} smaller, "
            f"{less_work} less work"
        ]
    if report.artifact is not None and report.artifact_bytes is not None:
        before, after = report.original_file_bytes, report.artifact_bytes
        lines.append(
            f"{clean(report.model, _LONGEST_NAME)} {quantity(before, 'B')} → "
            f"{clean(report.artifact, _LONGEST_NAME)} {quantity(after, 'B')} "
            f"({_ratio(max(before, after), min(before, after))} "
            f"{'smaller' if after <= before else 'larger'})"
        )
    lines += report.details_lines
    phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report.phases.items())
    return [*lines, f"Time: {phases}"] if phases else lines


def layers_csv(report: ModelReport) -> str:
    """One line per layer with the fields of `LayerReport` and the bits per weight.

    Text that a spreadsheet would take for a formula is led by an apostrophe.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    fields = [field.name for field in dataclasses.fields(LayerReport)]
    writer.writerow([*fields, "bits_per_weight"])
    for layer in report.layers:
        values = [*(getattr(layer, name) for name in fields), f"{layer.bits_per_weight:.6g}"]
        writer.writerow([_csv_value(value) for value in values])
    return buffer.getvalue()


def validation_table(report: ValidationReport) -> Table:
    """One row per output and runtime."""
    with_library = all(output.runtime in _LIBRARY for output in report.outputs)
    place = "Library" if with_library else "Runs on"
    table = _table(
        "Output", place, "Max abs", "Of largest", "Max rel", "Max ULP", "Cosine", "Limit",
        "Verdict",
    )  # fmt: skip
    for output in report.outputs:
        table.add_row(
            _cell(output.tensor),
            _cell(_LIBRARY.get(output.runtime, output.runtime)),
            _cell(f"{output.max_absolute:.1e}"),
            _cell(f"{output.max_to_largest:.1e}"),
            _cell(f"{output.max_relative:.1e}"),
            _cell("" if output.max_ulp is None else f"{output.max_ulp:,}"),
            _cell(f"{output.cosine:.6f}"),
            _cell(f"{output.tolerance:g}"),
            Text("ok", style="green") if output.passed else Text("FAILED", style="bold red"),
        )
    return table


def validation_lines(report: ValidationReport) -> list[str]:
    """The verdict, and where a failed artifact first differs."""
    lines: list[str] = []
    for output in report.outputs:
        told = f"{clean(output.tensor, _LONGEST_NAME)}, {_runtime(output)}"
        if output.mismatch is not None:
            lines.append(f"{told}: {clean(output.mismatch)}")
        if output.non_finite_mismatches:
            lines.append(f"{told}: {output.non_finite_mismatches} elements not finite in one only")
    if report.first_divergence is not None:
        lines.append(f"First tensor that differs: {clean(report.first_divergence)}")
    if report.search_problem is not None:
        lines.append(f"No search for the first tensor that differs: {clean(report.search_problem)}")
    verdict = "passed" if report.passed else "failed"
    given = "given inputs" if report.seed is None else f"{report.input_sets} random input sets"
    return [*lines, f"Validation {verdict} on {given}"]


def benchmark_table(report: BenchmarkReport) -> Table:
    """One row per contender."""
    table = _table("Model", "p5", "p50", "p95", "Speed-up")
    for timing in report.timings:
        table.add_row(
            _cell(_CONTENDERS[timing.name]),
            *(_cell(_duration(seconds)) for seconds in (timing.p5, timing.p50, timing.p95)),
            _cell(f"{timing.speedup:.3g}×"),
        )
    return table


def benchmark_lines(report: BenchmarkReport) -> list[str]:
    """How it was measured, and the files' sizes."""
    threads = "1 thread" if report.threads == 1 else f"{report.threads} threads"
    return [
        f"{report.rounds} rounds in turns, {threads}",
        f"{clean(report.model, _LONGEST_NAME)} {quantity(report.original_bytes, 'B')}, "
        f"{clean(report.artifact, _LONGEST_NAME)} {quantity(report.artifact_bytes, 'B')} "
        f"({_ratio(report.original_bytes, report.artifact_bytes)} smaller)",
    ]


def operators_table(report: BoardReport) -> Table:
    """One row per operator of the tiled program, and one for what calls them."""
    table = _table("Layer", "Instructions", "Loads", "Stores", "Code, B", "Workspace, B")
    tiled = report.programs[0]
    for operator in tiled.operators:
        figures = (
            *dataclasses.astuple(operator.counts), operator.code_bytes, operator.workspace_bytes,
        )  # fmt: skip
        table.add_row(_cell(operator.layer), *(_cell(f"{figure:,}") for figure in figures))
    executor = dataclasses.astuple(tiled.executor)
    table.add_row(_cell("executor"), *(_cell(f"{figure:,}") for figure in executor))
    return table


def programs_table(report: BoardReport) -> Table:
    """One row per program: work of an inference, flash and RAM by section."""
    table = _table(
        "Program", "Instructions", "Loads", "Stores", "Code, B", "Constants, B", "Data, B",
        "Zeroed data, B", "Input and output, B", "Stack, B",
    )  # fmt: skip
    for program in report.programs:
        figures = (
            *dataclasses.astuple(program.counts), *dataclasses.astuple(program.sections),
            program.stack_bytes,
        )  # fmt: skip
        table.add_row(_cell(program.name), *(_cell(f"{figure:,}") for figure in figures))
    return table


def board_lines(report: BoardReport) -> list[str]:
    """Where it ran, the totals, and how many times fewer instructions the tiles need."""
    tiled, *others = report.programs
    lines = [
        f"{clean(report.model, _LONGEST_NAME)} on {clean(report.board, _LONGEST_NAME)}: "
        f"flash {tiled.sections.flash:,} B, static RAM {tiled.sections.ram:,} B"
    ]
    for other in others:
        fewer = _ratio(other.counts.instructions, tiled.counts.instructions)
        smaller = _ratio(other.sections.flash, tiled.sections.flash)
        lines.append(f"Against {other.name}: {fewer} fewer instructions, {smaller} less flash")
    if report.dense_problem is not None:
        lines.append(f"No dense program: {clean(report.dense_problem)}")
    return lines


def quantity(amount: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: 407264 B is "407 kB"."""
    power = 0
    while amount >= 999.5 and power < len(_PREFIXES) - 1:
        amount, power = amount / 1000, power + 1
    number = f"{amount:.3g}"
    return f"{number} {_PREFIXES[power]}{unit}".rstrip()


def _table(*headings: str) -> Table:
    """A table whose columns all wrap, so that a narrow terminal cuts nothing off."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in headings:
        table.add_column(
            heading,
            overflow="fold",
            min_width=max(len(word) for word in heading.split()),
            justify="left" if heading in _WORDS else "right",
        )
    return table


def _runtime(output: Comparison) -> str:
    if output.runtime in _LIBRARY:
        return f"{_LIBRARY[output.runtime]} library"
    return f"on {clean(output.runtime, _LONGEST_NAME)}"


def _cell(text: str) -> Text:
    return Text(clean(text, _LONGEST_NAME + 40), overflow="fold")


def _weight(layer: LayerReport) -> str:
    if not layer.shape:
        return "not constant"
    return f"{'×'.join(str(extent) for extent in layer.shape)} {layer.dtype}"


def _outcome(layer: LayerReport) -> str:
    if layer.reason is not None:
        return f"left alone: {clean(layer.reason)}"
    reuse = "no reuse" if layer.plan == "expand" else f"reuse of {layer.plan}"
    return f"{reuse}, a scale per {layer.scaling}"


def _change(before: int, after: int, unit: str = "") -> str:
    if before == after:
        return quantity(before, unit)
    return f"{quantity(before, unit)} → {quantity(after, unit)}"


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.3g}×" if after else "1×"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds) or seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def _csv_value(value: object) -> object:
    if isinstance(value, tuple):
        return "x".join(str(part) for part in value)
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
