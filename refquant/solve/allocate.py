"""One choice for each item, least total error within a budget: a multiple-choice knapsack.

Letters: e_ij error and c_ij cost of choice j for item i, B budget, lambda the price of cost.

The Lagrangian dual, max over lambda of sum_i min_j (e_ij + lambda c_ij) - lambda B, is reached by walking
the lower convex hulls of all items' (cost, error) points in order of steepest descent; it bounds every
allocation from below.  The walk itself is a first answer; the mixed-integer programme closes the gap.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from ..errors import ArgumentError, complaint
from .solution import Solution

__all__ = ["allocate"]

Array = NDArray[np.float64]


class _Step(NamedTuple):
    slope: float  # error saved per unit of cost
    item: int
    choice: int


def _hull_steps(e: Array, c: Array, item: int) -> tuple[int, list[_Step]]:
    """The cheapest choice of an item, and the steps along its lower hull, of falling slope."""
    order = np.lexsort((e, c))
    hull = [int(order[0])]
    for j in order[1:]:
        if e[j] >= e[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(e, c, hull[-1], j) >= _slope(e, c, hull[-2], hull[-1]):
            hull.pop()
        if c[j] == c[hull[-1]]:
            hull[-1] = int(j)
        else:
            hull.append(int(j))
    steps = [_Step(_slope(e, c, a, b), item, b) for a, b in pairwise(hull)]
    return hull[0], steps


def _slope(e: Array, c: Array, a: int, b: int) -> float:
    with np.errstate(divide="ignore"):
        return float((e[a] - e[b]) / (c[b] - c[a]))


def _walk(e: Array, c: Array, budget: float) -> tuple[NDArray[np.int64], float]:
    """The hull walk within the budget, skipping steps that do not fit, and the Lagrangian bound."""
    starts, steps = zip(*(_hull_steps(e[i], c[i], i) for i in range(len(e))), strict=True)
    chosen = np.array(starts, np.int64)
    items = np.arange(len(e))
    spent = float(c[items, chosen].sum())
    price = 0.0
    blocked: set[int] = set()
    for step in sorted((s for item in steps for s in item), key=lambda s: -s.slope):
        extra = float(c[step.item, step.choice] - c[step.item, chosen[step.item]])
        if step.item in blocked or spent + extra > budget:
            price = price or step.slope  # the first step that does not fit sets the price
            blocked.add(step.item)
            continue
        chosen[step.item] = step.choice
        spent += extra
    bound = float((e + price * c).min(axis=1).sum() - price * budget)
    return chosen, bound


def _programme(
    e: Array, costs: Array, budgets: Array, tol: float, total: float
) -> tuple[NDArray[np.int64] | None, float]:
    """The integer programme's choices (None if it finds none) and its bound; costs: (budgets, items, choices)."""
    items, choices = e.shape
    rows = np.repeat(np.arange(items), choices)
    one_each = csr_array((np.ones(items * choices), (rows, np.arange(items * choices))))
    unit = total / 1e5 or 1.0  # the solver also stops at an absolute gap of 1e-6 of its own units
    result = milp(
        e.ravel() / unit,
        integrality=np.ones(e.size, np.int64),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs.reshape(len(costs), -1), -np.inf, budgets),
        ],
        options={"mip_rel_gap": tol},
    )
    if result.x is None:
        return None, np.inf if result.status == 2 else -np.inf  # 2: proved infeasible
    return result.x.reshape(e.shape).argmax(axis=1), float(result.mip_dual_bound) * unit


