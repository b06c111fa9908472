"""One choice for each item, least total error within a budget: a multiple-choice knapsack.

Letters: e_ij error and c_ij cost of choice j for item i, B budget, lambda the price of cost.

The Lagrangian dual, max over lambda of sum_i min_j (e_ij + lambda c_ij) - lambda B, is reached by walking
the lower convex hulls of all items' (cost, error) points in order of steepest descent; it bounds every
allocation from below.  The walk itself is a first answer.  A choice whose e_ij + lambda c_ij is above the item's
least by more than the gap between that answer and the bound is in no better one: what is left, the core, is small,
and the mixed-integer programme closes the gap on it.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

from ..errors import ArgumentError, complaint
from .hull import Array, Integers, checked_tables, hulls
from .solution import Solution

__all__ = ["ACCURACY", "allocate", "quiet"]

ACCURACY = 1e-9
"""Of the objective: what the integer programme's arithmetic is trusted to."""

FIRST_CORE = 600
"""Choices beside the first answer's, those of least priced error, among which it is improved first."""


def _dual(e: Array, costs: Array, budgets: Array, prices: Array) -> tuple[float, Array]:
    """The Lagrangian bound at some prices, and by how much each choice is above its item's least: (items, choices)."""
    priced = e + np.tensordot(prices, costs, 1)
    least = priced.min(axis=1)
    return float(least.sum() - prices @ budgets), priced - least[:, None]


def _walk(e: Array, c: Array, budget: float) -> tuple[Integers, float]:
    """The hull walk within the budget, skipping steps that do not fit, and the price of its first such step."""
    chosen, steps = hulls(e, c)
    left = budget - float(c[np.arange(len(e)), chosen].sum())
    spent = np.cumsum(steps.cost)
    fits = int(np.searchsorted(spent, left, side="right"))
    chosen[steps.item[:fits]] = steps.choice[:fits]  # in order: an item's last step counts
    price = float(steps.slope[fits]) if fits < len(spent) else 0.0
    left -= float(spent[fits - 1]) if fits else 0.0
    blocked: set[int] = set()
    least = float(steps.cost[fits:].min(initial=np.inf))
    for s in range(fits, len(spent)):
        if left < least:
            break
        item = int(steps.item[s])
        if item in blocked or steps.cost[s] > left:
            blocked.add(item)
            continue
        chosen[item], left = steps.choice[s], left - float(steps.cost[s])
    return chosen, price


def _relaxed(e: Array, costs: Array, budgets: Array) -> tuple[Integers, Array]:
    """A rounding of the linear relaxation under several budgets, and its prices.

    At most as many items as there are budgets are divided between choices; those take their cheapest.
    """
    items, choices = e.shape
    one_each: Any = csr_array((np.ones(e.size), (np.repeat(np.arange(items), choices), np.arange(e.size))))
    paid = costs.reshape(len(costs), -1)
    relaxed = linprog(e.ravel(), A_ub=paid, b_ub=budgets, A_eq=one_each, b_eq=np.ones(items), bounds=(0, 1))
    if relaxed.x is None:
        return np.zeros(items, np.int64), np.zeros(len(budgets))
    share = relaxed.x.reshape(e.shape)
    cheapest = (costs / costs.max(axis=(1, 2), keepdims=True)).sum(axis=0).argmin(axis=1)
    chosen = np.where(share.max(axis=1) > 1 - 1e-6, share.argmax(axis=1), cheapest)
    return chosen, np.maximum(-relaxed.ineqlin.marginals, 0.0)


