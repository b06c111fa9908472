"""From accumulators to codes (clause N3): multiply by a real factor, round, add the zero point, bring into range.

`exact` rounds the rational product by the spec's mode.  `float32` rounds the product to float32 first.
`single-round` and `double-round` are fixed point (see `arith/fixedpoint.py`), whose ties are their own.
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.exact import two_product
from ..arith.fixedpoint import MODES_OF_TOSA, double_round, quantize_multiplier, single_round
from ..arith.rounding import MODES, round_array, round_exact
from ..errors import ArgumentError, complaint
from .quantizer import into_range, parameters
from .spec import QuantSpec

__all__ = ["HOW", "requantize", "requantize_exact"]

Reals = NDArray[np.float64]


def _exact(acc: Reals, factor: Reals, rounding: str) -> Reals:
    """The rounding of acc times factor, exactly: where the product fell on a multiple of 1/2, its error decides."""
    p, e = two_product(acc, factor)
    on_half = 2 * p == np.rint(2 * p)
    position = np.where(on_half & (e != 0), np.nextafter(p, np.copysign(np.inf, e)), p)
    return round_array(position, rounding).astype(np.float64)


def _float32(acc: Reals, factor: Reals, rounding: str) -> Reals:
    product = acc.astype(np.float32) * factor.astype(np.float32)
    return round_array(product, rounding).astype(np.float64)


HOW: dict[str, Callable[[Reals, Reals, str], Reals]] = {"exact": _exact, "float32": _float32}
FIXED = {"single-round": single_round, "double-round": double_round}


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
    shift: int | None = None,
) -> NDArray[np.int32]:
    """The codes of int32 accumulators times a real factor.

    multiplier: the real factor, > 0 (a scalar or of the granularity's parameter shape); with a shift, the
    integer m of the factor m 2^(shift - 31).  how: `exact`, `float32`, `single-round`, `double-round`, or
    TOSA's `SINGLE_ROUND`, `DOUBLE_ROUND`; fixed point derives m and shift from a real scalar factor.
    Empty gives empty.

    Raises ArgumentError for an unknown `how`, accumulators beyond 32 bits, a factor not finite and > 0 or
    outside 2^-100..2^100, and a spec that is stochastic, adds the zero point before rounding, or has more
    than 31 bits.  Source: clause N3.

    >>> [int(requantize(7984, 1583594044, spec=QuantSpec(8), how=how, shift=-9)) for how in ("exact", "double-round")]
    [11, 12]
    """
    how = MODES_OF_TOSA.get(how, how)
    if how not in HOW and how not in FIXED:
        raise ArgumentError(complaint(f"how={how!r}", f"one of {', '.join((*HOW, *FIXED))}", "requantize"))
    if spec.rounding not in MODES or spec.zero_point_order != "after" or spec.bits > 31:
        got = f"rounding={spec.rounding}, zero_point_order={spec.zero_point_order}, bits={spec.bits}"
        raise ArgumentError(complaint(got, "deterministic, after, at most 31", "requantize"))
    x = np.asarray(acc)
    if x.dtype.kind not in "iu" or (x.size and not (-(2**31) <= x.min() and x.max() < 2**31)):
        raise ArgumentError(complaint(f"accumulators of type {x.dtype}", "integers of 32 bits", "requantize"))
    real = np.asarray(multiplier, np.float64) * (1.0 if shift is None else 2.0 ** (shift - 31))
    factor, z = parameters(real, zero_point, x.shape, spec)
    if np.any((factor < 2.0**-100) | (factor > 2.0**100)):
        raise ArgumentError(complaint(f"factor {real}", "between 2^-100 and 2^100", "requantize"))
    if how in HOW:
        k = HOW[how](x.astype(np.float64), np.asarray(factor, np.float64), spec.rounding)
    else:
        k = FIXED[how](x, *_fixed(multiplier, shift)).astype(np.float64)
    return into_range(k, z.astype(np.float64), spec).astype(np.int32).reshape(x.shape)


def _fixed(multiplier: ArrayLike, shift: int | None) -> tuple[int, int]:
    m = np.asarray(multiplier)
    if m.shape != () or (shift is not None and m.dtype.kind not in "iu"):
        should = "a scalar: a real factor, or an integer with its shift"
        raise ArgumentError(complaint(f"multiplier of type {m.dtype} and shape {m.shape}", should, "requantize"))
    return quantize_multiplier(float(m)) if shift is None else (int(m), shift)
