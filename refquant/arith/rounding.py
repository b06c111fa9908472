"""Rounding to an integer: clause Q4, nine modes in one table.

Letters: |x| = n + r with n an integer and 0 <= r < 1.  A mode is one question about x: does its
magnitude round away, from n to n + 1?  The same table answers for exact fractions and for arrays.
It works on |x| because `x - floor(x)` is exact for x >= 0, while at x = -0.49999999999999994 it is
not (it rounds to 1/2, a false tie).

Names follow IEEE 754-2019 section 4.3 where it has one (`half_even`: roundTiesToEven, `half_away`:
roundTiesToAway, `toward_zero`, `ceil`: toward positive, `floor`: toward negative).
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import one_of

__all__ = ["AWAY", "MODES", "round_array", "round_exact"]


class Facts(NamedTuple):
    """What a rounding mode may know about x: booleans, and `half` = sign(r - 1/2); scalars or arrays."""

    positive: Any
    negative: Any
    inexact: Any
    half: Any
    odd: Any


AWAY: dict[str, Callable[[Facts], Any]] = {
    "toward_zero": lambda f: f.inexact & False,
    "away_from_zero": lambda f: f.inexact,
    "floor": lambda f: f.inexact & f.negative,
    "ceil": lambda f: f.inexact & f.positive,
    "half_even": lambda f: (f.half > 0) | ((f.half == 0) & f.odd),
    "half_away": lambda f: f.half >= 0,
    "half_toward_zero": lambda f: f.half > 0,
    "half_up": lambda f: (f.half > 0) | ((f.half == 0) & f.positive),  # floor(x + 1/2), exactly
    "half_down": lambda f: (f.half > 0) | ((f.half == 0) & f.negative),  # ceil(x - 1/2), exactly
}

MODES = tuple(AWAY)

# The modes that NumPy has as one exact operation; a test binds each to the table.
_FAST: dict[str, Callable[[Any], Any]] = {
    "half_even": np.rint,
    "floor": np.floor,
    "ceil": np.ceil,
    "toward_zero": np.trunc,
}


def _rule(mode: str) -> Callable[[Facts], Any]:
    return AWAY[one_of(mode, MODES, "rounding", "clause Q4")]


def round_exact(x: Fraction | int, mode: str) -> int:
    """The integer that a rational rounds to: the definition.

    Source: clause Q4.  Raises ArgumentError on an unknown mode.

    >>> [round_exact(Fraction(k, 2), "half_even") for k in (-3, -1, 1, 3)]
    [-2, 0, 0, 2]
    >>> round_exact(Fraction(-1, 2), "half_up"), round_exact(Fraction(-1, 2), "half_away")
    (0, -1)
    """
    x = Fraction(x)
    n = abs(x).__floor__()
    twice = 2 * (abs(x) - n)
    half = (twice > 1) - (twice < 1)
    away = _rule(mode)(Facts(x >= 0, x < 0, twice > 0, half, n % 2 == 1))
    return (-1 if x < 0 else 1) * (n + int(away))


def _round_by_table(x: NDArray[np.floating], mode: str) -> NDArray[np.floating]:
    magnitude = np.abs(x)
    n = np.floor(magnitude)
    r = magnitude - n  # nan at infinity: no question about it is true
    negative = np.signbit(x)
    away = AWAY[mode](Facts(~negative, negative, r > 0, np.sign(r - x.dtype.type(0.5)), np.fmod(n, 2) == 1))
    return np.asarray(np.copysign(n + away.astype(x.dtype), x))


def round_array(x: NDArray[np.floating], mode: str) -> NDArray[np.floating]:
    """Each element rounded to an integer, exactly, in the same float type.

    Any shape; -0 and results that round to zero keep their sign, infinities stay, NaN stays NaN,
    empty arrays give empty arrays.  Equal to `round_exact` on every finite element.

    Source: clause Q4.  Raises ArgumentError on an unknown mode.

    >>> round_array(np.array([-2.5, -0.5, 0.5, 2.5]), "half_up")
    array([-2., -0.,  1.,  3.])
    """
    _rule(mode)
    with np.errstate(invalid="ignore"):  # infinities and NaN pass through
        rounded: NDArray[np.floating] = _FAST[mode](x) if mode in _FAST else _round_by_table(x, mode)
    return rounded