@contextmanager
def quiet() -> Iterator[None]:
    """What is printed to the process's standard output goes to standard error: HiGHS prints a line of its own there."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _programme(
    e: Array, costs: Array, budgets: Array, open_: NDArray[np.bool_], tol: float, total: float
) -> tuple[Integers | None, float]:
    """The integer programme's choices among those left open (None if it finds none) and its bound.

    costs: (budgets, items, choices).  Items with one open choice are no variables.
    """
    free = open_.sum(axis=1) > 1
    fixed = np.where(free, 0, open_.argmax(axis=1))
    items = np.flatnonzero(~free)
    base = float(e[items, fixed[items]].sum())
    left = budgets - costs[:, items, fixed[items]].sum(axis=1)
    at, choice = np.nonzero(open_ & free[:, None])
    if not at.size:
        return (fixed, base) if np.all(left >= 0) else (None, np.inf)
    of = np.cumsum(free)[at] - 1
    one_each = csr_array((np.ones(at.size), (of, np.arange(at.size))))
    part = max(total - base, 1e-9 * total)  # the solver's gap is relative to the free items' error
    unit = part / 1e5 or 1.0  # and it stops at an absolute gap of 1e-6 of its own units
    paid = costs[:, at, choice]
    most = np.maximum(paid.max(axis=1), 1e-300)
    within = LinearConstraint(paid / most[:, None], -np.inf, left / most)
    with quiet():
        result = milp(
            e[at, choice] / unit,
            integrality=np.ones(at.size, np.int64),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), within],
            options={"mip_rel_gap": max(tol, ACCURACY) * total / part if total else 0.0},
        )
    if result.x is None:
        return None, np.inf if result.status == 2 else -np.inf  # 2: proved infeasible
    found = fixed.copy()
    taken = result.x > 0.5
    found[at[taken]] = choice[taken]
    return found, float(result.mip_dual_bound) * unit + base


def _reachable(c: Array, budget: float) -> float:
    """The greatest sum of costs within a budget that integer costs can make, by their greatest common divisor."""
    if not (np.array_equal(c, np.rint(c)) and np.abs(c).max() < 2**53 and np.abs(budget) < 2**53):
        return budget
    least = c.min(axis=1, keepdims=True)
    unit, base = int(np.gcd.reduce((c - least).astype(np.int64), axis=None)), int(least.sum())
    return float(base + (int(np.floor(budget)) - base) // unit * unit) if unit else budget


def allocate(
    error: ArrayLike, cost: ArrayLike, budget: ArrayLike, *, tol: float = 0.0, names: Sequence[str] | None = None
) -> Solution:
    """For each item the choice that makes the total error least while every total cost stays within its budget.

    error: shape (items, choices), finite.  cost: the same shape and one budget, or shape (budgets, items, choices) and
    a budget for each.  value: chosen index per item; objective: total error; lower_bound: no allocation within the
    budgets has less.  tol: the relative gap at which to stop; with the default 0 the integer programme runs to its own
    accuracy, and `certified` says that the gap is at most tol plus 1e-9 of the objective (the accuracy of the
    programme's arithmetic).  names: of the items, for messages.

    Raises ArgumentError for tables that are not finite or differ in shape (the first bad item is named), for a budget
    that even the cheapest choices exceed (which one, and by how much), and for budgets that no allocation meets
    together.  Source: Sinha and Zoltners 1979, The multiple-choice knapsack problem.

    >>> best = allocate([[5.0, 1.0], [3.0, 2.0]], [[1, 2], [1, 2]], budget=3)
    >>> best.value.tolist(), float(best.objective), best.certified
    ([1, 0], 4.0, True)
    """
    e, costs, budgets = checked_tables(error, cost, budget, names)
    budgets = np.array([_reachable(c, B) for c, B in zip(costs, budgets.tolist(), strict=True)])
    items = np.arange(len(e))
    walks = [_walk(e, c, float(B)) for c, B in zip(costs, budgets, strict=True)]
    prices = np.array([walks[0][1]])
    if len(budgets) > 1:
        rounded, prices = _relaxed(e, costs, budgets)
        walks.append((rounded, 0.0))
    bound, above = _dual(e, costs, budgets, prices)
    fitting = [w[0] for w in walks if np.all(costs[:, items, w[0]].sum(axis=1) <= budgets)]
    chosen = min(fitting, key=lambda w: float(e[items, w].sum())) if fitting else None
    objective = np.inf if chosen is None else float(e[items, chosen].sum())
    looked = costs.size
    for core in (len(e) + FIRST_CORE, e.size):  # few choices first: a better answer makes the core that is left small
        total = abs(objective) if chosen is not None else float(np.abs(e).max(axis=1).sum())
        accuracy = ACCURACY * total if chosen is not None else 0.0
        gap = objective - bound
        if chosen is not None and gap <= tol * total + accuracy:
            break
        open_ = above <= gap + accuracy if chosen is not None else np.ones(e.shape, np.bool_)
        if chosen is not None and core < open_.sum():
            open_ &= above <= np.partition(above.ravel(), core - 1)[core - 1]
            open_[items, chosen] = True
        elif core < e.size:
            continue
        better, dual = _programme(e, costs, budgets, open_, tol, total)
        looked += int(open_.sum())
        if better is not None and np.all(costs[:, items, better].sum(axis=1) <= budgets):
            improved = float(e[items, better].sum())
            if improved <= objective:
                chosen, objective = better.astype(np.int64), improved
        if core == e.size:
            bound = max(bound, min(dual - ACCURACY * abs(objective), objective))
    if chosen is None:
        got = f"budgets {budgets.tolist()}, each of which the cheapest choices meet alone"
        raise ArgumentError(complaint(got, "met by some allocation together", "allocate", "raise one of them"))
    certified = objective - bound <= (tol + 2 * ACCURACY) * abs(objective)
    return Solution(chosen, np.array(objective), np.array(min(bound, objective)), bool(certified), looked)
