"""The scale of least |error|^p or of least largest error, by branch and bound over the scale.

Letters: a = |x|, K the last code of x's side, e the error of x at a scale, [l, h] an interval of scales.

For rounding to nearest, the least error that x can have for any alpha in [l, h] is its distance from the union of
the grids alpha k: 0 if some k <= K has a / h <= k <= a / l; a - K h if a > K h; else, with k = floor(a / h) <
a / l < k + 1, the smaller of a - k h and (k + 1) l - a.  Floor leaves a - k h of a positive x and (k + 1) l - a of a
negative one.  Sums of p-th powers, or the largest, of these bound the objective on [l, h] from below.

Elements whose code is the same at l and h have it between, and the sum of their m |a - alpha k|^p is convex: there
the crossing of the tangents at both ends bounds it better, to second order in h - l.  Intervals whose bound is not
below the best objective seen, less the tolerance, are dropped; the others are halved.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arith.exact import gamma
from ..quant.granularity import PerTensor
from ..quant.quantizer import quantize
from ..quant.spec import QuantSpec
from .affine import ends
from .solution import Solution

__all__ = ["relax_errors", "solve_errors"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

LIMIT = 2**16
"""Intervals that one row may look at; beyond it the bound so far is returned, uncertified."""

ELEMENTS = 2**20
"""Errors computed at once."""


class _Row(NamedTuple):
    """One row: magnitudes, weights, last codes, and whether x rounds up in magnitude or down (None: to nearest)."""

    a: Array
    m: Array
    K: Array
    away: NDArray[np.bool_] | None


def _row(x: Array, m: Array, last: Integers, rounding: str = "half_even") -> _Row:
    """last: the last code above 0 and below 0, less the zero point."""
    away = None
    if not rounding.startswith("half_"):
        toward = {"floor": x < 0, "ceil": x > 0, "toward_zero": x != x, "away_from_zero": x == x}
        away = toward[rounding]
    return _Row(np.abs(x), m, np.where(x > 0, float(last[0]), float(last[1])), away)


def _codes(row: _Row, alpha: Array) -> Array:
    """|code| of each element at each scale, (scales, n), with the float64 quotient."""
    with np.errstate(divide="ignore", invalid="ignore"):  # by a scale of 0; 0 / 0 is a code that equals none
        v = row.a / alpha[:, None]
    k = np.rint(v) if row.away is None else np.where(row.away, np.ceil(v), np.floor(v))
    return np.asarray(np.minimum(k, row.K))


def _errors(row: _Row, alpha: Array) -> Array:
    """|error| of each element at each scale, (scales, n)."""
    return np.asarray(np.abs(row.a - alpha[:, None] * _codes(row, alpha)))


def _least_errors(row: _Row, low: Array, high: Array) -> Array:
    """The least |error| of each element over each interval of scales, (intervals, n)."""
    l, h = low[:, None], high[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is no hit, and has no error anyway
        most = np.minimum(np.floor(row.a / l * (1 + 2.0**-50)), row.K)  # the greatest code that can hit x exactly
    k = np.floor(row.a / h)
    hit = most * h >= row.a
    down, up = row.a - k * h, (k + 1) * l - row.a
    inside = np.minimum(down, up) if row.away is None else np.where(row.away, up, down)
    least = np.where(k >= row.K, row.a - row.K * h, inside)
    return np.asarray(np.where(hit, 0.0, np.maximum(least, 0.0)))


def _measure(errors: Array, m: Array, p: float) -> Array:
    """sum m e^p, or the largest e where m > 0 for p infinite; over the last axis."""
    if np.isinf(p):
        return np.asarray(np.where(m > 0, errors, 0.0).max(axis=-1, initial=0.0))
    return np.asarray(np.sum(m * errors**p, axis=-1))


def _tangents(row: _Row, low: Array, high: Array, k: Array, m: Array, p: float) -> Array:
    """The least that the convex sum m |a - alpha k|^p can be on each interval, by its tangents at both ends."""

    def end(alpha: Array) -> tuple[Array, Array]:
        e = alpha[:, None] * k - row.a
        return np.sum(m * np.abs(e) ** p, axis=1), np.sum(m * p * np.abs(e) ** (p - 1) * np.sign(e) * k, axis=1)

    (F, f), (G, g) = end(low), end(high)
    with np.errstate(divide="ignore", invalid="ignore"):
        cross = F + f * (G - F - g * (high - low)) / (f - g)
    return np.maximum(np.where(f >= 0, F, np.where(g <= 0, G, cross)), 0.0)


def _bounds(row: _Row, low: Array, high: Array, p: float) -> Array:
    """What no scale of each interval is below."""
    least = _least_errors(row, low, high)
    if np.isinf(p):
        return _measure(least, row.m, p)
    k = _codes(row, high)
    same = k == _codes(row, low)
    convex = _tangents(row, low, high, np.where(same, k, 0.0), np.where(same, row.m, 0.0), p)
    return np.maximum(_measure(least, row.m, p), convex + _measure(np.where(same, 0.0, least), row.m, p))


def _blocks(count: int, n: int) -> list[slice]:
    step = max(1, ELEMENTS // max(1, n))
    return [slice(i, i + step) for i in range(0, count, step)]


def _solve_row(row: _Row, p: float, tol: float) -> tuple[float, float, int]:
    """(best scale, lower bound, scales looked at) of a row with some a > 0."""
    top = float(row.a.max())
    edges = np.concatenate([[0.0], np.geomspace(top / (8 * max(1.0, row.K.max())), 2.001 * top, 64)])
    low, high = edges[:-1], edges[1:]
    best, scale, bound, looked = np.inf, top, np.inf, 0
    while low.size:
        tried = np.concatenate([(low + high) / 2, high])
        values = np.concatenate([_measure(_errors(row, tried[b]), row.m, p) for b in _blocks(tried.size, row.a.size)])
        if values.min() < best:
            best, scale = float(values.min()), float(tried[values.argmin()])
        parts = _blocks(low.size, row.a.size)
        least = np.concatenate([_bounds(row, low[b], high[b], p) for b in parts])
        looked += tried.size
        done = (least >= best * (1 - tol)) | (high - low <= 2.0**-50 * high)
        bound = min(bound, float(least[done].min(initial=np.inf)))
        low, high, least = low[~done], high[~done], least[~done]
        if looked > LIMIT:
            return scale, min(bound, float(least.min(initial=np.inf))), looked
        middle = (low + high) / 2
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
    return scale, bound, looked


def _useful(x: Array, m: Array) -> bool:
    return bool(np.any((x != 0) & (m > 0)))


def _rounding(n: int, p: float, objective: float) -> float:
    """How much a computed objective of n errors may be off, but for the rounding of scale times code."""
    return gamma(n + 16) * (p if np.isfinite(p) else 1.0) * objective


def solve_errors(X: Array, M: Array, z: Integers, spec: QuantSpec, tol: float, p: float) -> Solution:
    """The scales of least sum m |x - alpha (c - z)|^p of rows, or of the largest where m > 0 for p infinite.

    z: the zero point of each row.  To a relative gap of tol, or the rounding of x.

    >>> solved = solve_errors(np.array([[1.0, 3.0]]), np.ones((1, 2)), np.array([0]), QuantSpec(2), 1e-9, 1)
    >>> round(float(solved.value[0]), 6), round(float(solved.objective[0]), 6)
    (3.0, 1.0)
    """
    rows, n = X.shape
    value, objective, bound = np.ones(rows), np.zeros(rows), np.zeros(rows)
    looked, certified = 0, True
    last, alone = ends(spec, z, z), replace(spec, granularity=PerTensor())
    for i in range(rows):
        if not _useful(X[i], M[i]):
            continue
        value[i], least, count = _solve_row(_row(X[i], M[i], last[i], spec.rounding), p, tol)
        codes = quantize(X[i], value[i], int(z[i]), spec=alone).astype(np.float64) - z[i]
        objective[i] = float(_measure(np.abs(X[i] - value[i] * codes), M[i], p))
        rounding = _rounding(n, p, float(objective[i])) + 2.0**-50 * least
        bound[i] = min(max(least - rounding, 0.0), objective[i])
        looked += count
        root = 1 / p if np.isfinite(p) else 1.0
        smallest = float(_measure(2.0**-50 * np.abs(X[i]), M[i], p)) ** root  # errors that are the rounding of x itself
        close = bool(objective[i] - bound[i] <= tol * objective[i] + 4 * rounding)
        certified &= close or bool(objective[i] ** root - bound[i] ** root <= smallest)
    return Solution(value, objective, bound, certified, looked)


def relax_errors(X: Array, M: Array, last: Integers, tol: float, p: float) -> Array:
    """What no scale brings these objectives below, when rounding to nearest on codes that end at `last`, (rows, 2)."""
    least = np.zeros(len(X))
    for i in range(len(X)):
        if _useful(X[i], M[i]):
            _, least[i], _ = _solve_row(_row(X[i], M[i], last[i]), p, max(tol, 1e-3))
    return np.maximum(least * (1 - 2.0**-50) - _rounding(X.shape[1], p, 1.0) * least, 0.0)
