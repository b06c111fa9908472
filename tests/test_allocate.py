"""`allocate` against brute force, its bound, and its refusals."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refquant as rq
from refquant.errors import ArgumentError
from refquant.solve import allocate as module
from refquant.solve.knapsack import allocate_integer, pareto_front


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


# ---- integer costs, the front, several budgets ----------------------------------------------------------------


@pytest.mark.guarantee("The dynamic programme and the integer programme give the same least error", kind="sampled")
@pytest.mark.parametrize("seed", range(12))
def test_two_exact_ways_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    error, cost = rng.random((40, 5)) * 10.0 ** rng.integers(-3, 3, (40, 1)), rng.integers(0, 30, (40, 5))
    for budget in (int(cost.min(axis=1).sum()), 200, 400, 10_000):
        if budget >= cost.min(axis=1).sum():
            a, b = allocate_integer(error, cost, budget), rq.allocate(error, cost, budget)
            assert cost[np.arange(40), a.value].sum() <= budget
            assert float(a.objective) == pytest.approx(float(b.objective), rel=3e-9)
            assert float(b.lower_bound) <= float(a.objective) * (1 + 1e-9)


@given(tables())
def test_the_dynamic_programme_equals_brute_force(problem: tuple[np.ndarray, np.ndarray, float]) -> None:
    error, cost, budget = problem
    found = allocate_integer(error, cost, int(budget))
    assert float(found.objective) == pytest.approx(brute_force(error, cost, budget), rel=1e-14)


def test_the_front_is_every_budgets_answer() -> None:
    rng = np.random.default_rng(0)
    error, cost = rng.random((6, 4)), rng.integers(1, 12, (6, 4))
    front = pareto_front(error, cost)
    items = np.arange(6)
    assert (np.diff(front.cost) > 0).all()
    assert (np.diff(front.error) < 0).all()
    for budget, least, choices in zip(front.cost, front.error, front.choices, strict=True):
        assert cost[items, choices].sum() == budget
        assert least == error[items, choices].sum()
        assert least == pytest.approx(brute_force(error, cost, budget), rel=1e-14)
        if budget > front.cost[0]:
            assert brute_force(error, cost, budget - 1) > least


@pytest.mark.parametrize("seed", range(30))
def test_several_budgets_equal_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    error, costs = rng.random((5, 3)), rng.integers(1, 9, (2, 5, 3)).astype(float)
    budgets = costs.min(axis=2).sum(axis=1) + rng.integers(2, 14, 2)
    items = np.arange(5)
    every = [np.array(c) for c in itertools.product(range(3), repeat=5)]
    fitting = [error[items, c].sum() for c in every if (costs[:, items, c].sum(axis=1) <= budgets).all()]
    if not fitting:
        with pytest.raises(ArgumentError, match="together"):
            rq.allocate(error, costs, budgets)
        return
    best = rq.allocate(error, costs, budgets)
    assert best.certified
    assert float(best.objective) == pytest.approx(min(fitting), rel=1e-9)
    assert (costs[:, items, best.value].sum(axis=1) <= budgets).all()
    assert float(best.lower_bound) <= min(fitting) * (1 + 1e-9)


def test_greedy_by_slope_is_not_optimal_and_the_answer_is() -> None:
    """The hull walk stops short of the budget; both exact ways do not."""
    error, cost = np.array([[9.0, 1.0], [9.0, 2.0]]), np.array([[0, 3], [0, 2]])
    assert float(allocate_integer(error, cost, 3).objective) == float(rq.allocate(error, cost, 3).objective) == 10.0


def test_infeasible_budgets_are_explained() -> None:
    error, cost = np.ones((2, 2)), np.array([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ArgumentError, match="budget=3, which the cheapest choices exceed by 1"):
        rq.allocate(error, cost, 3)
    with pytest.raises(ArgumentError, match="budget 1=3, which the cheapest choices exceed by 1"):
        rq.allocate(error, np.array([cost, cost]), [9.0, 3.0])
    with pytest.raises(ArgumentError, match="exceed by 1"):
        allocate_integer(error, cost.astype(int), 3)
    for bad in (cost + 0.5, -cost, cost[:1]):
        with pytest.raises(ArgumentError):
            allocate_integer(error, bad, 9)


def test_a_hundred_thousand_items() -> None:
    rng = np.random.default_rng(0)
    error = np.sort(rng.random((100_000, 4)), axis=1)[:, ::-1] * rng.random((100_000, 1))
    cost = np.arange(1.0, 5.0) * rng.integers(1, 9, (100_000, 1))
    best = rq.allocate(error, cost, float(cost[:, 0].sum() * 2), tol=1e-6)
    assert best.certified
    assert float(best.gap) <= 1e-6 * float(best.objective) * (1 + 1e-3)
