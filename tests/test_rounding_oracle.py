"""The rounding oracle: against every code vector, and its heuristics against what defines them."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

import refquant as rq
from refquant.solve.rounding_oracle import ROUNDINGS, best_rounding, rounding_error


def problem(seed: int, d: int, samples: int = 30) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d))
    return rng.normal(size=d), 0.7, rng.normal(size=(samples, d)) @ mix


@pytest.mark.guarantee("The rounding oracle equals the best of all code vectors on small rows", kind="sampled")
@pytest.mark.parametrize(
    "spec", [rq.QuantSpec(2), rq.QuantSpec(2, narrow=True), rq.QuantSpec(2, signed=False)], ids=str
)
@pytest.mark.parametrize("d", [1, 2, 5])
def test_equals_brute_force(spec: rq.QuantSpec, d: int) -> None:
    grid = np.array(list(product(range(spec.qmin, spec.qmax + 1), repeat=d)))
    for seed in range(20):
        w, scale, X = problem(seed, d)
        errors = np.sum((X @ (w - scale * grid).T) ** 2, axis=0)
        found = best_rounding(w, scale, spec=spec, inputs=X)
        assert float(found.objective) <= errors.min() * (1 + 1e-12)
        assert float(found.lower_bound) <= errors.min()
        assert found.certified
        assert float(found.objective) == rounding_error(found.value, w, scale, X)


def test_inputs_that_depend_on_each_other_or_are_few() -> None:
    spec, w = rq.QuantSpec(2), np.array([0.4, -0.8, 1.2, 0.3])
    grid = np.array(list(product(range(-2, 2), repeat=4)))
    for X in (np.ones((5, 4)), np.array([[1.0, 2.0, 0.0, 1.0]]), np.zeros((0, 4)), np.zeros((3, 4))):
        errors = np.sum((X @ (w - 0.5 * grid).T) ** 2, axis=0)
        found = best_rounding(w, 0.5, spec=spec, inputs=X)
        assert float(found.objective) <= errors.min() * (1 + 1e-12)  # sums in another order


def test_heuristics_are_never_better_and_mostly_worse() -> None:
    """Sixteen correlated inputs at 3 bits: the oracle grades them; nearest loses most."""
    excess: dict[str, list[float]] = {name: [] for name in ROUNDINGS}
    spec = rq.QuantSpec(3)
    for seed in range(12):
        w, scale, X = problem(seed, 16, 64)
        w = w * 1.5
        best = best_rounding(w, scale, spec=spec, inputs=X)
        R = np.asarray(np.linalg.qr(X, mode="r"))
        for name, rule in ROUNDINGS.items():
            error = rounding_error(rule(R, w / scale, spec), w, scale, X)
            assert error >= float(best.lower_bound)
            excess[name].append(error / float(best.objective) - 1)
    medians = {name: float(np.median(v)) for name, v in excess.items()}
    assert medians["nearest"] > medians["sequential"] > 0
    assert medians["sequential"] >= medians["descended"]


def test_sequential_leaves_the_free_weights_at_their_exact_minimum() -> None:
    """After fixing the codes from i on, the centre of i - 1 is that of the least-squares fit of all free weights."""
    w, scale, X = problem(3, 6)
    R, u = np.asarray(np.linalg.qr(X, mode="r")), w / scale
    q = ROUNDINGS["sequential"](R, u, rq.QuantSpec(8))
    for i in range(5, 0, -1):
        fixed = X[:, i:] @ (u[i:] - q[i:])
        free = np.linalg.lstsq(X[:, :i], X[:, :i] @ u[:i] + fixed, rcond=None)[0]
        assert round(float(free[i - 1])) == q[i - 1]


def test_a_planted_fault_is_seen() -> None:
    w, scale, X = problem(0, 5)
    found = best_rounding(w, scale, spec=rq.QuantSpec(2), inputs=X)
    for i in range(5):
        other = found.value.copy()
        other[i] += 1 if other[i] < 1 else -1
        assert rounding_error(other, w, scale, X) >= float(found.objective)


@pytest.mark.parametrize(
    ("w", "scale", "inputs", "text"),
    [
        (np.zeros(17), 1.0, np.zeros((3, 17)), "1 to 16"),
        (np.zeros(3), 1.0, np.zeros((3, 4)), "samples"),
        (np.zeros(3), 0.0, np.zeros((3, 3)), "scale"),
        (np.array([np.nan]), 1.0, np.zeros((3, 1)), "finite"),
    ],
)
def test_refusals(w: NDArray[np.float64], scale: float, inputs: NDArray[np.float64], text: str) -> None:
    with pytest.raises((rq.ArgumentError, rq.NotANumberError), match=text):
        best_rounding(w, scale, spec=rq.QuantSpec(2), inputs=inputs)
