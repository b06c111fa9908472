"""Training of the embedded networks: a function of images, recipe and seed, broken off or not."""

import gzip
import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import refquant as rq
from refquant.errors import ArgumentError, FileError
from refquant.net.files import read_arrays, write_arrays
from refquant.net.gradient import trained
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.op import Op, Rule
from refquant.net.ops import TRAINING
from refquant.net.program import transform
from refquant.zoo import make_data, train
from refquant.zoo.idx import idx_bytes
from refquant.zoo.train import RECIPES, Recipe, Split, advance, begin, retrain, training_split


def beside(name: str) -> Any:
    """A file of tests, or of docs, as a module."""
    place = importlib.util.spec_from_file_location(Path(name).stem, Path(__file__).parent / name)
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def some_images(count: int) -> Split:
    data = rq.load_data("fashion-mnist").calibration
    assert data.y is not None
    return data.x[:count], data.y[:count]


# ---- the descent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "epochs", "images"), [("mlp", 4, 512), ("cnn", 4, 128), ("resnet", 8, 128)])
def test_the_loss_falls(name: str, epochs: int, images: int) -> None:
    recipe = replace(RECIPES[name], epochs=epochs, batch=32)
    at = train.train(rq.load_network(name), some_images(images), recipe)
    assert at.losses[-1] < at.losses[0] / 1.5
    assert at.state.steps == epochs * images // 32
    assert {a.dtype for a in at.arrays.values()} == {np.dtype(np.float32)}
    assert at.seconds > 0


def test_a_few_images_teach_what_holds_for_others() -> None:
    """1,024 images; guessing is right on a tenth of the 10,000 test images, within 0.02 but once in 10^10 times."""
    graph, test = rq.load_network("mlp"), rq.load_data("fashion-mnist").test
    at = train.train(graph, some_images(1024), replace(RECIPES["mlp"], epochs=8))
    assert np.mean(rq.forward(graph.replace_arrays(at.arrays), test.x).argmax(axis=1) == test.y) > 0.5


