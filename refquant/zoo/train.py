"""The embedded networks trained again, in NumPy alone: `python -m refquant.zoo.train mlp --data FOLDER`.

From random weights, by stochastic gradient descent on the cross entropy over all 60,000 training images of
Fashion-MNIST; the last epoch is kept, and the test images are looked at once, after it.  OUT/NAME.json and
OUT/NAME.npz are written, and after every epoch OUT/NAME.state.npz, from which a run that was broken off goes on.
The networks that refquant embeds are not made by this script: PyTorch trained them.

FOLDER holds the idx files of the training split, gzipped or not, as Debian's package dataset-fashion-mnist has them;
their SHA-256 sums are checked.

Letters: w trained arrays, g their gradients, N images in all, B a batch.  Epoch e = 1, 2, ... draws its batches from
the Generator of (seed, e), weights are drawn from that of (seed, 0): an epoch is a function of the state before it.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..arith.blas import one_blas_thread
from ..errors import ArgumentError, FileError, RefquantError, complaint
from ..net.files import read_arrays, write_arrays, write_network
from ..net.forward import forward
from ..net.gradient import pullback, run, running_moments, trained
from ..net.graph import Graph
from ..net.loss import cross_entropy
from ..net.op import Array
from ..net.optimize import State, cosine, decayed, sgd
from ..net.program import transform
from . import DATASETS, NETWORKS, load_data, load_network
from .idx import parse_idx
from .make_data import IMAGES, LABELS, published

__all__ = ["RECIPES", "Recipe", "Training", "advance", "begin", "retrain", "train", "training_split"]

Split: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images, shape (N, *of the network's input), and their classes, shape (N,)."""

Progress: TypeAlias = Callable[[int], object]
"""Called with the number of images that are done: of each batch, or before a run that goes on (`tqdm.update`)."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: the rate falls to 0 by a cosine; decay times w is added to g."""

    epochs: int
    batch: int
    rate: float
    decay: float


RECIPES: dict[str, Recipe] = {
    #                epochs batch  rate  decay
    "mlp": Recipe(15, 64, 0.02, 1e-4),
    "cnn": Recipe(12, 64, 0.01, 5e-4),
    "resnet": Recipe(12, 64, 0.05, 5e-4),
}
"""The recipe of each network."""

RULE = sgd(momentum=0.9, nesterov=True)


# ---- a training is a sequence of states -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Training:
    """Between two epochs: the network's arrays, the optimizer's state, each epoch's mean loss, processor seconds."""

    arrays: Mapping[str, Array]
    state: State
    losses: tuple[float, ...] = ()
    seconds: float = 0.0


def begin(graph: Graph, seed: int) -> Training:
    """Before the first epoch: weights of variance 2 / inputs, batch norms that normalize only, biases 0.

    Source: He et al. 2015 (arXiv 1502.01852), equation 10.
    """
    rng, arrays = np.random.default_rng([seed, 0]), {}
    for role, name in (slot for node in graph.nodes for slot in node.params.items()):
        shape, level = graph.arrays[name].shape, float(role in ("gamma", "var"))
        spread = math.sqrt(2 / math.prod(shape[1:])) if role == "weight" else 0.0
        arrays[name] = rng.normal(level, spread, shape).astype(np.float32)
    return Training(arrays, RULE.init({name: arrays[name] for name in trained(graph)}))


