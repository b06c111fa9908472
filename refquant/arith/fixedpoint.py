"""Fixed-point multiplication by a real factor: an int32 multiplier m and a shift, factor = m 2^(shift - 31).

Letters: x int32 accumulators, m multiplier with 2^30 <= m < 2^31 (or 0), shift in -31..30, > 0 to the left.

Two roundings are in use.  `single_round` rounds once, ties toward +inf.  `double_round` rounds twice: the
doubling high product (ties toward +inf for products, by a nudge and a truncating division), then a rounding
shift with ties away from zero.  Where both are exact they agree; they differ by one unit now and then.

Source: gemmlowp, fixedpoint/fixedpoint.h (the two primitives); TOSA 1.0, RESCALE (the names of the modes).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, complaint

__all__ = [
    "MODES_OF_TOSA",
    "double_round",
    "doubling_high_product",
    "int32",
    "quantize_multiplier",
    "rounding_shift",
    "single_round",
]

Integers = NDArray[np.int64]

MODES_OF_TOSA = {"SINGLE_ROUND": "single-round", "DOUBLE_ROUND": "double-round"}
"""TOSA's names -> ours.  Its third, INEXACT_ROUND, leaves the result to the implementation: no single rule has it."""

LOW, HIGH = -(2**31), 2**31 - 1
LEAST_SHIFT, MOST_SHIFT = -31, 30


def int32(x: ArrayLike, what: str, where: str) -> Integers:
    """Integers of 32 bits as int64, in which sums and products of two of them do not overflow; empty stays empty.

    Raises ArgumentError for another type, and for a value beyond 32 bits.

    >>> int32(np.uint8([255]), "x", "here").tolist()
    [255]
    """
    return _integers(x, what, LOW, HIGH, "integers of 32 bits", where, "requantize exactly, or hold sums in 32 bits")


def _integers(x: ArrayLike, what: str, least: int, most: int, should: str, where: str, todo: str = "") -> Integers:
    a = np.asarray(x)
    if a.size and a.dtype.kind not in "iu":
        raise ArgumentError(complaint(f"{what} of type {a.dtype}", should, where))
    if a.size and not (least <= int(a.min()) and int(a.max()) <= most):
        raise ArgumentError(complaint(f"{what} from {a.min()} to {a.max()}", should, where, todo))
    return a.astype(np.int64)


def _shift(x: ArrayLike, where: str) -> Integers:
    return _integers(x, "shift", LEAST_SHIFT, MOST_SHIFT, f"in {LEAST_SHIFT}..{MOST_SHIFT}", where)


def quantize_multiplier(factor: ArrayLike, where: str = "quantize_multiplier") -> tuple[Integers, Integers]:
    """The multiplier and shift nearest to each real factor > 0, ties away from zero; shapes of factor.

    m 2^(shift - 31) differs from the factor by at most 2^-31 of it.
    Raises ArgumentError for a factor that is not finite and > 0, or whose shift is beyond -31..30.

    >>> [tuple(map(int, quantize_multiplier(f))) for f in (0.5, 3.0)]
    [(1073741824, 0), (1610612736, 2)]
    """
    F = np.asarray(factor, np.float64)
    if not np.all(np.isfinite(F) & (F > 0)):
        raise ArgumentError(complaint(f"factor={F}", "finite and > 0", where))
    fraction, shift = np.frexp(F)
    m = np.floor(fraction * 2.0**31 + 0.5)  # both steps are exact below 2^31, where 22 bits are left for the rest
    over = m == 2.0**31
    m, shift = np.where(over, m / 2, m), shift + over
    if not np.all((shift >= LEAST_SHIFT) & (shift <= MOST_SHIFT)):
        raise ArgumentError(complaint(f"factor={F}", "from 2^-32 to below 2^30", where, "requantize exactly"))
    return m.astype(np.int64), shift.astype(np.int64)


def doubling_high_product(a: ArrayLike, b: ArrayLike) -> Integers:
    """The high half of 2 a b, rounded to nearest with ties toward +inf; saturates only at -2^31 times -2^31.

    >>> doubling_high_product([2**30, -(2**30), -(2**31)], [1, 1, -(2**31)]).tolist()
    [1, 0, 2147483647]
    """
    A, B = np.broadcast_arrays(*(int32(v, "a factor", "doubling_high_product") for v in (a, b)))
    overflow = (A == LOW) & (B == LOW)
    product = np.where(overflow, 0, A) * B
    nudged = product + np.where(product >= 0, 2**30, 1 - 2**30)
    truncated = np.sign(nudged) * (np.abs(nudged) >> 31)  # C divides toward zero
    return np.where(overflow, HIGH, truncated)


def rounding_shift(x: ArrayLike, exponent: ArrayLike) -> Integers:
    """x / 2^exponent rounded to nearest, ties away from zero; exponent 0..31.

    >>> rounding_shift([3, -3, 5, -5], 1).tolist()
    [2, -2, 3, -3]
    """
    where = "rounding_shift"
    X, E = np.broadcast_arrays(int32(x, "x", where), _integers(exponent, "exponent", 0, 31, "in 0..31", where))
    mask = (np.int64(1) << E) - 1
    return np.asarray((X >> E) + ((X & mask) > (mask >> 1) + (X < 0)))


def double_round(x: ArrayLike, multiplier: ArrayLike, shift: ArrayLike, where: str = "double_round") -> Integers:
    """x times m 2^(shift - 31) by the doubling high product and a rounding shift.

    Raises ArgumentError for integers beyond 32 bits, a shift beyond -31..30, and where the left shift overflows
    32 bits, which hardware leaves undefined.

    >>> int(double_round(7984, 1583594044, -9))  # the real product is 11.499...
    12
    """
    X, M, S = np.broadcast_arrays(int32(x, "x", where), int32(multiplier, "multiplier", where), _shift(shift, where))
    shifted = X << np.maximum(S, 0)
    if X.size and not (LOW <= shifted.min() and shifted.max() <= HIGH):
        got = f"x << shift from {shifted.min()} to {shifted.max()}, beyond 32 bits"
        raise ArgumentError(complaint(got, "within", where, "use a factor below 1, or round once"))
    return rounding_shift(doubling_high_product(shifted, M), np.maximum(-S, 0))


def single_round(x: ArrayLike, multiplier: ArrayLike, shift: ArrayLike, where: str = "single_round") -> Integers:
    """x times m 2^(shift - 31), rounded once, ties toward +inf.

    Raises ArgumentError for integers beyond 32 bits and a shift beyond -31..30.

    >>> int(single_round(7984, 1583594044, -9))
    11
    """
    X, M, S = np.broadcast_arrays(int32(x, "x", where), int32(multiplier, "multiplier", where), _shift(shift, where))
    total = 31 - S
    return np.asarray((X * M + (np.int64(1) << (total - 1))) >> total)
