"""From accumulators to codes (clause N3): multiply by a real factor, round, add the zero point, bring into range.

`exact` rounds the rational product by the spec's mode.  `float32` rounds the product to float32 first.
`single-round` and `double-round` are fixed point (see `arith/fixedpoint.py`), whose ties are their own.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.combination import round_combination
from ..arith.fixedpoint import MODES_OF_TOSA, double_round, int32, quantize_multiplier, single_round
from ..arith.quotient import EXACT_LIMIT
from ..arith.rounding import MODES, round_array, round_exact
from ..errors import ArgumentError, complaint, instance_of, one_of
from .arguments import Real, exact_parameters, parameters, rational, shaped
from .quantizer import into_range, into_range_exact
from .spec import QuantSpec

__all__ = ["HOWS", "checked_factor", "requantize", "requantize_exact", "rescaler"]

Reals = NDArray[np.float64]
Integers = NDArray[Any]  # held as int64 or as float64
Times = Callable[[Integers], Integers]


# ---- times a real factor --------------------------------------------------------------------------------------


def _exact(factor: Reals, rounding: str, where: str) -> Times:
    return lambda acc: round_combination([(acc.astype(np.float64), factor)], rounding)


def _float32(factor: Reals, rounding: str, where: str) -> Times:
    narrow = factor.astype(np.float32)

    def times(acc: Integers) -> Integers:
        with np.errstate(over="ignore"):  # to an infinity, which saturates
            product = np.asarray(acc.astype(np.float32) * narrow)
        return round_array(product, rounding).astype(np.float64)

    return times


def _fixed(round_product: Callable[..., NDArray[np.int64]]) -> Callable[[Reals, str, str], Times]:
    def prepare(factor: Reals, rounding: str, where: str) -> Times:
        m, shift = quantize_multiplier(factor, where)
        return lambda acc: round_product(acc.astype(np.int64), m, shift, where)

    return prepare


FIXED = {"single-round": single_round, "double-round": double_round}
HOW: dict[str, Callable[[Reals, str, str], Times]] = {
    "exact": _exact,
    "float32": _float32,
    **{name: _fixed(rule) for name, rule in FIXED.items()},
}
HOWS = tuple(HOW)
"""The named ways to requantize."""


def checked_factor(factor: Reals, where: str, what: str = "factor") -> Reals:
    """The factors themselves, from 2^-100 to 2^100, where no product of theirs overflows or underflows.

    Raises ArgumentError for one that is not.

    >>> checked_factor(np.array(0.5), "here")
    array(0.5)
    """
    good = (factor >= 2.0**-100) & (factor <= 2.0**100)
    if not np.all(good):
        got = f"{what}={np.asarray(factor)[~good].flat[0]}"
        raise ArgumentError(complaint(got, "between 2^-100 and 2^100", where, "choose scales of like size"))
    return factor


def rescaler(factor: Reals, how: str, rounding: str, where: str = "requantize") -> Times:
    """From integers to the integers that they become times a real factor, before zero point and range.

    how: one of `HOWS`; rounding speaks only to those that are not fixed point.  The integers come as float64 or
    int64, of at most 32 bits for fixed point, which gives int64.  A factor of 1 changes nothing, element by
    element: an integer's result depends on its own factor alone.

    Raises ArgumentError for a factor that `checked_factor` or fixed point refuses, and then, of the integers, for
    those that do not fit 32 bits.

    >>> rescaler(np.array([0.5, 1.0]), "single-round", "half_even")(np.array([3.0, 5.0])).tolist()
    [2.0, 5.0]
    """
    one = np.asarray(checked_factor(factor, where) == 1)
    times = HOW[how](factor, rounding, where)
    if one.all():
        return lambda acc: acc
    if not one.any():
        return times
    return lambda acc: np.where(one, acc, times(np.where(one, 0, acc)))


# ---- the definition, and the array form -----------------------------------------------------------------------


def _checked(spec: QuantSpec, where: str) -> None:
    instance_of(spec, QuantSpec, "spec", where)
    if spec.rounding not in MODES or spec.zero_point_order != "after" or spec.bits > 31:
        got = f"rounding={spec.rounding}, zero_point_order={spec.zero_point_order}, bits={spec.bits}"
        raise ArgumentError(complaint(got, "deterministic, after, at most 31", where))


def requantize_exact(acc: Real, factor: Real, zero_point: Real, spec: QuantSpec) -> int:
    """The code of one accumulator by `how="exact"`, on Fractions: the definition.

    Numbers are taken as the rationals that they are.  Raises ArgumentError for a spec and a zero point that
    `requantize` refuses, a factor not finite and > 0, an accumulator that is no integer; CodeOverflowError as
    the spec says.

    >>> requantize_exact(7984, Fraction(1583594044, 2**40), 0, QuantSpec(8))
    11
    """
    where = "requantize_exact"
    _checked(spec, where)
    M, z = exact_parameters(factor, zero_point, spec, where, "factor")
    a = rational(acc, "accumulator", where)
    if not (isinstance(a, Fraction) and a.denominator == 1):
        raise ArgumentError(complaint(f"accumulator={acc}", "an integer", where))
    return into_range_exact(round_exact(a * M, spec.rounding) + int(z), spec, where)


def requantize(
    acc: ArrayLike,
    multiplier: ArrayLike,
    zero_point: ArrayLike = 0,
    *,
    spec: QuantSpec,
    how: str = "exact",
    shift: ArrayLike | None = None,
) -> NDArray[np.int32]:
    """The codes of int32 accumulators times a real factor; by `exact` element for element `requantize_exact`.

    multiplier: the real factor, > 0; with a shift, the 32-bit integer m of the factor m 2^(shift - 31).  Scalars,
    or of the granularity's parameter shape.  how: `exact`, `float32`, `single-round`, `double-round`, or
    TOSA's `SINGLE_ROUND`, `DOUBLE_ROUND`; fixed point derives m and shift from a real factor.  (TOSA's
    INEXACT_ROUND leaves the result to the implementation, so no code is right or wrong by it.)
    A real factor of 1 changes nothing, whatever `how`; with a shift, fixed point computes with it as with others.
    Empty gives empty.

    Raises ArgumentError for an unknown `how`, accumulators beyond 32 bits, a factor not finite and > 0 or
    outside 2^-100..2^100 (for fixed point: that m and a shift of -31..30 do not make), a left shift that
    overflows, and a spec that is stochastic, adds the zero point before rounding, or has more than 31 bits;
    CodeOverflowError as the spec says.  Source: clause N3.

    >>> [int(requantize(7984, 1583594044, spec=QuantSpec(8), how=how, shift=-9)) for how in ("exact", "double-round")]
    [11, 12]
    """
    where = "requantize"
    how = one_of(how, (*HOWS, *MODES_OF_TOSA), "how", where)
    how = MODES_OF_TOSA.get(how, how)
    _checked(spec, where)
    x = int32(acc, "accumulators", where)
    if shift is not None:
        m, e = int32(multiplier, "multiplier", where), int32(shift, "shift", where)
        M, S = shaped(m, "multiplier", x.shape, spec), shaped(e, "shift", x.shape, spec)
        with np.errstate(over="ignore", under="ignore"):
            multiplier = m * np.ldexp(1.0, e - 31)
    what = "multiplier" if shift is None else "multiplier 2^(shift - 31)"
    factor, z = parameters(multiplier, zero_point, x.shape, spec, where, what)
    checked_factor(factor, where)
    if shift is not None and how in FIXED:
        k = FIXED[how](x, M, S, where)
    else:
        k = rescaler(factor.astype(np.float64), how, spec.rounding, where)(x)
    if how == "exact" and spec.overflow == "wrap":
        k = _exact_far_away(k, x, factor, z, spec)
    return into_range(k, z.astype(k.dtype), spec, where).astype(np.int32).reshape(x.shape)


def _exact_far_away(k: Integers, acc: Integers, factor: Reals, z: Reals, spec: QuantSpec) -> Integers:
    """k with those by the definition where float64 cannot hold all integers, which wrapping looks at."""
    k, far = np.asarray(k), np.abs(k) >= EXACT_LIMIT
    rows = (np.broadcast_to(v, acc.shape)[far].tolist() for v in (acc, factor, z))
    k[far] = [requantize_exact(a, f, c, spec) - c for a, f, c in zip(*rows, strict=True)]
    return k
