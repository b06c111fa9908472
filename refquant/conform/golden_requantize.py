"""Requantization and addition by definition, on integers and Fractions (clauses N3 and N4).

Letters: acc an accumulator, f the real factor, m and shift its multiplier in fixed point, fl one rounding to a float.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from ..arith.formats import round_fraction
from ..arith.rounding import round_exact
from ..errors import ArgumentError, complaint
from ..quant.integer_spec import IntegerSpec
from ..quant.spec import QuantSpec

__all__ = ["HOW", "added_exact", "requantized_exact", "rounded_to"]


def rounded_to(v: Fraction, name: str) -> Fraction:
    """v rounded once to a float format; beyond it, a number that every code range saturates.

    >>> rounded_to(Fraction(1, 3), "bfloat16")
    Fraction(171, 512)
    """
    r = round_fraction(v, name)
    return r if isinstance(r, Fraction) else Fraction(math.copysign(2.0**200, v))  # it saturates


def _multiplier(factor: Fraction) -> tuple[int, int]:
    """m and shift, 2^30 <= m < 2^31, with m 2^(shift - 31) nearest to the factor; ties away."""
    shift = factor.numerator.bit_length() - factor.denominator.bit_length()
    while factor >= Fraction(2) ** shift:
        shift += 1
    while factor < Fraction(2) ** (shift - 1):
        shift -= 1
    m = round_exact(factor * Fraction(2) ** (31 - shift), "half_away")
    return (m // 2, shift + 1) if m == 2**31 else (m, shift)


def _c_divide(n: int, d: int) -> int:
    """n / d as C divides integers: toward zero."""
    return -(-n // d) if n < 0 else n // d


def _double_round(acc: int, factor: Fraction) -> int:
    """The doubling high product by its nudge and a truncating division, then the rounding shift, ties away."""
    m, shift = _multiplier(factor)
    shifted = acc << max(shift, 0)
    if not -(2**31) <= shifted < 2**31:
        raise ArgumentError(
            complaint(f"{acc} << {shift}", "within 32 bits", "double-round: hardware leaves it undefined")
        )
    p = shifted * m
    high = _c_divide(p + (2**30 if p >= 0 else 1 - 2**30), 2**31)
    return round_exact(Fraction(high, 1 << max(-shift, 0)), "half_away")


def _single_round(acc: int, factor: Fraction) -> int:
    m, shift = _multiplier(factor)
    return round_exact(Fraction(acc * m) * Fraction(2) ** (shift - 31), "half_up")


HOW: dict[str, Callable[[int, Fraction, str], int]] = {
    "exact": lambda acc, f, mode: round_exact(acc * f, mode),
    "float32": lambda acc, f, mode: round_exact(
        rounded_to(rounded_to(Fraction(acc), "float32") * rounded_to(f, "float32"), "float32"), mode
    ),
    "single-round": lambda acc, f, mode: _single_round(acc, f),
    "double-round": lambda acc, f, mode: _double_round(acc, f),
}


def requantized_exact(acc: int, factor: Fraction, z: int, spec: QuantSpec, how: str) -> int:
    """The code of one accumulator by a named way, on integers and Fractions; a factor of 1 changes nothing.

    >>> requantized_exact(7984, Fraction(1583594044, 2**40), 0, QuantSpec(8), "double-round")
    12
    """
    k = acc if factor == 1 else HOW[how](acc, factor, spec.rounding)
    return min(max(k + z, spec.qmin), spec.qmax)


def added_exact(s: Sequence[Fraction], integer: IntegerSpec, rounding: str) -> Callable[[int, int], int]:
    """The steps of s_y that s_a p + s_b q is, by a named way (clause N4), on Fractions; s: s_a, s_b, s_y.

    >>> added_exact([Fraction(1, 2), Fraction(1, 4), Fraction(1)], IntegerSpec(), "half_even")(3, 4)
    2
    """

    def fl(v: Fraction) -> Fraction:
        return rounded_to(v, "float32")

    f, g = (rounded_to(v / s[2], "float64") for v in s[:2])
    twice, rule = 2 * max(s[:2]), HOW["single-round" if integer.requantize == "single-round" else "double-round"]
    F, G = (rounded_to(v / twice, "float64") for v in s[:2])
    back = rounded_to(twice / rounded_to(2**20 * s[2], "float64"), "float64")
    return {
        "exact": lambda p, q: round_exact(p * f + q * g, rounding),
        "float32": lambda p, q: round_exact(fl(fl(fl(p * s[0]) + fl(q * s[1])) / s[2]), rounding),
        "fixed-point": lambda p, q: rule(rule(p << 20, F, "") + rule(q << 20, G, ""), back, ""),
    }[integer.add]
