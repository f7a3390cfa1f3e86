"""Accuracy of an exported network on the 10 000 test images, through ONNX Runtime."""

from pathlib import Path
from typing import Annotated

import dataset
import numpy as np
import onnxruntime
import typer
from numpy.typing import NDArray

BATCH = 1_000


def predict(
    model: Path, images: NDArray[np.float32], library: Path | None = None
) -> NDArray[np.int64]:
    """Predicted class of each image; `library` holds custom operators to register."""
    options = onnxruntime.SessionOptions()
    if library is not None:
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (network_input,) = session.get_inputs()
    classes = [
        session.run(None, {network_input.name: batch.reshape(-1, *network_input.shape[1:])})[0]
        for batch in np.split(images, range(BATCH, len(images), BATCH))
    ]
    return np.concatenate(classes).argmax(1)


def main(
    model: Annotated[Path, typer.Argument(help="ONNX file to evaluate")],
    library: Annotated[Path | None, typer.Option(help="custom-operator library")] = None,
    compare: Annotated[Path | None, typer.Option(help="second ONNX file")] = None,
) -> None:
    """Print the accuracy of MODEL; with --compare, whether every predicted class is equal."""
    images, labels = dataset.load("test")
    classes = predict(model, images, library)
    print(f"{model.name}: accuracy {np.mean(classes == labels):.2%} on {len(labels)} images")
    if compare is None:
        return
    differing = int(np.sum(classes != predict(compare, images, library)))
    if differing:
        print(f"{compare.name}: a different class on {differing} of {len(labels)} images")
        raise typer.Exit(1)
    print(f"{compare.name}: the same class on all {len(labels)} images")


if __name__ == "__main__":
    typer.run(main)
