"""Tables of errors and costs, item by item: checked, reduced to their lower hulls, traded off as a whole.

Letters: e_ij error and c_ij cost of choice j for item i.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, complaint

__all__ = ["Array", "DualFront", "Integers", "checked_tables", "dual_front", "hulls", "marginal_greedy", "suspicious"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


def checked_tables(
    error: ArrayLike, cost: ArrayLike, budget: ArrayLike, names: Sequence[str] | None = None
) -> tuple[Array, Array, Array]:
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
            raise ArgumentError(complaint(f"{name} of {_name(names, item)}: {table[item]}", "finite", "allocate"))
    for k, least in enumerate(costs.min(axis=2).sum(axis=1)):
        if not least <= budgets[k]:
            which = f"budget {k}" if len(budgets) > 1 else "budget"
            got = f"{which}={budgets[k]:g}, which the cheapest choices exceed by {least - budgets[k]:g}"
            raise ArgumentError(complaint(got, f"at least {least:g}", "allocate", "raise it by that much"))
    return e, costs, budgets


def _name(names: Sequence[str] | None, item: int) -> str:
    return f"item {item}" if names is None else f"item {names[item]}"


# ---- hulls ----------------------------------------------------------------------------------------------------


class Steps(NamedTuple):
    """Moves along items' lower hulls, of falling slope: error saved per unit of cost, cost, error saved."""

    slope: Array
    item: Integers
    choice: Integers
    cost: Array
    saved: Array


def hulls(e: Array, c: Array) -> tuple[Integers, Steps]:
    """The cheapest choice of every item, and all steps along the lower hulls, by falling slope."""
    items = np.arange(len(e))
    now = np.lexsort((e, c), axis=1)[:, 0]
    start = now.copy()
    steps: list[tuple[NDArray[Any], ...]] = [(np.empty(0),) * 5]
    for _ in range(e.shape[1] - 1):
        more, less = c - c[items, now][:, None], e[items, now][:, None] - e
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where((more > 0) & (less > 0), less / more, -1.0)
        best = slope.max(axis=1, keepdims=True)
        then = np.where(slope == best, c, -np.inf).argmax(axis=1)  # of equal slopes the longest step
        moved = np.flatnonzero(best[:, 0] > 0)
        if not moved.size:
            break
        to = then[moved]
        steps.append((best[moved, 0], moved, to, more[moved, to], less[moved, to]))
        now = np.where(best[:, 0] > 0, then, now)
    slope, item, choice, cost, saved = (np.concatenate(v) for v in zip(*steps, strict=True))
    order = np.argsort(-slope, kind="stable")
    item, choice = item[order].astype(np.int64), choice[order].astype(np.int64)
    return start, Steps(slope[order], item, choice, cost[order], saved[order])


# ---- the whole front ------------------------------------------------------------------------------------------


class DualFront(NamedTuple):
    """Allocations on the lower hull of all (cost, error) pairs, cheapest first; its chords bound all others.

    order: (item, choice) of each step from the cheapest allocation; cost and error: after 0, 1, ... steps.
    """

    cheapest: Integers
    order: Integers  # (steps, 2)
    cost: Array
    error: Array

    def choices(self, point: int) -> Integers:
        """The chosen index per item after so many steps."""
        chosen = self.cheapest.copy()
        item, choice = self.order[:point].T
        chosen[item] = choice
        return chosen

    def bound(self, budget: ArrayLike) -> Array:
        """What no allocation within a budget errs less than: on the hull, or on its chord; inf below the cheapest."""
        B = np.asarray(budget, np.float64)
        return np.where(B < self.cost[0], np.inf, np.interp(B, self.cost, self.error))


def dual_front(error: ArrayLike, cost: ArrayLike) -> DualFront:
    """The whole trade of cost for error at once, by duality: every point is optimal for its own cost.

    error, cost: shape (items, choices), finite.  One pass over the items' lower hulls; `DualFront.bound` bounds what
    lies between the points (at most one step of one item away).

    Raises ArgumentError as `allocate`.

    >>> front = dual_front([[5.0, 1.0], [3.0, 2.0]], [[1, 2], [1, 2]])
    >>> front.cost.tolist(), front.error.tolist(), float(front.bound(3.5))
    ([2.0, 3.0, 4.0], [8.0, 4.0, 3.0], 3.5)
    """
    e, costs, _ = checked_tables(error, cost, np.inf)
    start, steps = hulls(e, costs[0])
    items = np.arange(len(e))
    spent = float(costs[0, items, start].sum()) + np.append(0.0, np.cumsum(steps.cost))
    left = float(e[items, start].sum()) - np.append(0.0, np.cumsum(steps.saved))
    return DualFront(start, np.stack([steps.item, steps.choice], axis=1), spent, left)


# ---- what others do -------------------------------------------------------------------------------------------


def marginal_greedy(error: ArrayLike, cost: ArrayLike, budget: float, *, stop: bool = False) -> Integers:
    """The usual heuristic: from the cheapest choices, always the next dearer choice that saves most per unit of cost.

    stop: end at the first step that does not fit, as many tools do; else skip it.  Graded against `allocate`.

    >>> marginal_greedy([[5.0, 1.0], [3.0, 2.0]], [[1, 2], [1, 2]], 3).tolist()
    [1, 0]
    """
    e, costs, budgets = checked_tables(error, cost, budget)
    c, items = costs[0], np.arange(len(e))
    order = np.lexsort((e, c), axis=1)
    E, C = np.take_along_axis(e, order, 1), np.take_along_axis(c, order, 1)
    place, left = np.zeros(len(e), np.int64), float(budgets[0] - C[:, 0].sum())
    blocked = np.zeros(len(e), np.bool_)
    while True:
        able = ~blocked & (place + 1 < e.shape[1])
        if not able.any():
            break
        then = np.minimum(place + 1, e.shape[1] - 1)
        saved, paid = E[items, place] - E[items, then], C[items, then] - C[items, place]
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(able, np.where(paid > 0, saved / paid, np.inf * np.sign(saved)), -np.inf)
        i = int(np.nan_to_num(rate, nan=0.0, posinf=np.finfo(float).max, neginf=-np.finfo(float).max).argmax())
        if rate[i] <= 0:
            break
        if paid[i] > left:
            if stop:
                break
            blocked[i] = True
            continue
        place[i], left = then[i], left - float(paid[i])
    return np.take_along_axis(order, place[:, None], 1)[:, 0]


def suspicious(error: ArrayLike, cost: ArrayLike, names: Sequence[str] | None = None) -> list[str]:
    """One sentence for every item that has a choice which costs more than another and errs more: noise, or a mistake.

    Such choices do no harm to `allocate`, which never takes them.

    >>> suspicious([[1.0, 3.0, 2.0]], [[1, 2, 3]], names=["conv1"])
    ['item conv1: choice 1 costs 2 and errs 3, more than choice 0, which costs 1 and errs 1']
    """
    e, costs, _ = checked_tables(error, cost, np.inf, names)
    found = []
    for i in range(len(e)):
        order = np.lexsort((e[i], costs[0, i]))
        for rank, worse in enumerate(order):
            better = order[:rank]
            better = better[(costs[0, i, better] < costs[0, i, worse]) & (e[i, better] < e[i, worse])]
            if better.size:
                j = int(better[e[i, better].argmin()])
                pair = [f"costs {costs[0, i, k]:g} and errs {e[i, k]:g}" for k in (worse, j)]
                found.append(f"{_name(names, i)}: choice {worse} {pair[0]}, more than choice {j}, which {pair[1]}")
                break
    return found