def softmax_regression(split: Split, recipe: Recipe, seed: int, mu: float, ahead: bool) -> NDArray[np.float64]:
    """(W, b) side by side, in float64, by the formulas of one layer; images are (1, two numbers)."""
    x = np.hstack([split[0], np.ones((len(split[0]), 1))]).astype(np.float64)
    W = np.zeros((3, 3))
    W[:, :2] = np.random.default_rng([seed, 0]).normal(0, 1, (3, 2)).astype(np.float32)
    m, steps, N = np.zeros_like(W), 0, len(x)
    total = recipe.epochs * -(-N // recipe.batch)
    for epoch in range(1, recipe.epochs + 1):
        order = np.random.default_rng([seed, epoch]).permutation(N)
        while len(order):
            some, order = order[: recipe.batch], order[recipe.batch :]
            p = np.exp(x[some] @ W.T)
            p /= p.sum(axis=1, keepdims=True)
            g = (p - np.eye(3)[split[1][some]]).T @ x[some] / len(some) + recipe.decay * W
            m = mu * m + g
            rate = recipe.rate * (1 + np.cos(np.pi * steps / total)) / 2
            W = W - rate * (g + mu * m if ahead else m)
            steps += 1
    return W


@pytest.mark.guarantee("Training is Nesterov's descent as its formulas say, to float32 rounding", kind="checked")
def test_training_is_its_formulas() -> None:
    """What a step adds to the errors of W and m is at most 60 u, and it lets those before grow 2.5 times at most.

    Each |x| <= 1 and |W| <= 4 (asserted), so a logit of 3 terms errs by 36 u; p by half as much, as a row of its
    Jacobian has magnitudes 2 p (1 - p) <= 1/2, and by 10 u of its own; g, a mean of 4, by 6 u more; m, at most 7.5 in
    6 steps, by 15 u more; W by rate (g + mu m), that is 20 u, and 10 u of its own.
    The Hessian by W is at most |x|^2 / 2 + decay < 1.6 with the bias's 1 in |x|^2 <= 3: errors e of W and m move m by
    (mu + 1.6) e, and W by (1 + rate 1.6 (1 + mu) + rate mu^2) e < 2 e.
    """
    names = {"in_features": 2, "out_features": 3}
    arrays = {"w": np.zeros((3, 2), np.float32), "b": np.zeros(3, np.float32)}
    layer = Node("y", "Gemm", ("x",), names, {"weight": "w", "bias": "b"})
    graph = Graph("layer", InputSpec("x", (2,)), "y", (layer,), arrays)
    rng = np.random.default_rng(5)
    split = rng.integers(0, 2, (10, 2)).astype(np.uint8), rng.integers(0, 3, 10)
    recipe = Recipe(2, 4, 0.25, 0.0625)
    at = train.train(graph, split, recipe, seed=3)
    found = np.hstack([at.arrays["w"], at.arrays["b"][:, None]])
    right, heavy = (softmax_regression(split, recipe, 3, 0.9, ahead) for ahead in (True, False))
    bound = 60 * 2.0**-24 * (2.5**6 - 1) / 1.5
    assert np.abs(right).max() < 4
    assert np.abs(found - right).max() <= bound
    assert np.abs(found - heavy).max() > bound  # plain momentum is noticed


def test_an_epoch_sees_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def noted(spec: InputSpec, x: Any) -> Any:
        seen.append(x)
        return transform(spec, x)

    monkeypatch.setattr(train, "transform", noted)
    graph, split, recipe = rq.load_network("mlp"), some_images(70), Recipe(2, 32, 0.01, 0.0)
    done: list[int] = []
    at = begin(graph, 0)
    for _ in range(2):
        at = advance(graph, at, split, recipe, 0, done.append)
    assert done == [32, 32, 6] * 2
    rows = [[x.tobytes() for batch in seen[k : k + 3] for x in batch] for k in (0, 3)]
    assert sorted(rows[0]) == sorted(rows[1]) == sorted(x.tobytes() for x in split[0])
    assert rows[0] != rows[1]  # in another order


# ---- batch norms ----------------------------------------------------------------------------------------------


@pytest.mark.guarantee(
    "Where the resnet's training starts, its loss's gradient is a complex step of the loss, to rounding", kind="checked"
)
def test_gradients_where_training_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = rq.load_network("resnet")
    graph, check = graph.replace_arrays(begin(graph, 0).arrays), beside("test_gradient_bounds.py").check_slope
    check(graph, training=True)
    monkeypatch.setitem(TRAINING, "BatchNorm", moments_held(TRAINING["BatchNorm"]))
    with pytest.raises(AssertionError):
        check(graph, training=True)


def moments_held(op: Op) -> Op:
    """A batch norm in training whose way back forgets that the moments move with the images."""

    def vjp(at: Any, u: Any, wanted: Any) -> Any:
        k = (at.params["gamma"] / np.sqrt(at.memory.var + at.attrs["eps"]))[:, None, None]
        return op.derivative.vjp(at, u, wanted) | ({0: k * u} if 0 in wanted else {})

    return replace(op, derivative=Rule(vjp, op.derivative.jvp))


def test_running_moments_are_kept() -> None:
    graph, recipe = rq.load_network("resnet"), Recipe(1, 32, 0.01, 0.0)
    before = begin(graph, 0)
    after = advance(graph, before, some_images(32), recipe, 0)
    for name in set(graph.arrays) - set(trained(graph)):
        assert (before.arrays[name] == name.endswith("var")).all()
        assert (after.arrays[name] != before.arrays[name]).all()


# ---- broken off, and resumed ----------------------------------------------------------------------------------


class Interrupted:
    """Counts images; breaks a run off after so many batches."""

    def __init__(self, batches: int) -> None:
        self.done: list[int] = []
        self.batches = batches

    def __call__(self, count: int) -> None:
        self.done.append(count)
        if len(self.done) == self.batches:
            raise KeyboardInterrupt


@pytest.mark.guarantee(
    "A training that was broken off and resumed ends in the same bytes as one that was not", kind="checked"
)
@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_a_resumed_run_ends_in_the_same_arrays(name: str, tmp_path: Path) -> None:
    graph, split, recipe, file = rq.load_network(name), some_images(96), Recipe(3, 32, 0.05, 5e-4), tmp_path / "s.npz"
    whole = train.train(graph, split, recipe, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train.train(graph, split, recipe, seed=1, file=file, progress=Interrupted(4))  # in the second epoch
    rest = Interrupted(100)
    resumed = train.train(graph, split, recipe, seed=1, file=file, progress=rest)
    assert rest.done == [96] + [32] * 6
    assert resumed.losses == whole.losses
    assert resumed.state.steps == whole.state.steps == 9
    for found, expected in [(resumed.arrays, whole.arrays), (resumed.state.averages["m"], whole.state.averages["m"])]:
        assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in expected.items()}
    other = train.train(graph, split, recipe, seed=2)
    assert all((other.arrays[n] != whole.arrays[n]).any() for n in trained(graph))


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    split, recipe, contents = some_images(96), Recipe(2, 32, 0.05, 5e-4), {}
    for part, seed, stop in (("whole", 1, 99), ("again", 1, 99), ("broken", 1, 5), ("other", 2, 99)):
        folder = tmp_path / part
        folder.mkdir()
        if stop < 99:
            with pytest.raises(KeyboardInterrupt):
                retrain("mlp", split, folder, recipe, seed=seed, progress=Interrupted(stop))
            assert [path.name for path in folder.iterdir()] == ["mlp.state.npz"]
        facts = retrain("mlp", split, folder, recipe, seed=seed)
        contents[part] = [(folder / f"mlp{ending}").read_bytes() for ending in (".json", ".npz")]
        assert len(list(folder.iterdir())) == 3
    assert contents["whole"] == contents["again"] == contents["broken"]
    assert contents["whole"][1] != contents["other"][1]
    graph, test = rq.load_network(tmp_path / "other" / "mlp.json"), rq.load_data("fashion-mnist").test
    accuracy = float(np.mean(rq.forward(graph, test.x).argmax(axis=1) == test.y))
    assert graph.notes == {"dataset": "fashion-mnist", "epochs": 2, "seed": 2, "test_accuracy": accuracy}
    assert (facts["test_accuracy"], facts["shipped_accuracy"]) == (
        accuracy,
        rq.load_network("mlp").notes["test_accuracy"],
    )
    assert graph.nodes == rq.load_network("mlp").nodes
    assert graph.reference_logits is None  # those are the framework's


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    graph, split, recipe, file = rq.load_network("mlp"), some_images(32), Recipe(1, 32, 0.01, 0.0), tmp_path / "s.npz"
    train.train(graph, split, recipe, file=file)
    others: list[Callable[[], object]] = [
        lambda: train.train(graph, split, recipe, file=file, seed=1),
        lambda: train.train(graph, split, replace(recipe, rate=0.02), file=file),
        lambda: train.train(graph, (split[0], 9 - split[1]), recipe, file=file),
        lambda: train.train(rq.load_network("cnn"), split, recipe, file=file),
    ]
    for other in others:
        with pytest.raises(FileError, match=r"s\.npz\]: remove it"):
            other()
    stored = read_arrays(str(file))
    write_arrays(str(file), {**stored, "m/gemm1.bias": np.zeros(3, np.float32)})
    with pytest.raises(FileError, match="remove it"):
        train.train(graph, split, recipe, file=file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FileError, match="archive"):
        train.train(graph, split, recipe, file=file)


def test_a_loss_that_is_not_finite_is_said() -> None:
    with pytest.raises(ArgumentError, match=r"epoch 1 of mlp\]: lower the rate"):
        train.train(rq.load_network("mlp"), some_images(96), Recipe(3, 32, 1e9, 0.0))


# ---- the published files, and the command ---------------------------------------------------------------------


def write_idx(folder: Path, monkeypatch: pytest.MonkeyPatch, images: int = 64) -> None:
    """Idx files of the first training images, whose sums pass for the published ones."""
    x, y = some_images(images)
    for kind, array in ((make_data.IMAGES, x[:, 0]), (make_data.LABELS, y.astype(np.uint8))):
        content, name = idx_bytes(array), f"train-{kind}"
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        monkeypatch.setitem(make_data.PUBLISHED, name, sha256(content).hexdigest())


def test_the_split_is_what_the_files_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path, monkeypatch)
    (x, y), expected = training_split(tmp_path), some_images(64)
    assert f"{x.dtype} {y.dtype}" == "uint8 int64"
    assert np.array_equal(x, expected[0])
    assert np.array_equal(y, expected[1])


