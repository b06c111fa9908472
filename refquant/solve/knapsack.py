"""The same allocation by dynamic programme on integer costs: a second exact way, and the whole front at once.

Letters: e_ij error and c_ij cost of choice j for item i, F_i(b) the least error of the first i items at a cost of at
most b: F_i(b) = min over j of F_{i-1}(b - c_ij) + e_ij.  No relaxation, no tolerance: sums of floats and comparisons.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, complaint
from .solution import Solution

__all__ = ["Front", "allocate_integer", "pareto_front"]

Array = NDArray[np.float64]

MOST_CELLS = 2**28
"""Items times budgets that are kept at the most."""


class Front(NamedTuple):
    """The allocations that no other beats in both: total costs rising, total errors falling, one choice an item."""

    cost: NDArray[np.int64]
    error: Array
    choices: NDArray[np.int64]  # (points, items)


def _tables(error: ArrayLike, cost: ArrayLike) -> tuple[Array, NDArray[np.int64]]:
    e, c = np.asarray(error, np.float64), np.asarray(cost)
    if e.ndim != 2 or e.shape != c.shape or not e.size:
        got = f"error of shape {e.shape}, cost of shape {c.shape}"
        raise ArgumentError(complaint(got, "both (items, choices), at least one of each", "allocate_integer"))
    whole = c.astype(np.int64, copy=False) if c.dtype.kind in "iu" else np.rint(c).astype(np.int64)
    if not (np.all(np.isfinite(e)) and np.array_equal(whole, c) and whole.min() >= 0):
        should = "finite errors, integer costs of at least 0"
        raise ArgumentError(complaint("errors or costs that are none", should, "allocate_integer", "scale the costs"))
    return e, whole


def _programme(e: Array, c: NDArray[np.int64], budget: int) -> tuple[Array, NDArray[np.int16]]:
    """F(b) for b = 0..budget over all items, inf where nothing fits; and the choice of each item at each b."""
    if len(e) * (budget + 1) > MOST_CELLS:
        got = f"{len(e)} items and a budget of {budget}"
        should = f"at most {MOST_CELLS} cells together"
        raise ArgumentError(complaint(got, should, "allocate_integer", "divide the costs by a common factor"))
    least = np.zeros(budget + 1)
    chosen = np.zeros((len(e), budget + 1), np.int16)
    for i in range(len(e)):
        following = np.full(budget + 1, np.inf)
        for j in range(e.shape[1]):
            if c[i, j] <= budget:
                trial = np.full(budget + 1, np.inf)
                trial[c[i, j] :] = least[: budget + 1 - c[i, j]] + e[i, j]
                better = trial < following
                following[better], chosen[i, better] = trial[better], j
        least = following
    return least, chosen


def _trace(c: NDArray[np.int64], chosen: NDArray[np.int16], budget: int) -> NDArray[np.int64]:
    choices = np.empty(len(c), np.int64)
    for i in reversed(range(len(c))):
        choices[i] = chosen[i, budget]
        budget -= int(c[i, choices[i]])
    return choices


def allocate_integer(error: ArrayLike, cost: ArrayLike, budget: int) -> Solution:
    """For each item the choice of least total error within a budget, for costs that are integers.

    error, cost: shape (items, choices), costs at least 0.  The answer is exact up to the rounding of sums of errors;
    lower_bound is the objective.  Work and memory: items x choices x budget.

    Raises ArgumentError for tables that do not fit, costs that are no integers, a budget that the cheapest choices
    exceed, and problems too large.

    >>> allocate_integer([[5.0, 1.0], [3.0, 2.0]], [[1, 2], [1, 2]], 3).value.tolist()
    [1, 0]
    """
    e, c = _tables(error, cost)
    least_cost = int(c.min(axis=1).sum())
    if budget < least_cost:
        got = f"budget={budget}, which the cheapest choices exceed by {least_cost - budget}"
        raise ArgumentError(complaint(got, f"at least {least_cost}", "allocate_integer", "raise it by that much"))
    budget = min(int(budget), int(c.max(axis=1).sum()))
    least, chosen = _programme(e, c, budget)
    choices = _trace(c, chosen, budget)
    objective = float(e[np.arange(len(e)), choices].sum())
    return Solution(
        choices, np.array(objective), np.array(min(objective, float(least[-1]))), True, e.size * (budget + 1)
    )


def pareto_front(error: ArrayLike, cost: ArrayLike) -> Front:
    """Every allocation that no other beats in both cost and error, for costs that are integers.

    Arguments and errors as `allocate_integer`.  The first point is the cheapest, the last has the least error.

    >>> front = pareto_front([[5.0, 1.0], [3.0, 2.0]], [[1, 2], [1, 2]])
    >>> front.cost.tolist(), front.error.tolist()
    ([2, 3, 4], [8.0, 4.0, 3.0])
    """
    e, c = _tables(error, cost)
    budget = int(c.max(axis=1).sum())
    least, chosen = _programme(e, c, budget)
    before = np.append(np.inf, least[:-1])
    points = np.flatnonzero(least < before)
    choices = np.array([_trace(c, chosen, int(b)) for b in points], np.int64)
    items = np.arange(len(e))
    return Front(points, e[items, choices].sum(axis=1), choices)
