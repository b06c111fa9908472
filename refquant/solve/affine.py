"""Scale and zero point together: branch and bound over intervals of zero points.

Letters: codes q in [qmin, qmax], z the zero point; a row's codes less z end at qmax - z above 0 and z - qmin below.

For every z in [y, z'] they lie on the grid from qmin - z' to qmax - y, so no scale does better with such a z than
rounding to nearest on that grid with the best scale for it.  Intervals whose bound is not below the best objective
seen are dropped, the others are halved; single zero points are solved as they are.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..quant.spec import QuantSpec
from .solution import Solution

__all__ = ["ends", "solve_affine"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Solve = Callable[[Integers, Integers], Solution]
Relax = Callable[[Integers, Integers], Array]


def ends(spec: QuantSpec, low: Integers, high: Integers) -> Integers:
    """The last codes above 0 and below 0 of the grid that serves every zero point in [low, high]; shape (n, 2).

    >>> ends(QuantSpec(4), np.array([0]), np.array([3])).tolist()
    [[7, 11]]
    """
    return np.stack([spec.qmax - low, high - spec.qmin], axis=-1)


def _first_guess(X: Array, spec: QuantSpec) -> Integers:
    """The zero point that puts the least and the largest element of each row, and 0, on the grid."""
    low, high = np.minimum(X.min(axis=1), 0.0), np.maximum(X.max(axis=1), 0.0)
    extent = np.where(high > low, high - low, 1.0)
    guess = np.rint(spec.qmin - low / extent * (spec.qmax - spec.qmin))
    return np.where(high > low, guess, max(spec.qmin, 0)).astype(np.int64)


def solve_affine(X: Array, spec: QuantSpec, tol: float, solve: Solve, relax: Relax) -> Solution:
    """The scale and the zero point of least objective for each row of X, by two solvers of rows.

    solve: (rows, zero points) -> their solutions.  relax: (rows, last codes (n, 2)) -> what no scale is below when
    rounding to nearest on that grid.
    """
    count = len(X)
    z = _first_guess(X, spec)
    found = solve(np.arange(count), z)
    value, objective, bound = (v.copy() for v in (found.value, found.objective, found.lower_bound))
    certified, looked, tried = found.certified, found.evaluations, z.copy()
    row, low, high = np.arange(count), np.full(count, spec.qmin), np.full(count, spec.qmax)
    while row.size:
        single = low == high
        new = np.flatnonzero(single & (low != tried[row]))
        if new.size:
            found = solve(row[new], low[new])
            certified, looked = certified and found.certified, looked + found.evaluations
            np.minimum.at(bound, row[new], found.lower_bound)
            for i in np.flatnonzero(found.objective < objective[row[new]]).tolist():
                r = row[new[i]]
                if found.objective[i] < objective[r]:  # a row may have several
                    value[r], objective[r], z[r] = found.value[i], found.objective[i], low[new[i]]
        row, low, high = row[~single], low[~single], high[~single]
        if not row.size:
            break
        least = relax(row, ends(spec, low, high))
        looked += row.size
        dropped = least >= objective[row] * (1 - tol)
        np.minimum.at(bound, row[dropped], least[dropped])
        row, low, high = row[~dropped], low[~dropped], high[~dropped]
        middle = (low + high) // 2
        row, low, high = np.tile(row, 2), np.concatenate([low, middle + 1]), np.concatenate([middle, high])
    return Solution(value, objective, np.minimum(bound, objective), certified, looked, z)
