"""Reals in a named float format: conversions with one rounding, to nearest even.

bfloat16 has no NumPy type; its values are held in float32 arrays (every bfloat16 is a float32), and
its bit patterns in uint16 arrays.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["FORMATS", "SHAPES", "from_bfloat16_bits", "round_fraction", "to_bfloat16", "to_bfloat16_bits"]


def to_bfloat16(x: ArrayLike) -> NDArray[np.float32]:
    """The nearest bfloat16 of each element (ties to even), as float32.

    Correct from float64 in one rounding, subnormals included; beyond the largest finite bfloat16 the
    result is infinite by the rule of IEEE 754; NaN stays NaN, -0 stays -0.

    >>> to_bfloat16([1.00390625, 1.01171875, 3.4e38])
    array([1.      , 1.015625,      inf], dtype=float32)
    """
    v = np.asarray(x, np.float64)
    _, e = np.frexp(v)
    quantum = np.ldexp(1.0, np.maximum(e - 8, -133))  # 8 significand bits; the least subnormal is 2^-133
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = np.where(np.isfinite(v), np.rint(v / quantum) * quantum, v)
        return np.asarray(rounded).astype(np.float32)


def to_bfloat16_bits(x: ArrayLike) -> NDArray[np.uint16]:
    """The uint16 bit patterns of the nearest bfloat16 values.

    >>> [hex(b) for b in to_bfloat16_bits([1.0, -2.0])]
    ['0x3f80', '0xc000']
    """
    return (to_bfloat16(x).view(np.uint32) >> 16).astype(np.uint16)


def from_bfloat16_bits(bits: ArrayLike) -> NDArray[np.float32]:
    """The float32 values of bfloat16 bit patterns, exactly.

    >>> from_bfloat16_bits(np.array([0x3F80, 0xC000], np.uint16))
    array([ 1., -2.], dtype=float32)
    """
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def _to(dtype: type[np.floating[Any]]) -> Callable[[ArrayLike], NDArray[Any]]:
    def convert(x: ArrayLike) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            return np.asarray(np.asarray(x).astype(dtype))

    return convert


FORMATS: dict[str, Callable[[ArrayLike], NDArray[Any]]] = {
    "float64": _to(np.float64),
    "float32": _to(np.float32),
    "float16": _to(np.float16),
    "bfloat16": to_bfloat16,
}


class _Shape(NamedTuple):
    """A binary format: p significand bits, least positive 2^least, finite values below 2^limit."""

    p: int
    least: int
    limit: int


SHAPES = {
    "float64": _Shape(53, -1074, 1024),
    "float32": _Shape(24, -149, 128),
    "float16": _Shape(11, -24, 16),
    "bfloat16": _Shape(8, -133, 128),
}


def round_fraction(x: Fraction, name: str) -> Fraction | float:
    """The value of a named format nearest to a rational, ties to even; +-inf beyond its largest.

    The definition that `FORMATS` is held to; it uses integers alone.

    >>> round_fraction(Fraction(1, 3), "bfloat16"), round_fraction(Fraction(10) ** 39, "float32")
    (Fraction(171, 512), inf)
    """
    p, least, limit = SHAPES[name]
    n, d = x.numerator, x.denominator
    exponent = max(abs(n).bit_length() - d.bit_length() - p, least)  # of the quantum, or one too small
    for quantum in (exponent, exponent + 1):
        scaled_n, scaled_d = (n << -quantum, d) if quantum < 0 else (n, d << quantum)
        q, rest = divmod(scaled_n, scaled_d)
        q += (2 * rest > scaled_d) | ((2 * rest == scaled_d) & (q & 1))
        if abs(q) <= 1 << p:
            break
    if abs(q).bit_length() + quantum > limit:
        return math.inf if n > 0 else -math.inf
    return Fraction(q << quantum) if quantum >= 0 else Fraction(q, 1 << -quantum)