def test_missing_and_wrong_files_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match=r"no train-images-idx3-ubyte.*install Debian's package dataset-fashion-mnist"):
        training_split(tmp_path)
    published = dict(make_data.PUBLISHED)
    write_idx(tmp_path, monkeypatch)
    for name, digest in published.items():
        monkeypatch.setitem(make_data.PUBLISHED, name, digest)
    with pytest.raises(FileError, match=f"SHA-256.*should be {published['train-images-idx3-ubyte']}"):
        training_split(tmp_path)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_idx(tmp_path, monkeypatch)
    asked = ["mlp", "--data", str(tmp_path), "--out", str(tmp_path / "new" / "folder")]
    train.main([*asked, "--epochs", "2", "--seed", "5"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["network"], facts["epochs"], facts["seed"]) == ("mlp", 2, 5)
    assert rq.load_network(tmp_path / "new" / "folder" / "mlp.json").notes["test_accuracy"] == facts["test_accuracy"]
    for wrong, message in [
        (["--seed", "6", "--epochs", "2"], "remove it"),
        (["--epochs", "0"], "at least 1"),
        (["--data", str(tmp_path / "none")], "install Debian's package"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            train.main([*asked, *wrong])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_the_document_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "docs"))
    document = beside("../docs/make_training.py")
    results = document.RESULTS.load()
    assert document.DOCUMENT.read_text(encoding="utf-8") == document.render(results)
    planted = {"mlp/0": {**results["mlp/0"], "test_accuracy": 0.8936}}
    assert "Of 1 runs, 0 end" in document.render(planted)
    assert "Short of that: mlp, seed 0. Not run to the end: cnn, resnet." in document.render(planted)