def advance(
    graph: Graph, at: Training, split: Split, recipe: Recipe, seed: int, progress: Progress | None = None
) -> Training:
    """One epoch later: every image once, in batches at random."""
    start, rng = time.process_time(), np.random.default_rng([seed, len(at.losses) + 1])
    N, B, names = len(split[0]), recipe.batch, trained(graph)
    arrays, state, loss = dict(at.arrays), at.state, 0.0
    for some in np.split(rng.permutation(N), range(B, N, B)):
        x, y = (part[some] for part in split)
        tape = run(graph, {graph.input.name: transform(graph.input, x)}, arrays, training=True)
        error = cross_entropy(tape.output, y)
        w = {name: arrays[name] for name in names}
        g = decayed(w, pullback(tape, error.cotangent, names), recipe.decay)
        rate = recipe.rate * cosine(state.steps, recipe.epochs * -(-N // B))
        w, state = RULE.step(w, g, state, rate)
        arrays |= w | running_moments(tape)
        loss += error.value * len(some) / N
        if progress is not None:
            progress(len(some))
    return Training(arrays, state, (*at.losses, loss), at.seconds + time.process_time() - start)


def train(
    graph: Graph,
    split: Split,
    recipe: Recipe,
    *,
    seed: int = 0,
    file: Path | None = None,
    progress: Progress | None = None,
) -> Training:
    """After the last epoch; of the graph, the arrays' values are not read.

    file: where the state is kept after every epoch, and from where a run goes on.  On one machine, the same images,
    recipe and seed give the same arrays, bit for bit, whether or not the run was broken off.

    Raises FileError for a file that holds the state of another run, is damaged, or cannot be written; ArgumentError for
    a loss that is not finite, and for images or classes that do not fit the network.
    """
    digest = sha256(b"".join(part.tobytes() for part in split)).hexdigest()
    key = json.dumps({"network": graph.name, **asdict(recipe), "seed": seed, "split": digest})
    at = begin(graph, seed)
    if file is not None and file.exists():
        at = _restored(at, read_arrays(f"{file}"), key, f"{file}")
        if progress is not None:
            progress(len(at.losses) * len(split[0]))
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        while len(at.losses) < recipe.epochs:
            at = advance(graph, at, split, recipe, seed, progress)
            if not math.isfinite(at.losses[-1]):
                where = f"epoch {len(at.losses)} of {graph.name}"
                raise ArgumentError(complaint(f"a loss of {at.losses[-1]}", "finite", where, "lower the rate"))
            if file is not None:
                write_arrays(f"{file}", _stored(at, key))
    return at


def _stored(at: Training, key: str) -> dict[str, Array]:
    facts = {"key": key, "steps": at.state.steps, "losses": at.losses, "seconds": at.seconds}
    rows = {"arrays": at.arrays, **at.state.averages}
    named = {f"{row}/{name}": a for row, values in rows.items() for name, a in values.items()}
    return {name: np.asarray(a) for name, a in {**facts, **named}.items()}


def _restored(new: Training, stored: Mapping[str, Array], key: str, where: str) -> Training:
    """The training that `_stored` gave; new has its names and shapes."""
    shapes = [{n: a.shape for n, a in some.items() if n != "losses"} for some in (stored, _stored(new, key))]
    if shapes[0] != shapes[1] or f"{stored['key']}" != key:
        got, todo = f"a state of {stored.get('key')}", "remove it, or give another folder"
        raise FileError(complaint(got, f"of this run, {key}", where, todo))
    averages = {rule: {n: stored[f"{rule}/{n}"] for n in values} for rule, values in new.state.averages.items()}
    state, losses = State(int(stored["steps"]), averages), tuple(map(float, stored["losses"]))
    return Training({n: stored[f"arrays/{n}"] for n in new.arrays}, state, losses, float(stored["seconds"]))


# ---- the embedded networks ------------------------------------------------------------------------------------


def training_split(folder: Path) -> Split:
    """The 60,000 training images, shape (60000, 1, 28, 28), and their classes, from the published idx files.

    Raises FileError for files that are missing or not as published.
    """
    x, y = (parse_idx(published(folder, f"train-{kind}"), f"train-{kind}") for kind in (IMAGES, LABELS))
    return x[:, None], y.astype(np.int64)


def retrain(
    name: str, split: Split, out: Path, recipe: Recipe, *, seed: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """Facts about an embedded network that was trained anew and written to OUT/NAME.json and OUT/NAME.npz.

    Its accuracy on the 10,000 test images is measured once, at the end.  Raises as `train` does.
    """
    shipped, test = load_network(name), load_data(DATASETS[0]).test
    at = train(shipped, split, recipe, seed=seed, file=out / f"{name}.state.npz", progress=progress)
    graph = shipped.replace_arrays(at.arrays)
    accuracy = float(np.mean(forward(graph, test.x).argmax(axis=1) == test.y))
    notes: dict[str, str | int | float] = {"dataset": DATASETS[0], "epochs": recipe.epochs, "seed": seed}
    write_network(replace(graph, notes={**notes, "test_accuracy": accuracy}), out / f"{name}.json")
    facts = {"network": name, **asdict(recipe), "seed": seed, "loss": at.losses[-1], "seconds": round(at.seconds, 1)}
    return {**facts, "test_accuracy": accuracy, "shipped_accuracy": shipped.notes["test_accuracy"]}


def main(arguments: list[str] | None = None) -> None:
    """The command line; facts are printed as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m refquant.zoo.train", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="of the idx files")
    parser.add_argument("--out", type=Path, default=Path("retrained"), metavar="FOLDER", help="for what is written")
    parser.add_argument("--epochs", type=int, metavar="N", help="other than the recipe's")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    args = parser.parse_args(arguments)
    recipe = RECIPES[args.network]
    recipe = replace(recipe, epochs=recipe.epochs if args.epochs is None else args.epochs)
    if recipe.epochs < 1 or args.seed < 0:
        parser.error("--epochs should be at least 1, and --seed at least 0")
    try:
        split = training_split(args.data)
        args.out.mkdir(parents=True, exist_ok=True)
        total = recipe.epochs * len(split[0])
        with tqdm(total=total, desc=args.network, unit=" images", disable=None, file=sys.stderr) as bar:
            facts = retrain(args.network, split, args.out, recipe, seed=args.seed, progress=bar.update)
    except (RefquantError, OSError) as error:
        parser.error(str(error))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
