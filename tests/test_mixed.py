"""The genetic algorithm for mixed bits: within the budget, never better than the exact optimum, better than chance."""

from typing import Any

import numpy as np
import pytest

from refquant.errors import ArgumentError
from refquant.ptq.genetic import allocate_by_generations
from refquant.solve.pairs import allocate_pairs, pair_error

Problem = tuple[np.ndarray, np.ndarray, np.ndarray, float]


def problem(seed: int, n: int = 9, J: int = 3) -> Problem:
    """Losses that fall with bits, pair terms of either sign between neighbours, a budget of about half."""
    rng = np.random.default_rng(seed)
    error = np.sort(rng.exponential(size=(n, J)), axis=1)[:, ::-1] - 0.01
    error[:, -1] = 0
    pair = np.zeros((n, J, n, J))
    for i in range(n - 1):
        pair[i, :-1, i + 1, :-1] = rng.normal(size=(J - 1, J - 1)) / 2
    cost = rng.uniform(0.5, 2, size=(n, 1)) * np.array([2.0, 4.0, 8.0])[:J]
    return error, pair, cost, float(cost[:, 0].sum() + rng.uniform(0.02, 0.6) * (cost[:, -1] - cost[:, 0]).sum())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.guarantee(
    "The genetic algorithm keeps the budget and is never better than the certified optimum", kind="sampled"
)
def test_it_keeps_the_budget_and_is_never_better_than_the_optimum(seed: int) -> None:
    error, pair, cost, budget = problem(seed)
    exact = allocate_pairs(error, pair, cost, budget)
    assert exact.certified
    for own in range(3):
        found = allocate_by_generations(error, pair, cost, budget, np.random.default_rng(own), generations=12)
        assert cost[np.arange(len(cost)), found.value].sum() <= budget
        assert float(found.objective) == pair_error(found.value, error, pair)
        assert float(found.objective) >= float(exact.lower_bound)
        assert found.evaluations == 50 * 12
        assert not found.certified


def test_generations_come_nearer_the_optimum_than_as_many_random_draws() -> None:
    gaps = np.zeros(2)
    for seed in range(8):
        error, pair, cost, budget = problem(seed, 14)
        best = float(allocate_pairs(error, pair, cost, budget).objective)
        rng = np.random.default_rng(0)
        for k, (size, generations) in enumerate(((50, 40), (2000, 1))):
            found = allocate_by_generations(error, pair, cost, budget, rng, population=size, generations=generations)
            gaps[k] += float(found.objective) - best
    assert gaps[0] < 0.3 * gaps[1]


def test_the_least_budget_leaves_one_choice_and_a_seed_gives_one_answer() -> None:
    error, pair, cost, _ = problem(0)
    least = float(cost[:, 0].sum())
    found = allocate_by_generations(error, pair, cost, least * (1 + 1e-12), np.random.default_rng(0), generations=2)
    assert not found.value.any()
    error, pair, cost, budget = problem(1)
    answers = [
        allocate_by_generations(error, pair, cost, budget, np.random.default_rng(5), generations=3) for _ in range(2)
    ]
    assert answers[0].value.tolist() == answers[1].value.tolist()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"budget": 0.1}, "budget"),
        ({"pair": np.zeros((2, 2))}, "pair of shape"),
        ({"population": 1}, "population=1"),
        ({"generations": 0}, "generations=0"),
        ({"mutation": 1.5}, "mutation=1.5"),
    ],
    ids=str,
)
def test_refusals(change: dict[str, Any], text: str) -> None:
    error, pair, cost, budget = problem(0)
    arguments = {"error": error, "pair": pair, "cost": cost, "budget": budget, "rng": np.random.default_rng(0)}
    with pytest.raises(ArgumentError, match=text):
        allocate_by_generations(**{**arguments, **change})
