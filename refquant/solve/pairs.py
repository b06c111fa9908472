"""One choice for each item where choices of two items interact: quadratic, exactly, in two ways.

Letters: e_ia error of choice a for item i, Q_ia,jb what choices a and b of items i < j add together, c_ia costs, B.

`allocate_pairs` is a mixed-integer programme: y_ia,jb stands for the product of two choices, with
sum_b y_ia,jb = x_ia and sum_a y_ia,jb = x_jb (Adams and Sherali's linearization).  `allocate_pairs_by_search` is a
depth-first search whose bound gives every undecided item its least error with all decided ones and, for pairs of
undecided ones, the least of their table.  Neither shares code with the other.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from ..errors import ArgumentError, complaint
from .allocate import ACCURACY, quiet
from .hull import Array, Integers, checked_tables
from .solution import Solution

__all__ = ["allocate_pairs", "allocate_pairs_by_search", "pair_error"]

MOST_PRODUCTS = 200_000


def _checked(
    error: ArrayLike, pair: ArrayLike, cost: ArrayLike, budget: ArrayLike
) -> tuple[Array, Array, Array, Array]:
    e, costs, budgets = checked_tables(error, cost, budget)
    Q = np.asarray(pair, np.float64)
    if Q.shape != e.shape * 2 or not np.all(np.isfinite(Q)):
        got = f"pair of shape {Q.shape}"
        raise ArgumentError(
            complaint(got, f"finite, of shape {e.shape * 2}: (item, choice, item, choice)", "allocate_pairs")
        )
    i, j = np.triu_indices(len(e), 1)
    upper = np.zeros_like(Q)
    upper[i, :, j, :] = Q[i, :, j, :] + np.swapaxes(Q[j, :, i, :], -1, -2)  # both halves of the table are counted
    return e, upper, costs, budgets


def pair_error(choices: ArrayLike, error: ArrayLike, pair: ArrayLike) -> float:
    """The error of an allocation: its items' and its pairs', both halves of the pair table counted.

    >>> pair_error([0, 1], [[1.0, 0.0], [1.0, 0.0]], np.ones((2, 2, 2, 2)))
    3.0
    """
    a, e, Q = np.asarray(choices, np.int64), np.asarray(error, np.float64), np.asarray(pair, np.float64)
    items = np.arange(len(e))
    both = Q[items[:, None], a[:, None], items, a]
    return float(e[items, a].sum() + both.sum() - np.trace(both))


def allocate_pairs(
    error: ArrayLike, pair: ArrayLike, cost: ArrayLike, budget: ArrayLike, *, tol: float = 0.0
) -> Solution:
    """The choices of least total error, pair terms included, within the budgets: by mixed-integer programme.

    error: shape (items, choices).  pair: shape (items, choices, items, choices); what choices a of i and b of j add is
    pair[i, a, j, b] + pair[j, b, i, a]; the diagonal i = j is not read.  cost, budget, tol and what comes back: as
    `allocate`.  For a few dozen items.

    Raises ArgumentError as `allocate`, for a pair table that does not fit, and for more than 200,000 products.

    >>> error, pair = [[1.0, 0.0], [1.0, 0.0]], np.zeros((2, 2, 2, 2))
    >>> pair[0, 1, 1, 1] = 5.0  # both low together cost 5
    >>> sorted(allocate_pairs(error, pair, [[0, 1], [0, 1]], 2).value.tolist())
    [0, 1]
    """
    e, Q, costs, budgets = _checked(error, pair, cost, budget)
    n, J = e.shape
    i, j = np.nonzero(np.any(Q != 0, axis=(1, 3)))
    if i.size * J * J > MOST_PRODUCTS:
        got = f"{i.size} pairs of {J} choices"
        raise ArgumentError(
            complaint(got, f"at most {MOST_PRODUCTS} products", "allocate_pairs", "leave weak pairs out")
        )
    x, y = e.size, i.size * J * J
    pairs = np.arange(i.size)[:, None, None]
    at = x + (pairs * J + np.arange(J)[:, None]) * J + np.arange(J)  # (pairs, J, J): the place of y_ia,jb
    rows: list[tuple[NDArray[np.int64], Integers, Array]] = []
    one = np.repeat(np.arange(n), J), np.arange(x), np.ones(x)
    rows.append(one)
    for which, axis, offset in ((i, 2, n), (j, 1, n + i.size * J)):
        row = offset + pairs * J + (np.arange(J)[:, None] if axis == 2 else np.arange(J)) + 0 * at
        rows.append((row.ravel(), at.ravel(), np.ones(y)))
        own = offset + np.arange(i.size)[:, None] * J + np.arange(J)
        rows.append((own.ravel(), (which[:, None] * J + np.arange(J)).ravel(), -np.ones(own.size)))
    r, c, v = (np.concatenate(part) for part in zip(*rows, strict=True))
    equal = np.zeros(n + 2 * i.size * J)
    equal[:n] = 1
    objective = np.concatenate([e.ravel(), Q[i, :, j, :].ravel()])
    unit = float(np.abs(objective).max()) or 1.0
    most = np.maximum(costs.max(axis=(1, 2)), 1e-300)
    paid = np.concatenate([costs.reshape(len(costs), -1) / most[:, None], np.zeros((len(costs), y))], axis=1)
    with quiet():
        result = milp(
            objective / unit,
            integrality=np.concatenate([np.ones(x), np.zeros(y)]),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(csr_array((v, (r, c)), shape=(equal.size, x + y)), equal, equal),
                LinearConstraint(paid, -np.inf, budgets / most),
            ],
            options={"mip_rel_gap": max(tol, ACCURACY)},
        )
    chosen = None if result.x is None else result.x[:x].reshape(e.shape).argmax(axis=1)
    if chosen is None or np.any(costs[:, np.arange(n), chosen].sum(axis=1) > budgets):
        got = f"budgets {budgets.tolist()}, each of which the cheapest choices meet alone"
        raise ArgumentError(complaint(got, "met by some allocation together", "allocate_pairs", "raise one of them"))
    value = pair_error(chosen, e, Q)
    slack = ACCURACY * max(abs(value), unit)
    dual = -np.inf if result.mip_dual_bound is None else float(result.mip_dual_bound)
    bound = min(dual * unit - slack, value)
    certified = value - bound <= tol * abs(value) + 3 * slack
    return Solution(chosen.astype(np.int64), np.array(value), np.array(bound), bool(certified), x + y)


def allocate_pairs_by_search(error: ArrayLike, pair: ArrayLike, cost: ArrayLike, budget: ArrayLike) -> Solution:
    """The same by depth-first search; arguments and errors as `allocate_pairs`.  For a dozen items.

    >>> allocate_pairs_by_search([[1.0, 0.0], [2.0, 0.0]], np.zeros((2, 2, 2, 2)), [[0, 1], [0, 1]], 1).value.tolist()
    [0, 1]
    """
    e, Q, costs, budgets = _checked(error, pair, cost, budget)
    n = len(e)
    cheapest = costs.min(axis=2)[:, ::-1].cumsum(axis=1)[:, ::-1]  # of the items from i on
    cheapest = np.concatenate([cheapest, np.zeros((len(costs), 1))], axis=1)
    later = Q.min(axis=(1, 3))  # the least that a pair can add
    among = np.array([later[k:, k:].sum() for k in range(n + 1)])
    best, answer, looked = np.inf, None, 0
    chosen = np.zeros(n, np.int64)

    def descend(k: int, spent: Array, value: float, pending: Array) -> None:
        """pending[i, a]: e_ia with everything that the decided items add to it, for the items from k on."""
        nonlocal best, answer, looked
        if k == n:
            if value < best:
                best, answer = value, chosen.copy()
            return
        for a in np.argsort(pending[k], kind="stable"):
            looked += 1
            paid = spent + costs[:, k, a]
            if np.any(paid + cheapest[:, k + 1] > budgets):
                continue
            following = pending + Q[k, a] if k + 1 < n else pending
            here = value + float(pending[k, a])
            if here + float(following[k + 1 :].min(axis=1).sum()) + among[k + 1] >= best:
                continue
            chosen[k] = a
            descend(k + 1, paid, here, following)

    descend(0, np.zeros(len(costs)), 0.0, e)
    if answer is None:
        got = f"budgets {budgets.tolist()}, each of which the cheapest choices meet alone"
        raise ArgumentError(complaint(got, "met by some allocation together", "allocate_pairs", "raise one of them"))
    value = pair_error(answer, e, Q)
    return Solution(answer, np.array(value), np.array(value), True, looked)
