"""The tables of docs/results.md: rows of text, of which the first is the head."""

from collections.abc import Iterator

from logged import VARIANTS, Artifact, Network, Variant
from matplotlib.ticker import EngFormatter
from scales import SCALES, SCORING

NOTHING = "–"
WORSE = "worse than float by"

GOALS = {"resnet18": 1.0, "vit": 1.0, "mixer": 1.5, "forecast_load": 5.0, "forecast_weather": 5.0}
"""By recipe, the most that p = 4 may lose, in the unit of its task."""

LIBRARIES = {"ort": "ONNX Runtime", "llvm": "llvm", "cuda": "cuda"}
"""Targets whose artifacts are loaded by a process; the others are programs in C."""

Row = tuple[str, ...]

size = EngFormatter(unit="B", places=1)
count = EngFormatter(places=1, sep=" ")


def overview(networks: list[Network]) -> Iterator[Row]:
    """What p = 4 costs and gives."""
    yield (
        "network", "metric", "float", "p = 4", WORSE, "allowed", "weights smaller", "work less",
    )  # fmt: skip
    for network in networks:
        first = SCORING[network.recipe.task].metrics[0]
        yield (
            network.recipe.title,
            SCALES[first].title,
            score(network, "float", first),
            score(network, "p4", first),
            loss(network, "p4"),
            verdict(network),
            *savings(network.variants.get("p4")),
        )


def variants(networks: list[Network]) -> Iterator[Row]:
    """Every variant of networks of one task."""
    metrics = SCORING[networks[0].recipe.task].metrics
    yield (
        "network", "weights", *(SCALES[metric].title for metric in metrics), WORSE,
        "bits per weight", "stored", "smaller", "multiply-adds", "less", "epochs", "seeds",
    )  # fmt: skip
    for network in networks:
        for name in VARIANTS:
            yield (
                network.recipe.title if name == "float" else "",
                VARIANTS[name],
                *(score(network, name, metric) for metric in metrics),
                loss(network, name),
                *costs(network.variants.get(name)),
            )


def libraries(networks: list[Network]) -> Iterator[Row]:
    """Compiled networks of p = 4, but for programs in C."""
    yield "network", "target", "samples", "metric", "before", "compiled", "file", "of float"
    for network in networks:
        tiled, plain = network.artifacts_of("p4"), network.artifacts_of("float")
        for target in [name for name in LIBRARIES if name in tiled]:
            yield (
                network.recipe.title,
                LIBRARIES[target],
                *comparison(network, tiled[target]),
                file_size(tiled, target),
                file_size(plain, target),
            )


def programs(networks: list[Network]) -> Iterator[Row]:
    """Programs in C, of every variant."""
    yield (
        "network", "weights", "board", "samples", "metric", "before", "compiled",
        "flash", "RAM", "instructions",
    )  # fmt: skip
    for network in networks:
        for name in network.variants:
            artifacts = network.artifacts_of(name)
            for board in sorted(artifacts.keys() - LIBRARIES.keys()):
                artifact = artifacts[board]
                yield (
                    network.recipe.title,
                    VARIANTS[name],
                    "this machine" if board == "c" else board,
                    *comparison(network, artifact),
                    *needs(artifact),
                )


def largest_change(networks: list[Network]) -> str:
    """How far compiling moved the first metric of any network at most."""
    largest: dict[str, float] = {}
    for network in networks:
        scoring = SCORING[network.recipe.task]
        first = scoring.metrics[0]
        for artifact in network.all_artifacts():
            change = abs(scoring.loss(artifact.metrics[first], artifact.expected[first]))
            largest[scoring.unit] = max(change, largest.get(scoring.unit, 0.0))
    return " and ".join(f"{change:.2f} {unit}" for unit, change in largest.items()) or NOTHING


def score(network: Network, name: str, metric: str) -> str:
    """The mean over the seeds, with the deviation if there are several."""
    if name not in network.variants:
        return NOTHING
    variant, scale = network.variants[name], SCALES[metric]
    text = scale.show(variant.mean(metric))
    if len(variant.runs) == 1:
        return text
    return f"{text} ± {scale.show(variant.deviation(metric))}"


def loss(network: Network, name: str) -> str:
    """How far a variant falls behind the float network."""
    value = _loss(network, name)
    return NOTHING if value is None else f"{value:.2f} {SCORING[network.recipe.task].unit}"


def verdict(network: Network) -> str:
    """What p = 4 may lose, and whether it keeps to that."""
    goal, value = GOALS.get(network.recipe.name), _loss(network, "p4")
    if goal is None:
        return ""
    told = f"{goal} {SCORING[network.recipe.task].unit}"
    if value is None:
        return told
    return f"{told}: {'met' if round(value, 6) <= goal else '**missed**'}"


def _loss(network: Network, name: str) -> float | None:
    scoring = SCORING[network.recipe.task]
    if name == "float" or not {"float", name} <= network.variants.keys():
        return None
    value, baseline = (network.variants[each].mean(scoring.metrics[0]) for each in (name, "float"))
    return scoring.loss(value, baseline)


def savings(variant: Variant | None) -> Row:
    """How much smaller the weights are, and how much less is computed."""
    if variant is None:
        return NOTHING, NOTHING
    summary = variant.summary
    return (
        f"{summary.original_bytes / summary.stored_bytes:.3g}×",
        f"{summary.dense_multiply_adds / summary.multiply_adds:.3g}×",
    )


def costs(variant: Variant | None) -> Row:
    """Bits, bytes, multiply-adds, epochs and seeds."""
    if variant is None:
        return (NOTHING,) * 7
    summary = variant.summary
    smaller, less = savings(variant)
    return (
        f"{summary.bits_per_weight:.3g}",
        size(summary.stored_bytes),
        smaller,
        count(summary.multiply_adds),
        less,
        str(summary.epochs),
        str(len(variant.runs)),
    )


def comparison(network: Network, artifact: Artifact) -> Row:
    """Samples, the metric's name, and its value before and after compiling."""
    first = SCORING[network.recipe.task].metrics[0]
    scale = SCALES[first]
    return (
        f"{artifact.samples:,}",
        scale.title,
        scale.show(artifact.expected[first]),
        scale.show(artifact.metrics[first]),
    )


def file_size(artifacts: dict[str, Artifact], target: str) -> str:
    """Bytes of the compiled file, if there is one."""
    return size(artifacts[target].artifact_bytes) if target in artifacts else NOTHING


def needs(artifact: Artifact) -> Row:
    """Flash, RAM with the stack, and instructions on a board."""
    board = artifact.board
    if board is None:
        return (NOTHING,) * 3
    return (
        size(board.flash_bytes),
        size(board.ram_bytes + board.stack_bytes),
        count(board.instructions),
    )
