"""Fashion-MNIST as numpy arrays, read from Debian's package `dataset-fashion-mnist`."""

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path("/usr/share/datasets/fashion-mnist")
PREFIXES = {"train": "train", "test": "t10k"}


def load(split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images [count, 1, 28, 28] in 0..1 and labels [count] in 0..9 of "train" or "test".

    Raises:
        FileNotFoundError: the Debian package is not installed.
        ValueError: a file is not an IDX file of bytes.
    """
    images, labels = load_bytes(split)
    return np.divide(images, 255, dtype=np.float32), labels


def load_bytes(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Like `load`, with the images as they are stored, in 0..255."""
    prefix = PREFIXES[split]
    pixels = read_idx(FOLDER / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(FOLDER / f"{prefix}-labels-idx1-ubyte.gz")
    return pixels[:, np.newaxis], labels.astype(np.int64)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Array of bytes from a gzipped IDX file.

    Layout: two zero bytes, type code 8, the rank, then each dimension as big-endian uint32.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing; install it with: apt-get install dataset-fashion-mnist"
        )
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
