"""`allocate` against brute force, its bound, and its refusals."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refquant as rq
from refquant.errors import ArgumentError
from refquant.solve import allocate as module


def brute_force(error: np.ndarray, cost: np.ndarray, budget: float) -> float:
    choices = itertools.product(range(error.shape[1]), repeat=len(error))
    totals = [(sum(cost[i, j] for i, j in enumerate(c)), sum(error[i, j] for i, j in enumerate(c))) for c in choices]
    return float(min(e for p, e in totals if p <= budget))


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    items, choices = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    error = rng.random((items, choices)) * 10.0 ** rng.integers(-3, 3, (items, 1))
    cost = rng.integers(1, 9, (items, choices)).astype(float)
    return error, cost, float(cost.min(axis=1).sum() + draw(st.integers(0, 20)))


def assert_optimal(error: np.ndarray, cost: np.ndarray, budget: float) -> None:
    best = rq.allocate(error, cost, budget)
    items = np.arange(len(error))
    truth = brute_force(error, cost, budget)
    accuracy = 1e-9 * truth  # the programme's own, as the docstring says
    assert cost[items, best.value].sum() <= budget
    assert float(best.objective) == pytest.approx(error[items, best.value].sum(), rel=1e-15)
    assert best.certified
    assert float(best.objective) <= truth + 3 * accuracy
    assert float(best.lower_bound) <= truth + accuracy


@pytest.mark.guarantee("Allocations equal brute force on small tables", kind="sampled")
@given(tables())
def test_equals_brute_force(problem: tuple[np.ndarray, np.ndarray, float]) -> None:
    assert_optimal(*problem)


def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the integer programme the hull walk alone is not optimal here, and brute force notices."""
    error, cost = np.array([[9.0, 1.0], [9.0, 2.0]]), np.array([[0, 3.0], [0, 2.0]])
    assert_optimal(error, cost, 3.0)
    monkeypatch.setattr(module, "_programme", lambda *args: (None, -np.inf))
    with pytest.raises(AssertionError):
        assert_optimal(error, cost, 3.0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([[1.0, np.nan]], [[1, 2]], 3), "error of item 0"),
        (([[1.0, 2.0], [1.0, 2.0]], [[1, 2], [1, np.inf]], 3), "cost of item 1"),
        (([[1.0, 2.0]], [[2, 3]], 1), "exceed by 1"),
        (([[1.0, 2.0]], [[2, 3]], np.nan), "budget=nan"),
        (([1.0], [1.0], 1), "shape"),
        ((np.empty((0, 2)), np.empty((0, 2)), 1), "shape"),
    ],
)
def test_refusals(arguments: tuple[object, object, float], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        rq.allocate(*arguments)  # type: ignore[arg-type]
