"""From accumulators to codes (clause N3): multiply by a real factor, round, add the zero point, bring into range.

`exact` rounds the rational product by the spec's mode.  `float32` rounds the product to float32 first.
`single-round` and `double-round` are fixed point (see `arith/fixedpoint.py`), whose ties are their own.
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.combination import round_combination
from ..arith.fixedpoint import MODES_OF_TOSA, double_round, quantize_multiplier, single_round
from ..arith.rounding import MODES, round_array, round_exact
from ..errors import ArgumentError, complaint
from .quantizer import into_range, parameters
from .spec import QuantSpec

__all__ = ["HOWS", "requantize", "requantize_exact", "rescale"]

Reals = NDArray[np.float64]


def _exact(acc: Reals, factor: Reals, rounding: str) -> Reals:
    return round_combination([(acc, factor)], rounding)


def _float32(acc: Reals, factor: Reals, rounding: str) -> Reals:
    product = acc.astype(np.float32) * factor.astype(np.float32)
    return round_array(product, rounding).astype(np.float64)


HOW: dict[str, Callable[[Reals, Reals, str], Reals]] = {"exact": _exact, "float32": _float32}
FIXED = {"single-round": single_round, "double-round": double_round}
HOWS = (*HOW, *FIXED)
"""The named ways to requantize."""


def rescale(acc: Reals, factor: Reals, how: str, rounding: str) -> Reals:
    """The integers that acc times a real factor becomes, before zero point and range; float64.

    acc: integers as float64.  how: one of `HOWS`; rounding speaks only to those that are not fixed point.
    A factor of 1 changes nothing.

    >>> rescale(np.array([3.0, 5.0]), np.array(0.5), "exact", "half_even").tolist()
    [2.0, 2.0]
    """
    if np.all(factor == 1):
        return acc
    if how in HOW:
        return HOW[how](acc, factor, rounding)
    return FIXED[how](acc.astype(np.int64), *quantize_multiplier(factor)).astype(np.float64)


def requantize_exact(acc: int, factor: Fraction | float, zero_point: int, spec: QuantSpec) -> int:
    """The code of one accumulator by `how="exact"`, on Fractions: the definition.

    >>> requantize_exact(7984, Fraction(1583594044, 2**40), 0, QuantSpec(8))
    11
    """
    c = round_exact(acc * Fraction(factor), spec.rounding) + zero_point
    return min(max(c, spec.qmin), spec.qmax)


def requantize(
    acc: ArrayLike,
    multiplier: ArrayLike,
    zero_point: ArrayLike = 0,
    *,
    spec: QuantSpec,
    how: str = "exact",
    shift: ArrayLike | None = None,
) -> NDArray[np.int32]:
    """The codes of int32 accumulators times a real factor.

    multiplier: the real factor, > 0; with a shift, the integer m of the factor m 2^(shift - 31).  Scalars,
    or of the granularity's parameter shape.  how: `exact`, `float32`, `single-round`, `double-round`, or
    TOSA's `SINGLE_ROUND`, `DOUBLE_ROUND`; fixed point derives m and shift from a real factor.  (TOSA's
    INEXACT_ROUND leaves the result to the implementation, so no code is right or wrong by it.)
    Empty gives empty.

    Raises ArgumentError for an unknown `how`, accumulators beyond 32 bits, a factor not finite and > 0 or
    outside 2^-100..2^100, and a spec that is stochastic, adds the zero point before rounding, or has more
    than 31 bits.  Source: clause N3.

    >>> [int(requantize(7984, 1583594044, spec=QuantSpec(8), how=how, shift=-9)) for how in ("exact", "double-round")]
    [11, 12]
    """
    how = MODES_OF_TOSA.get(how, how)
    if how not in HOWS:
        raise ArgumentError(complaint(f"how={how!r}", f"one of {', '.join(HOWS)}", "requantize"))
    if spec.rounding not in MODES or spec.zero_point_order != "after" or spec.bits > 31:
        got = f"rounding={spec.rounding}, zero_point_order={spec.zero_point_order}, bits={spec.bits}"
        raise ArgumentError(complaint(got, "deterministic, after, at most 31", "requantize"))
    x = np.asarray(acc)
    if x.dtype.kind not in "iu" or (x.size and not (-(2**31) <= x.min() and x.max() < 2**31)):
        raise ArgumentError(complaint(f"accumulators of type {x.dtype}", "integers of 32 bits", "requantize"))
    m, e = np.asarray(multiplier), None if shift is None else np.asarray(shift)
    if e is not None and (m.dtype.kind not in "iu" or e.dtype.kind not in "iu"):
        got = f"multiplier of type {m.dtype}, shift of type {e.dtype}"
        raise ArgumentError(complaint(got, "integers, or a real factor alone", "requantize"))
    real = m.astype(np.float64) * (1.0 if e is None else np.ldexp(1.0, e - 31))
    factor, z = parameters(real, zero_point, x.shape, spec)
    if np.any((factor < 2.0**-100) | (factor > 2.0**100)):
        raise ArgumentError(complaint(f"factor {real}", "between 2^-100 and 2^100", "requantize"))
    if how in FIXED and e is not None:
        M, S = (spec.granularity.spread(v, x.shape) if v.shape else v for v in (m, e))
        k = FIXED[how](x, M, S).astype(np.float64)
    else:
        k = rescale(x.astype(np.float64), np.asarray(factor, np.float64), how, spec.rounding)
    return into_range(k, z.astype(np.float64), spec).astype(np.int32).reshape(x.shape)
