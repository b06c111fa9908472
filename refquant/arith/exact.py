"""Products and sums whose rounding is known: error-free transformations and one-rounding products.

Source: Dekker 1971 (splitting, product), Knuth 1969 (two-sum), Boldo and Melquiond 2008 (round to odd).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formats import FORMATS

__all__ = ["UNIT", "gamma", "product", "round_to_odd", "running_sum", "running_sum_error", "two_product", "two_sum"]

UNIT = 2.0**-53
"""The unit roundoff u of float64: one correctly rounded operation errs by at most u, relatively."""

_SPLITTER = 2.0**27 + 1


def two_sum(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(s, e) with s = fl(a + b) and s + e = a + b exactly, barring overflow.

    >>> s, e = two_sum(np.array(1.0), np.array(2.0**-60))
    >>> float(s), float(e) == 2.0**-60
    (1.0, True)
    """
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


def _split(a: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    c = _SPLITTER * a
    high = c - (c - a)
    return high, a - high


def two_product(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(p, e) with p = fl(a b) and p + e = a b exactly, for |a|, |b| < 2^995 and |a b| > 2^-968.

    >>> p, e = two_product(np.array(1 + 2.0**-52), np.array(1 + 2.0**-52))
    >>> float(e) == 2.0**-104
    True
    """
    p = a * b
    (a1, a2), (b1, b2) = _split(a), _split(b)
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


def round_to_odd(v: NDArray[np.float64], e: NDArray[np.float64]) -> NDArray[np.float64]:
    """v + e, a float64 and the rest below its last bit, rounded to odd: where e is not 0 the last bit is made 1.

    Rounding the result to a format with at least two digits fewer is rounding v + e itself.

    >>> v = round_to_odd(np.array(1.0), np.array(2.0**-60))
    >>> bool(1 < v < 1 + 2.0**-51)
    True
    """
    even = (v.view(np.int64) & 1) == 0
    inexact = np.isfinite(v) & np.isfinite(e) & (e != 0) & even
    return np.where(inexact, np.nextafter(v, np.where(e > 0, np.inf, -np.inf)), v)


def product(a: NDArray[Any], b: NDArray[Any], to: str = "float32") -> NDArray[Any]:
    """a times b with one rounding to a named format (to nearest, ties to even).

    The float64 product is first rounded to odd: where it is inexact its last bit is made 1.  A number
    rounded to odd with at least two spare digits then rounds to a narrower format as the exact product
    would.  Significands and exponents are multiplied apart, so that no step overflows; where the product
    is subnormal in float64, every narrower format gives 0.

    >>> product(np.array(1 + 2.0**-24), np.array(1 + 2.0**-40)).item() == 1 + 2.0**-23
    True
    """
    A, B = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if to == "float64":
            return np.asarray(A * B)
        (a, i), (b, j) = np.frexp(A), np.frexp(B)
        return FORMATS[to](np.ldexp(round_to_odd(*two_product(a, b)), i + j))


def gamma(n: int) -> float:
    """The bound n u / (1 - n u) on the relative error of n float64 roundings (Higham 2002, lemma 3.1).

    >>> gamma(1) > UNIT
    True
    """
    return n * UNIT / (1 - n * UNIT)


def _block(n: int) -> int:
    return max(1, math.isqrt(n))


def running_sum(v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running sums along the last axis, in blocks, so that errors grow with the square root of the length.

    >>> running_sum(np.array([1.0, 2.0, 3.0, 4.0, 5.0])).tolist()
    [1.0, 3.0, 6.0, 10.0, 15.0]
    """
    n = v.shape[-1]
    if n < 4096:
        return np.cumsum(v, axis=-1)
    b = _block(n)
    padded = np.zeros((*v.shape[:-1], -(-n // b) * b))
    padded[..., :n] = v
    inner = np.cumsum(padded.reshape(*v.shape[:-1], -1, b), axis=-1)
    before = np.cumsum(inner[..., -1], axis=-1) - inner[..., -1]
    return np.asarray((inner + before[..., None]).reshape(padded.shape)[..., :n])


def running_sum_error(n: int) -> float:
    """A bound on the error of `running_sum` of n non-negative terms, relative to the total.

    Blocks of b terms: b roundings inside, n / b for the totals, one to take a total away, one to add.
    """
    return gamma(n if n < 4096 else _block(n) + -(-n // _block(n)) + 2)
