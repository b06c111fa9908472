"""Every range rule a second time, on Fractions: each operation rounded once to the rule's arithmetic.

Letters: lo <= hi the range, L and H its ends in the arithmetic fl, s the scale, z the zero point.
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from ..arith.formats import round_fraction
from ..arith.rounding import round_exact
from ..errors import ArgumentError, complaint
from .ranges import RULES
from .spec import QuantSpec

__all__ = ["range_parameters_exact"]


class _Rounded:
    """Arithmetic of one float format on Fractions."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, v: Fraction | float) -> Fraction:
        r = round_fraction(Fraction(v), self.name)
        if not isinstance(r, Fraction):
            raise ArgumentError(complaint(f"{float(v):g}", f"within {self.name}", "range_parameters_exact"))
        return r


def _power(v: Fraction, good: Callable[[Fraction], bool]) -> Fraction:
    """The least power of two that is good, not far from v."""
    e = v.numerator.bit_length() - v.denominator.bit_length() - 40
    while not good(Fraction(2) ** e):
        e += 1
    return Fraction(2) ** e


def range_parameters_exact(lo: float, hi: float, spec: QuantSpec, rule: str) -> tuple[float, int]:
    """The scale and zero point that a rule gives to one range: the definition that `range_parameters` is held to.

    Raises ArgumentError where a step leaves the rule's arithmetic.

    >>> range_parameters_exact(0.0, 255.0, QuantSpec(8, signed=False), "affine")
    (1.0, 0)
    """
    narrow = RULES[rule].dtype is np.float32
    fl = _Rounded("float32" if narrow else "float64")
    if rule not in ("affine-as-given", "tensorflow-nudged"):
        lo, hi = min(lo, 0.0), max(hi, 0.0)
    L, H = fl(lo), fl(hi)
    big, n, qmin, qmax = max(-L, H), *map(fl, (spec.qmax - spec.qmin, spec.qmin, spec.qmax))
    least = Fraction(2) ** (-149 if narrow else -1074)
    extent = hi > lo and (rule != "symmetric-full" or spec.qmin < 0 or hi > 0)
    if rule.startswith("power-of-two"):
        good: dict[str, Callable[[Fraction], bool]] = {
            "power-of-two-up": lambda s: s * qmax >= big,
            "power-of-two-nearest": lambda s: 2 * s * s > (big / qmax) ** 2,
            "power-of-two-floor": lambda s: 2 * s * 2 ** (spec.qmax.bit_length() - 1) > big,
        }
        s = _power(big, good[rule]) if big else Fraction(0)
    elif rule in ("symmetric-half", "torch-symmetric"):
        s = fl(big / (n / 2))
    elif rule == "symmetric-full":
        s = max(fl(L / qmin) if qmin < 0 else Fraction(0), fl(H / qmax) if H > 0 else Fraction(0))
    elif rule == "symmetric":
        s = fl(big / qmax)
    else:
        s = fl(fl(H - L) / n)
    if rule.startswith("torch"):
        s = max(s, Fraction(2) ** -23)
    elif s < least:
        s = least if extent else Fraction(1)
    low, high = fl(L / s), fl(H / s)
    if rule in ("affine", "affine-float32", "affine-as-given", "onnx-dynamic"):
        z = round_exact(fl(qmin - low), "half_even")
    elif rule in ("affine-away", "tensorflow-nudged"):
        z = round_exact(fl(qmin - low), "half_away")
    elif rule == "torch-affine":
        z = int(fl(qmin - round_exact(low, "half_even")))
    elif rule == "tflite" and lo == hi == 0:
        z = 0
    elif rule == "tflite":
        from_low = fl(abs(qmin) + abs(low)) < fl(abs(qmax) + abs(high))
        z = round_exact(fl(qmin - low) if from_low else fl(qmax - high), "half_away")
    else:
        z = 0
    return float(max(_Rounded("float32")(s), Fraction(2) ** -149)), min(max(z, spec.qmin), spec.qmax)
