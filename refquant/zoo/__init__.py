"""Floor 4: small trained networks and their data, embedded.

Three networks for Fashion-MNIST, each trained by PyTorch on its full training split, last epoch kept, the test split
never used for selection: `mlp` (784-256-128-10), `cnn` (two 5x5 convolutions, two Gemm), `resnet` (residual blocks,
a depthwise convolution, batch norms).  Their arrays are part of refquant and under its licence.  `train.py` trains
networks of the same graphs again, in NumPy.

Fashion-MNIST (28 x 28 grey images of clothes, 10 classes; Xiao, Rasul and Vollgraf 2017, MIT licence): the first
1,024 images of the training split, for calibration, and the test split, as idx files that `make_data.py` made.
"""

import gzip
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, FileError, complaint
from ..net.files import read_network
from ..net.graph import Graph
from .idx import parse_idx

__all__ = ["DATASETS", "NETWORKS", "Data", "Split", "load_data", "load_network"]

NETWORKS = ("mlp", "cnn", "resnet")
DATASETS = ("fashion-mnist",)

_DATA = Path(str(files(__name__) / "data"))


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their classes: x of shape (N, 1, 28, 28), uint8; y of shape (N,), int64, or None. Both read-only."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64] | None


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: `calibration` and `test` splits, the text of its licence, SHA-256 sums of its idx files.

    The calibration images belong to the split that the embedded networks were trained on; the test images do not.
    sha256: by file name, of the files uncompressed; those of the test split are the published files, bit for bit.
    """

    calibration: Split
    test: Split
    licence: str
    sha256: Mapping[str, str]


def load_network(name: str | os.PathLike[str]) -> Graph:
    """The embedded network of this name (`mlp`, `cnn`, `resnet`), or the one in a file.

    name: one of the names, or a path to a .json file beside its .npz (see `refquant.net.files`).

    Raises ArgumentError for anything else, FileError for a file that does not hold a sound network.

    >>> load_network("mlp").shapes["gemm3"]
    (10,)
    """
    text = os.fspath(name)
    if text in NETWORKS:
        return read_network(_DATA / f"{text}.json")
    if not text.endswith(".json"):
        should = f"one of {', '.join(NETWORKS)}, or a path to a .json file"
        raise ArgumentError(complaint(f"name={text!r}", should, "load_network"))
    return read_network(Path(text))


@cache
def load_data(name: str) -> Data:
    """The embedded data set of this name, `fashion-mnist`: 1,024 calibration and 10,000 test images with classes.

    The calibration set is the first 1,024 images of the training split, in order.  Arrays are read-only; a second
    call gives the same object.

    Raises ArgumentError for an unknown name, FileError if the installed files are not what they were.

    >>> data = load_data("fashion-mnist")
    >>> data.calibration.x.shape, data.test.x.shape, data.test.y[:4].tolist()
    ((1024, 1, 28, 28), (10000, 1, 28, 28), [9, 2, 1, 1])
    """
    if name not in DATASETS:
        raise ArgumentError(complaint(f"name={name!r}", f"one of {', '.join(DATASETS)}", "load_data"))
    lines = map(str.split, _text(f"{name}.sha256").splitlines())
    sums = {file: digest for digest, file in lines}
    calibration, test = (_split(part, sums) for part in ("train-first1024", "t10k"))
    return Data(calibration, test, _text(f"{name}.licence"), sums)


def _text(file: str) -> str:
    return (_DATA / file).read_text(encoding="utf-8")


def _split(part: str, sums: Mapping[str, str]) -> Split:
    x, y = (_checked_idx(f"{part}-{kind}", sums) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    classes = y.astype(np.int64)
    classes.flags.writeable = False
    return Split(x[:, None], classes)


def _checked_idx(file: str, sums: Mapping[str, str]) -> NDArray[np.uint8]:
    content = gzip.decompress((_DATA / f"{file}.gz").read_bytes())
    found = sha256(content).hexdigest()
    if found != sums[file]:
        raise FileError(complaint(f"SHA-256 {found}", sums[file], f"{file}.gz in refquant/zoo/data", "reinstall"))
    return parse_idx(content, file)
