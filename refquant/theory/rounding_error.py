"""What floating-point arithmetic may do to a sum, and sums rounded the way one wants.

Letters: u the unit roundoff of an arithmetic; n roundings in a row, each a factor 1 + delta with |delta| <= u.

`gamma` is certain, whatever the order of a sum.  `probable_gamma` holds with a probability, if the delta are
independent and of mean zero: a model.  What underflows is off by at most `TINY` more, also where results that are
subnormal are flushed to zero; operands that are, as weights or images that small, are taken to be read as they are.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arith.exact import UNIT, two_sum
from ..errors import ArgumentError, complaint

__all__ = ["LARGE", "TINY", "UNITS", "gamma", "probable_gamma", "sum_down", "sum_up"]

Reals = NDArray[np.float64]

UNITS: dict[str, float] = {"float32": 2.0**-24, "float64": UNIT}
"""The unit roundoff by the name of a type."""

TINY: dict[str, float] = {"float32": 2.0**-126, "float64": 2.0**-1022}
"""The least normal number by the name of a type: what one operation may lose to underflow."""

LARGE: dict[str, float] = {"float32": 2.0**127, "float64": 2.0**1022}
"""By the name of a type, a number such that sums of magnitudes below it do not overflow, rounded as they may be."""

_SLACK = 1 + 8 * UNIT
"""What the few float64 roundings in a formula below are worth."""


def gamma(n: int, u: float = UNIT) -> float:
    """n u / (1 - n u), rounded up: |prod (1 + delta_i) - 1| over n factors, or over n quotients and factors, at most.

    So a sum of n products errs by at most gamma(n) times the sum of their magnitudes, in any order, fused or not.
    Source: Higham 2002, lemma 3.1 and section 3.1.

    Raises ArgumentError where n u >= 1: then rounding may do anything.

    >>> gamma(1, 0.25) >= 1 / 3
    True
    """
    if not n * u < 1:
        raise ArgumentError(complaint(f"{n} roundings of {u}", "fewer than 1 / u", "gamma"))
    return n * u / (1 - n * u) * _SLACK


def probable_gamma(n: int, u: float, failure: float) -> float:
    """exp(lambda sqrt(n) u + n u^2 / (1 - u)) - 1: what `gamma` is but with this probability (model).

    lambda is such that 2 exp(-lambda^2 (1 - u)^2 / 2) = failure.  It holds for one product of n factors 1 + delta_i
    with independent delta_i of mean zero; n such products, as in a sum, fail n times as often.  `gamma` is returned
    where it is smaller.
    Source: Higham and Mary 2019 (SIAM J. Sci. Comput. 41), theorem 2.4.

    Raises ArgumentError for a probability that is not between 0 and 1.

    >>> probable_gamma(10**6, 2.0**-24, 0.001) < gamma(10**6, 2.0**-24) / 200
    True
    """
    if not 0 < failure < 1:
        raise ArgumentError(complaint(f"failure={failure}", "between 0 and 1", "probable_gamma"))
    rate = math.sqrt(2 * math.log(2 / failure)) / (1 - u)
    return min(math.expm1(rate * math.sqrt(n) * u + n * u * u / (1 - u)) * _SLACK, gamma(n, u))


def sum_down(a: NDArray[Any], b: NDArray[Any]) -> Reals:
    """The greatest float64 that is at most a + b; exact sums stay.

    >>> float(sum_down(np.array(1.0), np.array(-(2.0**-60)))), float(sum_down(np.array(1.0), np.array(-1.0)))
    (0.9999999999999999, 0.0)
    """
    with np.errstate(invalid="ignore", over="ignore"):  # at infinity
        s, rest = two_sum(np.asarray(a, np.float64), np.asarray(b, np.float64))
        return np.where(rest < 0, np.nextafter(s, -np.inf), s)


def sum_up(a: NDArray[Any], b: NDArray[Any]) -> Reals:
    """The least float64 that is at least a + b; exact sums stay.

    >>> float(sum_up(np.array(1.0), np.array(2.0**-60)))
    1.0000000000000002
    """
    return -sum_down(-np.asarray(a), -np.asarray(b))
