"""A tensor as a sum of low-bit terms: ladder, greedy, or scales and codes improved jointly.

Letters: x row (the elements that share scales), T terms, C the n x T matrix of codes, alpha the T scales.

Given codes, the best scales are the least-squares solution of C alpha = x.  Given scales, the best codes
are those of the nearest of all sums.  Alternating the two never increases the error, and it starts from
greedy, so the joint sum is never worse than greedy (a test holds it to that).
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.rounding import MODES
from ..errors import ArgumentError, complaint
from ..quant.multiterm import MultiTerm, encode_greedy, encode_ladder, rest_of
from ..quant.quantizer import reals
from ..quant.spec import QuantSpec
from .scale import solve_scale

__all__ = ["METHODS", "certified_scale", "encode_terms"]

Array = NDArray[np.float64]

SUMS = 4096
"""Sums listed at the most when looking for the nearest; beyond that the codes stay greedy."""

ROUNDS = 30


def certified_scale(residual: NDArray[np.float64], spec: QuantSpec) -> Array:
    """The scale of least squared error for each parameter: the scale rule of the greedy sum."""
    return np.asarray(solve_scale(residual, spec=spec).value, np.float64)


def _grids(specs: tuple[QuantSpec, ...]) -> Array:
    """Every combination of codes, one a row: shape (product of the numbers of codes, T)."""
    axes = np.meshgrid(*(np.arange(s.qmin, s.qmax + 1.0) for s in specs), indexing="ij")
    return np.stack([axis.ravel() for axis in axes], axis=1)


def _nearest_codes(x: Array, alpha: Array, grid: Array) -> Array:
    sums = grid @ alpha
    order = np.argsort(sums, kind="stable")
    middles = (sums[order][1:] + sums[order][:-1]) / 2
    return np.asarray(grid[order[np.searchsorted(middles, x)]])


def _improved(x: Array, C: Array, alpha: Array, grid: Array, kept: type[np.floating]) -> tuple[Array, Array]:
    """Codes and scales of one row after alternating to a standstill; scales are floats of the type kept."""
    best = (float(np.sum((x - C @ alpha) ** 2)), C, alpha)
    for _ in range(ROUNDS):
        gram, moment = C.T @ C, C.T @ x
        alpha = np.linalg.lstsq(gram, moment, rcond=None)[0].astype(kept).astype(np.float64)
        if not np.all(alpha > 0):
            break
        C = _nearest_codes(x, alpha, grid)
        error = float(np.sum((x - C @ alpha) ** 2))
        if error >= best[0]:
            break
        best = (error, C, alpha)
    return best[1], best[2]


def _joint(x: NDArray[np.floating], spec: QuantSpec, terms: int, rest: QuantSpec) -> MultiTerm:
    if not spec.rounding.startswith("half_"):
        todo = "use method='greedy' or 'ladder', which keep the spec's rounding"
        raise ArgumentError(complaint(f"rounding={spec.rounding}", "to nearest, for best codes", "joint terms", todo))
    start = encode_greedy(x, spec=spec, terms=terms, rest=rest, scale_rule=certified_scale)
    grid_size = np.prod([2.0**s.bits - s.narrow for s in start.specs])
    if terms == 1 or grid_size > SUMS or not start.codes.size:
        return start
    grid, rows = _grids(start.specs), spec.granularity.rows
    X = rows(np.asarray(x, np.float64))
    inside = rows(np.ones(x.shape)) > 0
    places = rows(np.arange(x.size).reshape(x.shape))
    scales = start.scales.reshape(terms, -1).astype(np.float64)
    codes = start.codes.reshape(terms, -1).copy()
    kept = start.scales.dtype.type
    for i in range(len(X)):
        at = places[i][inside[i]]
        C, scales[:, i] = _improved(X[i][inside[i]], codes[:, at].T.astype(np.float64), scales[:, i], grid, kept)
        codes[:, at] = C.T
    return replace(
        start, codes=codes.reshape(start.codes.shape), scales=scales.astype(kept).reshape(start.scales.shape)
    )


def _greedy(x: NDArray[np.floating], spec: QuantSpec, terms: int, rest: QuantSpec) -> MultiTerm:
    return encode_greedy(x, spec=spec, terms=terms, rest=rest, scale_rule=certified_scale)


def _absmax(x: NDArray[np.floating], spec: QuantSpec, terms: int, rest: QuantSpec) -> MultiTerm:
    return encode_greedy(x, spec=spec, terms=terms, rest=rest)


def _ladder(x: NDArray[np.floating], spec: QuantSpec, terms: int, rest: QuantSpec) -> MultiTerm:
    return encode_ladder(x, certified_scale(np.asarray(x, np.float64), spec), spec=spec, terms=terms, rest=rest)


METHODS: dict[str, Callable[[NDArray[np.floating], QuantSpec, int, QuantSpec], MultiTerm]] = {
    "joint": _joint,
    "greedy": _greedy,
    "greedy-absmax": _absmax,
    "ladder": _ladder,
}


def encode_terms(
    x: ArrayLike, *, spec: QuantSpec, terms: int, method: str = "joint", rest: QuantSpec | None = None
) -> MultiTerm:
    """x as a sum of `terms` low-bit terms: codes, scales, and what they decode to.

    spec: the grid of the first term; rest: that of later terms (default `rest_of(spec)`: unsigned after
    floor, else narrow signed).  Scales are float32 (float64 for a float64 x or a ladder).
    method: "greedy" gives each term the certified scale of what is left; "greedy-absmax" its largest
    magnitude / qmax (error at most |x|_inf / (2 qmax)^T); "ladder" scales in a fixed ratio; "joint" starts
    from greedy and alternates best scales and best codes, while there are at most 4,096 sums.

    Raises ArgumentError for an unknown method, fewer than one term, another rounding than to nearest with
    "joint", or specs that differ in granularity; NotANumberError for values that are not finite.

    >>> spec = QuantSpec(2, narrow=True)
    >>> encode_terms([0.9, -1.1, 0.4], spec=spec, terms=2).codes.tolist()
    [[1, -1, 0], [0, 0, 1]]
    """
    if method not in METHODS:
        raise ArgumentError(complaint(f"method={method!r}", f"one of {', '.join(METHODS)}", "encode_terms"))
    rest = rest or rest_of(spec)
    if rest.granularity != spec.granularity or {spec.rounding, rest.rounding} - set(MODES):
        got = f"granularity {rest.granularity} and rounding {rest.rounding} of the rest"
        raise ArgumentError(complaint(got, f"granularity {spec.granularity}, a deterministic rounding", "encode_terms"))
    return METHODS[method](reals(x), spec, terms, rest)
