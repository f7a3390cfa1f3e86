"""What all tools share: options, exit statuses, one-line errors, output and progress."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from tbn_compile import __version__
from tbn_compile.errors import TbnError, UsageError, clean

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tbn_compile.pipeline import ProgressCallback

DONE, FAILED, BAD_INPUT, INTERRUPTED, CLOSED_PIPE = 0, 1, 2, 130, 141
"""Exit statuses: success, a failed validation, bad usage or input, Ctrl-C, a reader that left."""
_STDERR = 2

_PIPED_WIDTH, _LEAST_WIDTH = 140, 80
_LARGEST_EXTENT = 2**31 - 1
_SECONDS_BETWEEN_REFRESHES = 0.1


def _print_version(context: typer.Context, asked: bool) -> None:
    if asked:
        sys.stdout.write(f"{context.info_name} {__version__}\n")
        raise typer.Exit


InputDims = Annotated[
    list[str] | None,
    typer.Option("--input-dim", metavar="NAME=VALUE", help="Extent of a symbolic dimension."),
]
Board = Annotated[
    str | None,
    typer.Option("--board", metavar="NAME|FILE.toml", help="Board to emulate."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the trace of an error.")]
Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
]


class ToolCommand(TyperCommand):
    """A command that returns its exit status and reports every error as one line on stderr."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *_: Any,
        **__: Any,
    ) -> NoReturn:
        """Parse, run and leave the process with the exit status."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal may lack the arrows of our tables
        # ONNX Runtime's wheels send events about models to their maker unless told otherwise.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        # Libraries log names from the model as they are; only our own cleaned lines are shown.
        logging.getLogger().addHandler(logging.NullHandler())
        arguments = list(sys.argv[1:] if args is None else args)
        if "--verbose" not in arguments:
            _silence_native_code()
        sys.exit(self._status(self.name or prog_name or "", arguments))

    def _status(self, name: str, arguments: list[str]) -> int:
        try:
            try:
                with self.make_context(name, list(arguments)) as context:
                    status: int = self.invoke(context)
            except typer.Exit as done:
                status = done.exit_code
            sys.stdout.flush()
        except (KeyboardInterrupt, typer.Abort):
            return INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CLOSED_PIPE
        except Exception as error:  # noqa: BLE001  # no error may reach the user as a trace
            if "--verbose" in arguments:
                _print_trace()
            sys.stderr.write(f"{name}: error: {_line(error)}\n")
            return BAD_INPUT
        return status


def _silence_native_code() -> None:
    """Keep what libraries print from C++ off the terminal; this process's own errors stay."""
    try:
        is_plain = sys.stderr.fileno() == _STDERR
    except (AttributeError, OSError, ValueError):  # captured by a test, or closed
        return
    if not is_plain:
        return
    sys.stderr = os.fdopen(os.dup(_STDERR), "w", buffering=1, errors="backslashreplace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDERR)


def _print_trace() -> None:
    for line in traceback.format_exc().splitlines():
        sys.stderr.write(f"{clean(line)}\n")


def _line(error: Exception) -> str:
    if isinstance(error, TbnError):
        return str(error)
    usage_problem = getattr(error, "format_message", None)  # Typer's, about the arguments
    if usage_problem is not None:
        return clean(usage_problem())
    if isinstance(error, OSError) and error.strerror:
        where = f": {clean(error.filename, 200)}" if error.filename else ""
        return f"{error.strerror}{where}"
    first = (str(error).splitlines() or [""])[0]
    return clean(f"{type(error).__name__}: {first}", 300) + "; see where with --verbose"


def parse_input_dims(options: Sequence[str] | None) -> dict[str, int]:
    """Read `NAME=VALUE` options.

    Raises:
        UsageError: if one has another form, or a name comes twice.
    """
    extents: dict[str, int] = {}
    for option in options or ():
        name, _, digits = option.rpartition("=")
        number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 11 else 0
        if not name or not 1 <= number <= _LARGEST_EXTENT:
            raise UsageError(
                f"--input-dim {clean(option, 80)!r} is not NAME=VALUE with a value of 1 to "
                f"{_LARGEST_EXTENT}"
            )
        if name in extents:
            raise UsageError(f"--input-dim gives {clean(name, 40)!r} twice")
        extents[name] = number
    return extents


def refuse_overwriting(output: Path | None, *others: Path) -> None:
    """Keep a side file from replacing a file of the same run.

    Raises:
        UsageError: if `output` is one of the others.
    """
    if output is not None and output.resolve() in [other.resolve() for other in others]:
        raise UsageError(f"{clean(output, 200)} would replace the model; choose another file")


def write_text(output: Path, text: str) -> None:
    """Write a side file, whole or not at all.

    Raises:
        ModelError: if it cannot be written.
    """
    from tbn_compile.files import staging_folder  # noqa: PLC0415

    with staging_folder(output) as staging:
        (staging / output.name).write_text(text, encoding="utf-8")


def json_text(data: dict[str, Any]) -> str:
    """Indented ASCII JSON with a final newline: safe for a terminal whatever the names hold."""
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def print_json(data: dict[str, Any]) -> None:
    """Print a report as JSON on stdout."""
    sys.stdout.write(json_text(data))


def print_report(table: RenderableType, lines: Sequence[str]) -> None:
    """Print a table and lines below it on stdout."""
    from rich.console import Console  # noqa: PLC0415  # `--json` has no use for it

    class _Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    console = _Output(markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    console.width = max(console.width, _LEAST_WIDTH)
    console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True)


@contextmanager
def progress_bar() -> Generator[ProgressCallback | None]:
    """A bar on stderr, if that is a terminal; it is drawn by the callback, never by a thread."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("load", total=None)
        drawn = 0.0

        def report(phase: str, done: int, total: int) -> None:
            nonlocal drawn
            bar.update(task, description=phase, completed=done, total=total)
            if time.monotonic() - drawn > _SECONDS_BETWEEN_REFRESHES:
                drawn = time.monotonic()
                bar.refresh()

        yield report