def _checked(error: ArrayLike, cost: ArrayLike, budget: ArrayLike) -> tuple[Array, Array, Array]:
    """Errors (items, choices), costs (budgets, items, choices) and budgets (budgets,)."""
    e, c, B = (np.asarray(v, np.float64) for v in (error, cost, budget))
    costs, budgets = c[None] if c.ndim == 2 else c, np.atleast_1d(B)
    if e.ndim != 2 or costs.shape[1:] != e.shape or costs.shape[:1] != budgets.shape or not costs.size:
        got = f"error of shape {e.shape}, cost of shape {c.shape}, budget of shape {B.shape}"
        should = "(items, choices) twice and a number, or costs of shape (budgets, items, choices) and (budgets,)"
        raise ArgumentError(complaint(got, should, "allocate"))
    named = ("cost",) if c.ndim == 2 else tuple(f"cost {k}" for k in range(len(costs)))
    for name, table in (("error", e), *zip(named, costs, strict=True)):
        if not np.all(np.isfinite(table)):
            item = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
            raise ArgumentError(complaint(f"{name} of item {item}: {table[item]}", "finite", "allocate"))
    for k, least in enumerate(costs.min(axis=2).sum(axis=1)):
        if not least <= budgets[k]:
            which = f"budget {k}" if len(budgets) > 1 else "budget"
            got = f"{which}={budgets[k]:g}, which the cheapest choices exceed by {least - budgets[k]:g}"
            raise ArgumentError(complaint(got, f"at least {least:g}", "allocate", "raise it by that much"))
    return e, costs, budgets


def allocate(error: ArrayLike, cost: ArrayLike, budget: ArrayLike, *, tol: float = 0.0) -> Solution:
    """For each item the choice that makes the total error least while every total cost stays within its budget.

    error: shape (items, choices), finite.  cost: the same shape and one budget, or shape (budgets, items, choices) and
    a budget for each.  value: chosen index per item; objective: total error; lower_bound: no allocation within the
    budgets has less.  tol: the relative gap at which to stop; with the default 0 the integer programme runs to its own
    accuracy, and `certified` says that the gap is at most tol plus 1e-9 of the objective (the accuracy of the
    programme's arithmetic).

    Raises ArgumentError for tables that are not finite or differ in shape (the first bad item is named), for a budget
    that even the cheapest choices exceed (which one, and by how much), and for budgets that no allocation meets
    together.  Source: Sinha and Zoltners 1979, The multiple-choice knapsack problem.

    >>> best = allocate([[5.0, 1.0], [3.0, 2.0]], [[1, 2], [1, 2]], budget=3)
    >>> best.value.tolist(), float(best.objective), best.certified
    ([1, 0], 4.0, True)
    """
    e, costs, budgets = _checked(error, cost, budget)
    items = np.arange(len(e))
    walks = [_walk(e, c, float(B)) for c, B in zip(costs, budgets, strict=True)]
    bound = max(walk[1] for walk in walks)  # leaving out the other budgets can only lower the error
    fitting = [w[0] for w in walks if np.all(costs[:, items, w[0]].sum(axis=1) <= budgets)]
    chosen = min(fitting, key=lambda w: float(e[items, w].sum())) if fitting else None
    objective = np.inf if chosen is None else float(e[items, chosen].sum())
    looked = costs.size
    accuracy = 1e-9 * abs(objective) if chosen is not None else 0.0
    if chosen is None or objective - bound > tol * abs(objective) + accuracy:
        total = abs(objective) if chosen is not None else float(np.abs(e).max(axis=1).sum())
        better, dual = _programme(e, costs, budgets, tol, total)
        looked += costs.size
        fits = better is not None and bool(np.all(costs[:, items, better].sum(axis=1) <= budgets))
        if better is not None and fits and e[items, better].sum() <= objective:
            chosen, objective = better.astype(np.int64), float(e[items, better].sum())
            accuracy = 1e-9 * abs(objective)
        bound = max(bound, min(dual - accuracy, objective))
    if chosen is None:
        got = f"budgets {budgets.tolist()}, each of which the cheapest choices meet alone"
        raise ArgumentError(complaint(got, "met by some allocation together", "allocate", "raise one of them"))
    certified = objective - bound <= tol * abs(objective) + 2 * accuracy
    return Solution(chosen, np.array(objective), np.array(min(bound, objective)), bool(certified), looked)
