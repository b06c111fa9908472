"""Joint scales over a black-box loss, graded against dense grids of two and three scales."""

import itertools
from collections.abc import Callable
from functools import reduce

import numpy as np
import pytest

import refquant as rq
from refquant.errors import ArgumentError
from refquant.solve.joint import DRIVERS, Trajectory, minimize_scales


def product_loss(bits: int, n: int) -> tuple[Callable[[np.ndarray], float], np.ndarray]:
    """The squared error of a product of quantized tensors: scales that interact, on a loss with many small steps."""
    rng = np.random.default_rng(bits)
    X = [rng.normal(size=(24, 24)) for _ in range(n)]
    spec, whole = rq.QuantSpec(bits), reduce(np.matmul, X)

    def loss(s: np.ndarray) -> float:
        parts = [rq.fake_quantize(x, v, spec=spec) for x, v in zip(X, s, strict=True)]
        return float(np.mean((reduce(np.matmul, parts) - whole) ** 2))

    return loss, np.array([float(rq.solve_scale(x, spec=spec).value) for x in X])


@pytest.mark.guarantee("Joint scales close most of the gap to a dense grid of 2 and 3 scales", kind="sampled")
@pytest.mark.parametrize("method", DRIVERS)
@pytest.mark.parametrize(("bits", "n", "points"), [(2, 2, 60), (4, 2, 60), (3, 3, 20)])
def test_against_a_dense_grid(method: str, bits: int, n: int, points: int) -> None:
    loss, top = product_loss(bits, n)
    shares = np.geomspace(0.4, 1.6, points)
    grid = min(loss(top * np.array(g)) for g in itertools.product(shares, repeat=n))
    start = top * 1.3
    found = minimize_scales(loss, start, method=method, rounds=6)
    assert loss(start) - found.loss >= 0.5 * (loss(start) - grid)  # docs/solvers.md has the grades


@pytest.mark.parametrize("method", DRIVERS)
def test_trajectories_are_whole_and_repeatable(method: str) -> None:
    loss, top = product_loss(3, 2)
    a, b = (minimize_scales(loss, top, method=method) for _ in range(2))
    assert isinstance(a, Trajectory)
    assert np.array_equal(a.tried, b.tried)
    assert np.array_equal(a.losses, [loss(s) for s in a.tried])
    assert a.loss == a.losses.min() == a.best_so_far()[-1]
    assert np.array_equal(a.tried[0], np.exp(np.log(top)))


@pytest.mark.parametrize("method", DRIVERS)
def test_evaluations_are_limited_and_infinite_losses_survived(method: str) -> None:
    def loss(s: np.ndarray) -> float:
        return np.nan if s[0] > 1.2 else float((s[0] - 0.9) ** 2 + (s[1] - 0.5) ** 2)

    found = minimize_scales(loss, [1.1, 1.0], method=method, rounds=4, evaluations=60)
    assert found.evaluations <= 60
    assert found.loss < loss(np.array([1.1, 1.0]))
    assert found.scales[0] <= 1.2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"method": "newton"}, "method='newton'"),
        ({"start": [1.0, 0.0]}, "start"),
        ({"start": []}, "start"),
        ({"rounds": 0}, "rounds=0"),
    ],
)
def test_refusals(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        minimize_scales(lambda s: 0.0, **{"start": [1.0], **arguments})  # type: ignore[arg-type]
