"""A tensor as a sum of low-bit terms: ladder, greedy, or scales and codes improved jointly.

Letters: x row (the elements that share scales), T terms, alpha the T scales, L the ratio of a ladder's scales.

`joint` improves many starts by turns (`sums.alternate`) and keeps the best, so it is never worse than greedy (a test
holds it to that).  How far the best can be is for `sums.best_sum` to say.
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
from .scale import least_scales, solve_scale
from .sums import all_codes, alternate, nearest_codes, prefixes, sum_errors

__all__ = ["METHODS", "certified_scale", "encode_each", "encode_terms", "ladder_scale"]

Array = NDArray[np.float64]


def certified_scale(residual: NDArray[np.float64], spec: QuantSpec) -> Array:
    """The scale of least squared error for each parameter: the scale rule of the greedy sum."""
    return np.asarray(solve_scale(residual, spec=spec).value, np.float64)


MOST_LEVELS = 2**15


def ladder_scale(x: Array, spec: QuantSpec, rest: QuantSpec, terms: int) -> Array:
    """The first scale with which a ladder errs least, while it is one uniform quantizer of at most 2^15 codes a side.

    With floor, terms of b bits are a floor quantizer of T b bits; rounding to nearest on symmetric grids they are one
    of L^T levels (proofs/05_terms.py).  Else, and beyond, the certified scale of the first term alone.
    """
    L = rest.qmax - rest.qmin + 1
    alike = (spec.qmin, spec.qmax) == (rest.qmin, rest.qmax) and rest.qmin == -rest.qmax
    if spec.rounding == "floor" and rest.qmin == 0 and L == 2**spec.bits and spec.bits * terms <= 16:
        return certified_scale(x, replace(spec, bits=spec.bits * terms)) * float(L) ** (terms - 1)
    if not (alike and spec.rounding.startswith("half_") and L**terms // 2 <= MOST_LEVELS):
        return certified_scale(x, spec)
    rows = spec.granularity.rows(x)
    fine = least_scales(rows, spec.granularity.rows(np.ones(x.shape)), L**terms // 2)
    return fine.reshape(spec.granularity.parameter_shape(x.shape)) * float(L) ** (terms - 1)


# ---- joint ----------------------------------------------------------------------------------------------------

RATIOS = np.geomspace(0.1, 0.95, 12)  # of consecutive scales
FIRSTS = np.geomspace(0.4, 1.3, 8)  # of the first scale, relative to greedy's
LIKELY = 8
"""How many of these starts are improved."""

JOINT_SUMS = 1024
"""Sums up to which all terms are improved together; beyond that the last ones are greedy."""

FEW_SUMS = 256
"""Sums up to which the grid of starts is tried: it sorts all sums for each."""


def _starts(X: Array, M: Array, first: Array, terms: int, L: int, grid: Array) -> Array:
    """Scales to start from, the best of a grid for each row: shape (starts, rows, T).  first: (rows,)."""
    if len(grid) > FEW_SUMS:
        return np.zeros((0, len(X), terms))
    ratio, factor = (v.ravel() for v in np.meshgrid(np.append(RATIOS, 1 / L), FIRSTS))
    tried = first[:, None, None] * (factor[:, None] * ratio[:, None] ** np.arange(terms))  # (rows, grid, T)
    of = np.repeat(np.arange(len(X)), ratio.size)
    errors = sum_errors(prefixes(X, M), of, tried.reshape(-1, terms), grid).reshape(len(X), -1)
    best = np.argsort(errors, axis=1, kind="stable")[:, :LIKELY]
    return np.moveaxis(np.take_along_axis(tried, best[..., None], 1), 1, 0)


def _better(x: Array, one: MultiTerm, other: MultiTerm) -> MultiTerm:
    """For each parameter the sum that errs less; `one` where they err alike."""
    rows, shape = one.specs[0].granularity.rows, one.counts.shape
    errors = [rows((x - e.decode(np.float64)) ** 2).sum(axis=1).reshape(shape) for e in (one, other)]
    take = errors[1] < errors[0]
    spread = one.specs[0].granularity.spread(take, one.shape)
    return replace(one, codes=np.where(spread, other.codes, one.codes), scales=np.where(take, other.scales, one.scales))


def _improved(x: Array, start: MultiTerm, scales: Array) -> MultiTerm:
    """The best that alternating reaches from these scales, shape (starts, rows, T), or `start` itself.

    Codes are the nearest sums of scales rounded to the type of the start's.
    """
    T, rows, grid = start.terms, start.specs[0].granularity.rows, all_codes(start.specs)
    X, M = rows(x), rows(np.ones(x.shape))
    of = np.tile(np.arange(len(X)), len(scales))
    found, errors = alternate(prefixes(X, M), of, scales.reshape(-1, T), grid)
    best = errors.reshape(len(scales), -1).argmin(axis=0)
    alpha = found.reshape(len(scales), -1, T)[best, np.arange(len(X))].astype(start.scales.dtype)
    codes, places = start.codes.reshape(T, -1).copy(), rows(np.arange(x.size).reshape(x.shape))
    good = np.all(alpha > 0, axis=1)
    for i in np.flatnonzero(good):
        inside = M[i] > 0
        codes[:, places[i][inside]] = nearest_codes(X[i][inside], alpha[i].astype(np.float64), grid).T
    kept = np.where(good, alpha.T, start.scales.reshape(T, -1))
    return _better(
        x, start, replace(start, codes=codes.reshape(start.codes.shape), scales=kept.reshape(start.scales.shape))
    )


def _longer(x: NDArray[np.floating], sums: MultiTerm, rest: QuantSpec) -> MultiTerm:
    """A sum with one more term: what it leaves, quantized with its certified scale."""
    left = np.asarray(x, np.float64) - sums.decode(np.float64)
    more = encode_greedy(left, spec=rest, terms=1, rest=rest, scale_rule=certified_scale)
    kept = sums.scales.dtype
    scale = np.maximum(more.scales.astype(kept), np.finfo(kept).smallest_subnormal)
    return MultiTerm(
        np.concatenate([sums.codes, more.codes.astype(sums.codes.dtype)]),
        np.concatenate([sums.scales, scale]),
        (*sums.specs, rest),
        sums.counts + 1,
    )


def _joint(x: NDArray[np.floating], spec: QuantSpec, terms: int, rest: QuantSpec) -> list[MultiTerm]:
    if not spec.rounding.startswith("half_"):
        todo = "use method='greedy' or 'ladder', which keep the spec's rounding"
        raise ArgumentError(complaint(f"rounding={spec.rounding}", "to nearest, for best codes", "joint terms", todo))
    greedy = _greedy(x, spec, terms, rest)
    found, v = greedy[:1], np.asarray(x, np.float64)
    L = rest.qmax - rest.qmin + 1
    for T in range(2, terms + 1):
        start = _better(v, _longer(x, found[-1], rest), greedy[T - 1])
        if np.prod([2.0**s.bits - s.narrow for s in start.specs]) <= JOINT_SUMS and x.size:
            X, M = (spec.granularity.rows(a) for a in (v, np.ones(x.shape)))
            ladder = ladder_scale(v, spec, rest, T).reshape(-1, 1) * float(L) ** -np.arange(T)
            warm = [e.scales.reshape(T, -1).T.astype(np.float64) for e in (start, greedy[T - 1])]
            grid = _starts(X, M, warm[1][:, 0], T, L, all_codes(start.specs))
            start = _improved(v, start, np.concatenate([np.stack([*warm, ladder]), grid]))
        found.append(start)
    return found


# ---- methods --------------------------------------------------------------------------------------------------


def _greedy(x: NDArray[np.floating], spec: QuantSpec, terms: int, rest: QuantSpec) -> list[MultiTerm]:
    whole = encode_greedy(x, spec=spec, terms=terms, rest=rest, scale_rule=certified_scale)
    return [whole.truncated(t) for t in range(1, terms + 1)]


def _absmax(x: NDArray[np.floating], spec: QuantSpec, terms: int, rest: QuantSpec) -> list[MultiTerm]:
    whole = encode_greedy(x, spec=spec, terms=terms, rest=rest)
    return [whole.truncated(t) for t in range(1, terms + 1)]


def _ladder(x: NDArray[np.floating], spec: QuantSpec, terms: int, rest: QuantSpec) -> list[MultiTerm]:
    v = np.asarray(x, np.float64)
    return [
        encode_ladder(x, ladder_scale(v, spec, rest, t), spec=spec, terms=t, rest=rest) for t in range(1, terms + 1)
    ]


METHODS: dict[str, Callable[[NDArray[np.floating], QuantSpec, int, QuantSpec], list[MultiTerm]]] = {
    "joint": _joint,
    "greedy": _greedy,
    "greedy-absmax": _absmax,
    "ladder": _ladder,
}


def encode_each(
    x: ArrayLike, *, spec: QuantSpec, terms: int, method: str = "joint", rest: QuantSpec | None = None
) -> list[MultiTerm]:
    """The sums of 1, 2, ... `terms` terms that `encode_terms` gives, found together; arguments and errors are its.

    >>> [len(e.codes) for e in encode_each([0.9, -1.1, 0.4], spec=QuantSpec(2), terms=3)]
    [1, 2, 3]
    """
    if method not in METHODS:
        raise ArgumentError(complaint(f"method={method!r}", f"one of {', '.join(METHODS)}", "encode_terms"))
    if type(terms) is not int or terms < 1:
        raise ArgumentError(complaint(f"terms={terms!r}", "an integer of at least 1", "encode_terms"))
    rest = rest or rest_of(spec)
    if rest.granularity != spec.granularity or {spec.rounding, rest.rounding} - set(MODES):
        got = f"granularity {rest.granularity} and rounding {rest.rounding} of the rest"
        raise ArgumentError(complaint(got, f"granularity {spec.granularity}, a deterministic rounding", "encode_terms"))
    return METHODS[method](reals(x), spec, terms, rest)


def encode_terms(
    x: ArrayLike, *, spec: QuantSpec, terms: int, method: str = "joint", rest: QuantSpec | None = None
) -> MultiTerm:
    """x as a sum of `terms` low-bit terms: codes, scales, and what they decode to.

    spec: the grid of the first term; rest: that of later terms (default `rest_of(spec)`: unsigned after
    floor, else narrow signed).  Scales are float32 (float64 for a float64 x or a ladder).
    method: "greedy" gives each term the certified scale of what is left; "greedy-absmax" its largest
    magnitude / qmax (error at most |x|_inf / (2 qmax)^T); "ladder" scales in a fixed ratio, the first one found for
    the whole (`ladder_scale`); "joint" improves scales and codes by turns, from the joint sum with one term less, from
    greedy, from the ladder and from a grid, while there are at most 1,024 sums: its error is never above greedy's and
    never rises with the number of terms.

    Raises ArgumentError for an unknown method, fewer than one term, another rounding than to nearest with
    "joint", or specs that differ in granularity; NotANumberError for values that are not finite.

    >>> spec = QuantSpec(2, narrow=True)
    >>> encode_terms([1.0, -1.0, 0.25], spec=spec, terms=2).codes.tolist()
    [[1, -1, 0], [0, 0, 1]]
    """
    return encode_each(x, spec=spec, terms=terms, method=method, rest=rest)[-1]
