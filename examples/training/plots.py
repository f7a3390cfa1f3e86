"""The plots of docs/results.md: the same logs give the same bytes."""

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import matplotlib as mpl
from logged import VARIANTS, Network
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from scales import SCORING

COLUMNS = 4
BITS = {32: "32", 1: "1", 1 / 4: "1/4", 1 / 16: "1/16"}

PAPER = {
    "resnet18": {32: 93.1, 0.258: 93.1, 0.134: 92.0, 0.072: 91.2},
    "mixer": {32: 81.25, 0.344: 81.45, 0.235: 80.21, 0.180: 78.8},
}
"""By recipe, the paper's accuracy on CIFAR-10 in % by bits per weight: float, p = 4, 8 and 16."""


def save_plots(networks: list[Network], folder: Path) -> None:
    """Write accuracy.svg and history.svg."""
    images = [network for network in networks if "fashion_mnist" in network.recipe.dataset]
    with mpl.rc_context({"svg.hashsalt": "tbn-compile", "svg.fonttype": "none"}):
        _save(draw_grid(images, draw_accuracy, sharey=True), folder / "accuracy.svg")
        _save(draw_grid(networks, draw_history, sharey=False), folder / "history.svg")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})


def draw_grid(
    networks: list[Network], draw: Callable[[Axes, Network], None], *, sharey: bool
) -> Figure:
    """One small plot for each network, and one legend."""
    rows = max(1, -(-len(networks) // COLUMNS))
    figure = Figure(figsize=(3 * COLUMNS, 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, sharey=sharey, squeeze=False)
    for axes, network in zip_longest(grid.flat, networks):
        if network is None:
            axes.set_visible(False)
            continue
        axes.set_title(network.recipe.title, fontsize=10)
        axes.grid(alpha=0.3)
        draw(axes, network)
    lines = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=max(1, len(lines)))
    return figure


def draw_accuracy(axes: Axes, network: Network) -> None:
    """Accuracy against bits per weight, with the paper's for the same architecture."""
    variants = network.variants.values()
    bits = [variant.summary.bits_per_weight for variant in variants]
    accuracy = [100 * variant.mean("accuracy") for variant in variants]
    axes.plot(bits, accuracy, "o-", label="here, on Fashion-MNIST")
    if network.recipe.name in PAPER:
        points = PAPER[network.recipe.name]
        label = "in the paper, on CIFAR-10"
        axes.plot([*points], [*points.values()], "s--", color="gray", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks([*BITS], [*BITS.values()])
    axes.set_xlabel("bits per weight")
    axes.set_ylabel("accuracy, %")


def draw_history(axes: Axes, network: Network) -> None:
    """The error on test samples over the epochs, of the first seed of each variant."""
    scoring = SCORING[network.recipe.task]
    for name, variant in network.variants.items():
        rows = variant.runs[0].history
        epochs = [row["epoch"] for row in rows]
        errors = [scoring.error(row[scoring.metrics[0]]) for row in rows]
        color = f"C{[*VARIANTS].index(name)}"
        axes.plot(epochs, errors, color=color, label=VARIANTS[name], linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(4))  # few of these axes span a power of ten
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("epochs")
    axes.set_ylabel(scoring.error_title)
