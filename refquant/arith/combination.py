"""Rounding a short sum of products, a_1 b_1 + ... over an optional divisor, as if it were computed exactly.

A filter: the float64 value decides wherever it is farther from every multiple of 1/2 than its error can be;
the few others are decided exactly, by error-free transformations or else in rational arithmetic.

Letters: p_i = fl(a_i b_i), d the divisor, q = (p_1 + ...) / d.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from .exact import two_product, two_sum
from .quotient import exact_position, position_of
from .rounding import round_array, round_exact

__all__ = ["round_combination", "round_combination_exact"]

Reals = NDArray[np.float64]

SLACK = 2.0**-49
"""Above the error of 2 q relative to the sum of magnitudes: each step, five in all, errs by 2^-53."""


def round_combination_exact(pairs: Sequence[tuple[float, float]], mode: str, divisor: float = 1.0) -> int:
    """The rounding of sum(a b) / divisor by a named mode, on Fractions: the definition.

    >>> round_combination_exact([(3.0, 0.5), (1.0, 1.0)], "half_even")
    2
    """
    total = sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction(0))
    return round_exact(total / Fraction(divisor), mode)


def round_combination(pairs: Sequence[tuple[Reals, Reals]], mode: str, divisor: Reals | None = None) -> Reals:
    """The integers that sum(a b) / divisor round to, exactly; float64, in the shape that all broadcast to.

    At most four pairs of finite floats whose products neither overflow nor fall below 2^-968, unless they are
    0; divisor > 0.  Exact for results below 2^50.  Equal to `round_combination_exact` element by element.

    >>> round_combination([(np.array([3.0, 5.0]), np.array(0.5))], "half_even").tolist()
    [2.0, 2.0]
    """
    products = [a * b for a, b in pairs]
    q = np.array(sum(products[1:], products[0]), np.float64)
    size = sum((np.abs(p) for p in products[1:]), np.abs(products[0]))
    if divisor is not None:
        q, size = q / divisor, size / divisor
    near = np.asarray(np.abs(2 * q - np.rint(2 * q)) <= SLACK * size)
    if near.any():
        some = [tuple(np.broadcast_to(v, q.shape)[near] for v in pair) for pair in pairs]
        q[near] = _positions(some, None if divisor is None else np.broadcast_to(divisor, q.shape)[near])
    return round_array(q, mode).astype(np.float64, copy=False)


def _positions(pairs: Sequence[tuple[Reals, ...]], divisor: Reals | None) -> Reals:
    """The positions of sum(a b) / divisor among the multiples of 1/2, as float64."""
    total, lost = np.zeros_like(pairs[0][0]), np.zeros(pairs[0][0].shape, np.bool_)
    for a, b in pairs:
        p, e = two_product(a, b)
        total, rest = two_sum(total, p)
        lost |= (e != 0) | (rest != 0)
    position = total if divisor is None else exact_position(total, divisor)
    for i in np.flatnonzero(lost):
        exact = sum((Fraction(float(a[i])) * Fraction(float(b[i])) for a, b in pairs), Fraction(0))
        position[i] = position_of(exact / (1 if divisor is None else Fraction(float(divisor[i]))))
    return position
