"""`allocate` against brute force, its bound, and its refusals."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refquant as rq
from refquant.errors import ArgumentError
from refquant.solve import allocate as module
from refquant.solve.hull import dual_front, marginal_greedy, suspicious
from refquant.solve.knapsack import allocate_integer, pareto_front
from refquant.solve.pairs import allocate_pairs, allocate_pairs_by_search, pair_error


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


# ---- size, fronts, heuristics ---------------------------------------------------------------------------------


@pytest.mark.guarantee("100,000 items of 4 choices: a certified gap of 1e-6", kind="sampled")
@pytest.mark.parametrize("whole", [False, True], ids=["real costs", "integer costs"])
def test_a_hundred_thousand_items(whole: bool) -> None:
    rng = np.random.default_rng(2)
    error = np.sort(rng.exponential(size=(100_000, 4)), axis=1)[:, ::-1]
    cost = np.cumsum(rng.uniform(0.5, 2, size=error.shape), axis=1)
    cost = np.round(3 * cost) if whole else cost
    budget = (cost.min(axis=1).sum() + cost.max(axis=1).sum()) / 2 + 0.3
    best = rq.allocate(error, cost, budget, tol=1e-6)
    assert best.certified
    assert float(best.gap) <= 1.01e-6 * float(best.objective)
    chosen = np.arange(len(error)), best.value
    assert cost[chosen].sum() <= budget
    assert float(best.objective) == pytest.approx(error[chosen].sum(), rel=1e-12)


@pytest.mark.guarantee("The dual front bounds every allocation and is met by its own points", kind="sampled")
@given(tables())
def test_the_dual_front_bounds_the_exact_one(problem: tuple[np.ndarray, np.ndarray, float]) -> None:
    error, cost, _ = problem
    items = np.arange(len(error))
    dual, exact = dual_front(error, cost), pareto_front(error, cost)
    slack = 1e-12 * float(np.abs(error).sum())  # sums of at most 20 errors in two orders
    assert np.all(dual.bound(exact.cost) <= exact.error + slack)
    for point in range(len(dual.cost)):
        chosen = dual.choices(point)
        assert error[items, chosen].sum() == pytest.approx(dual.error[point], abs=slack)
        assert cost[items, chosen].sum() == dual.cost[point]
        within = exact.error[exact.cost <= dual.cost[point]].min()
        assert dual.error[point] <= within + slack  # optimal for its own cost
    assert np.isinf(dual.bound(dual.cost[0] - 1))


@given(tables())
def test_greedy_is_never_better(problem: tuple[np.ndarray, np.ndarray, float]) -> None:
    error, cost, budget = problem
    items = np.arange(len(error))
    best = float(rq.allocate(error, cost, budget).objective)
    for stop in (False, True):
        chosen = marginal_greedy(error, cost, budget, stop=stop)
        assert cost[items, chosen].sum() <= budget
        assert error[items, chosen].sum() >= best * (1 - 1e-9)


def test_greedy_is_optimal_on_the_front_of_convex_tables() -> None:
    rng = np.random.default_rng(5)
    error = np.cumsum(np.sort(rng.exponential(size=(12, 4)), axis=1), axis=1)[:, ::-1]  # convex in unit costs
    cost = np.tile(np.arange(4.0), (12, 1))
    for budget in range(0, 37, 4):
        chosen = marginal_greedy(error, cost, budget)
        assert error[np.arange(12), chosen].sum() == pytest.approx(float(rq.allocate(error, cost, budget).objective))


def test_integer_costs_are_met_on_their_lattice() -> None:
    """Costs of 2 and 4 with a budget of 7.9: no allocation costs more than 6, and the bound knows."""
    error, cost = [[5.0, 1.0], [4.0, 2.0], [9.0, 7.0]], [[2, 4], [2, 4], [2, 4]]
    best = rq.allocate(error, cost, 7.9)
    assert float(best.objective) == float(best.lower_bound) == 18.0


def test_names_are_in_the_messages() -> None:
    with pytest.raises(ArgumentError, match="item conv2"):
        rq.allocate([[1.0, 0.0], [np.nan, 0.0]], [[1, 2], [1, 2]], 4, names=["conv1", "conv2"])
    sentences = suspicious([[2.0, 1.0], [1.0, 1.5]], [[1, 2], [1, 2]], names=["conv1", "conv2"])
    assert len(sentences) == 1
    assert "conv2" in sentences[0]


# ---- pairs ----------------------------------------------------------------------------------------------------


@pytest.mark.guarantee("Allocations with pairwise terms: two solvers and brute force agree", kind="sampled")
@given(seed=st.integers(0, 2**32), items=st.integers(1, 5), choices=st.integers(1, 3))
def test_pairs_equal_brute_force(seed: int, items: int, choices: int) -> None:
    rng = np.random.default_rng(seed)
    error, cost = rng.normal(size=(items, choices)), rng.integers(1, 6, (items, choices)).astype(float)
    pair = rng.normal(size=(items, choices, items, choices))
    budget = float(cost.min(axis=1).sum() + rng.integers(0, 8))
    every = [
        c for c in itertools.product(range(choices), repeat=items) if sum(cost[i, a] for i, a in enumerate(c)) <= budget
    ]
    truth = min(pair_error(c, error, pair) for c in every)
    by_search, by_programme = (f(error, pair, cost, budget) for f in (allocate_pairs_by_search, allocate_pairs))
    scale = float(np.abs(error).sum() + np.abs(pair).sum())
    for solution in (by_search, by_programme):
        assert pair_error(solution.value, error, pair) == pytest.approx(truth, abs=1e-8 * scale)  # the programme's
        assert float(solution.lower_bound) <= truth + 1e-12 * scale
        assert solution.certified


def test_pairs_change_the_answer() -> None:
    """Two items that are each best low, but together cost more than the saving."""
    error, cost = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[2, 1], [2, 1]])
    pair = np.zeros((2, 2, 2, 2))
    assert allocate_pairs(error, pair, cost, 4).value.tolist() == [1, 1]
    pair[1, 1, 0, 1] = 3.0
    assert sorted(allocate_pairs(error, pair, cost, 4).value.tolist()) == [0, 1]


def test_pairs_refuse() -> None:
    with pytest.raises(ArgumentError, match="pair of shape"):
        allocate_pairs([[1.0]], [[1.0]], [[1.0]], 1)
    with pytest.raises(ArgumentError, match="exceed by"):
        allocate_pairs([[1.0]], np.zeros((1, 1, 1, 1)), [[2.0]], 1)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """HiGHS prints a line of its own to standard output now and then; JSON there must stay JSON."""
    rng = np.random.default_rng(0)
    error = np.sort(rng.exponential(size=(300, 4)), axis=1)[:, ::-1]
    cost = np.sort(rng.uniform(0.5, 2, size=(2, 300, 4)), axis=2)
    rq.allocate(error, cost, (cost.min(axis=2).sum(axis=1) + cost.max(axis=2).sum(axis=1)) / 2, tol=1e-4)
    assert capfd.readouterr().out == ""
