"""Write docs/results.md and its plots from the logs of finished runs.

python examples/training/results.py
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tables
import typer
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from logged import LogError, Network, read_logs
from plots import save_plots
from recipe import RecipeError
from scales import SCORING

HERE = Path(__file__).parent
LOGS = HERE / "logs"
DOCS = HERE.parents[1] / "docs"


def render(networks: list[Network]) -> str:
    """The page: the prose of results.md.jinja and the tables."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 -- Markdown
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    by_task = {
        task: [network for network in networks if network.recipe.task == task] for task in SCORING
    }
    return environment.get_template("results.md.jinja").render(
        overview=markdown(tables.overview(networks)),
        tasks={task: markdown(tables.variants(some)) for task, some in by_task.items() if some},
        libraries=markdown(tables.libraries(networks)),
        programs=markdown(tables.programs(networks)),
        largest_change=tables.largest_change(networks),
    )


def markdown(rows: Iterator[tables.Row]) -> str:
    """A table in Markdown."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ("---",) * len(head), *body])


def main(
    logs: Annotated[Path, typer.Option(help="folder of RECIPE/VARIANT/seedN")] = LOGS,
    docs: Annotated[Path, typer.Option(help="where results.md and results/ go")] = DOCS,
) -> None:
    """Write results.md and its plots."""
    networks = read_logs(logs)
    if not networks:
        raise LogError(f"{logs}: no RECIPE/VARIANT/seedN of a finished run; train.py makes them")
    (docs / "results").mkdir(parents=True, exist_ok=True)
    save_plots(networks, docs / "results")
    (docs / "results.md").write_text(render(networks), encoding="utf-8")


if __name__ == "__main__":
    try:
        typer.run(main)
    except (LogError, RecipeError) as error:
        sys.exit(f"results.py: {error}")
