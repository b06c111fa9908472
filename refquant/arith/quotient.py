"""The quotient x / scale in a named arithmetic (clause Q2), and the zero point added in it (clause Q3).

Letters: x input, s scale, z zero point or None, all reals held in floats.

The rounding modes of clause Q4 only ask where a number lies among the multiples of 1/2.  So the
`exact` quotient is returned as its *position*: a float64 that lies on the same side of (or on) every
multiple of 1/2 as the rational number x/s + z.  Wherever the float64 quotient is farther than its
rounding error from such a multiple it is the position already; near one the exact remainder decides
(C's fmod is exact).  For float32 operands and |x/s| < 2^29 no element is ever near without being on
it (the double-division theorem), so the float64 quotient serves as it is.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, complaint
from .exact import round_to_odd, two_sum
from .formats import FORMATS

__all__ = ["EXACT_LIMIT", "QUOTIENTS", "Quotient", "exact_position", "position_of"]

Reals: TypeAlias = NDArray[Any]
Quotient = Callable[[Reals, Reals, Reals | None], Reals]

EXACT_LIMIT = 2.0**50
"""Positions of quotients below this magnitude are exact; above it only sign and "at least this" are."""

_DOUBLE_DIVISION_LIMIT = 2.0**29


def position_of(q: Fraction) -> float:
    """A float64 with the position of a rational among the multiples of 1/2, for |q| < 2^50.

    >>> position_of(Fraction(1, 3)), position_of(Fraction(-5, 2)), position_of(Fraction(7))
    (0.25, -2.5, 7.0)
    """
    twice = abs(2 * q)
    n = twice.__floor__()
    magnitude = n / 2 + (0.25 if twice != n else 0.0)
    return -magnitude if q < 0 else magnitude


def _quarters(q: NDArray[np.float64]) -> NDArray[np.float64]:
    """`position_of` over an array: multiples of 1/2 stay, the open intervals between go to their middle."""
    n = np.floor(2 * np.abs(q))
    return np.asarray(np.copysign(n / 2 + np.where(2 * np.abs(q) != n, 0.25, 0.0), q))


def _remainder_position(x: NDArray[np.float64], s: NDArray[np.float64]) -> NDArray[np.float64]:
    magnitude = np.abs(x)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        rest = np.fmod(magnitude, s)  # exact
        n = np.rint((magnitude - rest) / s)  # an exact multiple of s; the quotient errs by < 1/4 below 2^50
        side = np.sign(2 * rest - s)  # 2 * rest is exact or infinite; a difference of floats has the right sign
    r = np.where(rest == 0, 0.0, 0.5 + 0.25 * side)
    return np.asarray(np.copysign(np.where(np.isfinite(n), n + r, np.inf), x))


def exact_position(x: Reals, s: Reals, z: Reals | None = None) -> NDArray[np.float64]:
    """The position of the rational x/s + z among the multiples of 1/2, as float64.

    x and s broadcast; s > 0 and finite.  Infinite x gives the same infinity, NaN gives NaN.  Exact for
    |x/s| < 2^50 (`EXACT_LIMIT`); beyond it the result has the right sign and at least that magnitude.

    >>> exact_position(np.array([1.0, 1.5]), np.array(0.1)).tolist()  # 0.1 is a little above 1/10
    [9.75, 14.75]
    """
    X, S = np.asarray(x, np.float64), np.asarray(s, np.float64)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        q = np.asarray(X / S)
        largest = np.max(np.abs(q), initial=0.0)
        narrow = x.dtype.itemsize <= 4 and bool(np.all(S.astype(np.float32) == S))
        if not (narrow and largest < _DOUBLE_DIVISION_LIMIT):
            near = np.abs(2 * q - np.rint(2 * q)) <= 2 * np.spacing(np.abs(q))
            near = (near | (np.abs(q) >= _DOUBLE_DIVISION_LIMIT)) & np.isfinite(X)
            if near.any():
                q[near] = _remainder_position(*(np.broadcast_to(v, q.shape)[near] for v in (X, S)))
        return q if z is None else _add_exactly(q, X, S, np.asarray(z, np.float64))


def _add_exactly(
    q: NDArray[np.float64], X: NDArray[np.float64], S: NDArray[np.float64], z: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The position of x/s + z from the position q of x/s."""
    if np.all(2 * z == np.rint(2 * z)) and np.all(np.abs(z) < EXACT_LIMIT / 2):
        return np.asarray(_quarters(q) + z)  # translation by a multiple of 1/2
    v = np.asarray(X / S + z)
    near = np.abs(2 * v - np.rint(2 * v)) <= 2 * (np.spacing(np.abs(q)) + np.spacing(np.abs(v)))
    near &= np.isfinite(v) & (np.abs(v) < EXACT_LIMIT)
    exact = [a[near].tolist() for a in np.broadcast_arrays(X, S, z, subok=True)] if near.any() else [[], [], []]
    v[near] = [position_of(Fraction(a) / Fraction(b) + Fraction(c)) for a, b, c in zip(*exact, strict=True)]
    return v


