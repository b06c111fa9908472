"""Bits by a genetic algorithm: what BRECQ describes where `solve.pairs` is exact; Li et al. 2021, section 3.4.

Letters: e_ia error of choice a for layer i, Q_ia,jb what two layers add together, c_ia costs, B the budget; an
individual is one choice a layer.

A population lives through generations.  In each the best individuals ever seen are parents, and half of the next
generation are crossed (each layer's choice from one of two parents), half mutated (each layer's choice drawn anew with
a small probability).  All individuals keep the budget.

Otherwise than the paper, whose code is not released: it draws until an individual keeps the budget, which may never
happen; here layers take their cheapest choice, in random order, until it does.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, complaint
from ..solve.hull import checked_tables
from ..solve.pairs import pair_error
from ..solve.solution import Solution

__all__ = ["allocate_by_generations"]

Individual = NDArray[np.int64]

PARENTS = 10
"""How many of the best individuals seen have offspring."""


def _repaired(choices: Individual, cost: NDArray[np.float64], budget: float, rng: np.random.Generator) -> Individual:
    """The choices, some of them replaced by the cheapest, within the budget."""
    items, found = np.arange(len(cost)), choices.copy()
    for i in rng.permutation(len(cost)):
        if cost[items, found].sum() <= budget:
            break
        found[i] = cost[i].argmin()
    return found


def allocate_by_generations(
    error: ArrayLike,
    pair: ArrayLike,
    cost: ArrayLike,
    budget: float,
    rng: np.random.Generator,
    *,
    population: int = 50,
    generations: int = 100,
    mutation: float = 0.1,
) -> Solution:
    """The best choices that a genetic algorithm finds within the budget: nothing says how far from the optimum.

    error, pair, cost, budget: as `allocate_pairs`, for one budget.  population, generations, mutation (of a choice, its
    probability): the paper's.  The solution's lower bound is -inf; its evaluations are lookups of an individual's
    error.  The same generator state gives the same answer.

    Raises ArgumentError for tables and a budget that do not fit, as `allocate_pairs`, and for numbers out of range.

    >>> error, cost = [[4.0, 1.0, 0.0]] * 3, [[2, 4, 8]] * 3
    >>> found = allocate_by_generations(error, np.zeros((3, 3, 3, 3)), cost, 12, np.random.default_rng(0))
    >>> found.value.tolist(), float(found.objective), found.certified
    ([1, 1, 1], 3.0, False)
    """
    e, costs, budgets = checked_tables(error, cost, budget)
    if len(costs) != 1 or np.shape(pair) != e.shape * 2:
        got, should = f"{len(costs)} budgets, pair of shape {np.shape(pair)}", f"one budget, shape {e.shape * 2}"
        raise ArgumentError(complaint(got, should, "allocate_by_generations"))
    if population < 2 or generations < 1 or not 0 <= mutation <= 1:
        got = f"population={population}, generations={generations}, mutation={mutation}"
        raise ArgumentError(complaint(got, "at least 2, at least 1, in [0, 1]", "allocate_by_generations"))
    (c,), most, (n, J) = costs, float(budgets[0]), e.shape
    seen: dict[tuple[int, ...], float] = {}
    parents: list[tuple[int, ...]] = []
    looked = 0

    def drawn() -> Individual:
        return np.asarray(rng.integers(J, size=n), np.int64)

    def kept(choices: Individual) -> Individual:
        return _repaired(choices, c, most, rng)

    def crossed() -> Individual:
        one, other = (np.array(parents[k]) for k in rng.integers(len(parents), size=2))
        return kept(np.where(rng.random(n) < 0.5, one, other))

    def mutated() -> Individual:
        parent: Individual = np.array(parents[rng.integers(len(parents))], np.int64)
        return kept(np.where(rng.random(n) < mutation, drawn(), parent))

    living = [kept(drawn()) for _ in range(population)]
    for _ in range(generations):
        for individual in living:
            looked += 1
            key = tuple(individual.tolist())
            seen.setdefault(key, pair_error(individual, e, pair))
        parents = sorted(seen, key=lambda key: seen[key])[:PARENTS]
        living = [crossed() if k % 2 else mutated() for k in range(population)]
    best = np.array(parents[0], np.int64)
    return Solution(best, np.array(seen[parents[0]]), np.array(-np.inf), False, looked)