def _within(good: NDArray[np.bool_], converted: Reals, original: Reals, what: str, name: str) -> Reals:
    if not np.all(good):
        got = f"{what}={np.broadcast_to(original, good.shape)[~good].flat[0]!s}"
        got += f", which becomes {converted[~good].flat[0]!s} in {name}"
        should = "finite and > 0 in that arithmetic" if what == "scale" else "finite in that arithmetic"
        raise ArgumentError(complaint(got, should, "clause Q2", "use a wider quotient"))
    return converted


def _scale_in(name: str, s: Reals) -> Reals:
    converted = FORMATS[name](s)
    return _within(np.isfinite(converted) & (converted > 0), converted, s, "scale", name)


def _zero_point_in(name: str, z: Reals) -> Reals:
    converted = FORMATS[name](z)
    return _within(np.isfinite(converted), converted, z, "zero_point", name)


def _rounded(name: str) -> Quotient:
    """Operands converted to a format, one correctly rounded division, one correctly rounded addition.

    The narrow formats compute in a wider one with more than twice their digits and round again, which
    is innocuous for a quotient and a sum (Figueroa 1995).
    """
    convert = FORMATS[name]
    wide = np.float64 if name == "bfloat16" else None

    def quotient(x: Reals, s: Reals, z: Reals | None = None) -> Reals:
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            q = convert(np.divide(convert(x), _scale_in(name, s), dtype=wide))
            return q if z is None else convert(np.add(q, _zero_point_in(name, z), dtype=wide))

    return quotient


def _reciprocal_float32(x: Reals, s: Reals, z: Reals | None = None) -> Reals:
    """x times the rounded reciprocal of s, each step rounded to float32 (deviation D04)."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        inverse = np.asarray(np.float32(1) / _scale_in("float32", s))
        _within(np.isfinite(inverse), inverse, s, "scale", "the float32 reciprocal")
        q = np.asarray(FORMATS["float32"](x) * inverse)
        return q if z is None else np.asarray(q + _zero_point_in("float32", z))


def _fused_reciprocal_float32(x: Reals, s: Reals, z: Reals | None = None) -> Reals:
    """x times the rounded reciprocal of s, plus z, in one float32 rounding: a fused multiply-add."""
    if z is None:
        return _reciprocal_float32(x, s)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        inverse = np.asarray(np.float32(1) / _scale_in("float32", s))
        _within(np.isfinite(inverse), inverse, s, "scale", "the float32 reciprocal")
        p = np.asarray(FORMATS["float32"](x).astype(np.float64) * inverse)  # exact: 24 + 24 bits
        return FORMATS["float32"](round_to_odd(*two_sum(p, _zero_point_in("float32", z).astype(np.float64))))


QUOTIENTS: dict[str, Quotient] = {
    "exact": exact_position,
    "float64": _rounded("float64"),
    "float32": _rounded("float32"),
    "float16": _rounded("float16"),
    "bfloat16": _rounded("bfloat16"),
    "reciprocal-float32": _reciprocal_float32,
    "fused-reciprocal-float32": _fused_reciprocal_float32,
}
