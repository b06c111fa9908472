"""From a range of values to scale and zero point: one named row a rule (clauses R1 and on).

Letters: lo <= hi the range, n = qmax - qmin the number of steps.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, complaint
from .quantizer import reals
from .spec import QuantSpec

__all__ = ["RULES", "range_parameters"]

Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


def _affine(lo: NDArray[Any], hi: NDArray[Any], spec: QuantSpec) -> Pair:
    """R1: the range is made to hold 0, n steps span it, the zero point is rounded and clamped."""
    lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    scale = (hi - lo) / (spec.qmax - spec.qmin)
    scale = np.where(scale > 0, scale, 1.0)
    return scale, np.clip(np.rint(spec.qmin - lo / scale), spec.qmin, spec.qmax)


def _symmetric(lo: NDArray[Any], hi: NDArray[Any], spec: QuantSpec) -> Pair:
    """R2: max(|lo|, |hi|) / qmax, zero point 0."""
    scale = np.maximum(np.abs(lo), np.abs(hi)) / spec.qmax
    return np.where(scale > 0, scale, 1.0), np.zeros(np.shape(scale))


def _symmetric_full(lo: NDArray[Any], hi: NDArray[Any], spec: QuantSpec) -> Pair:
    """R3: the least scale at which neither end is clipped, max(lo / qmin, hi / qmax), zero point 0."""
    low = lo / spec.qmin if spec.qmin else np.zeros(np.shape(lo))
    scale = np.maximum(low, hi / spec.qmax)
    return np.where(scale > 0, scale, 1.0), np.zeros(np.shape(scale))


RULES: dict[str, Callable[[NDArray[Any], NDArray[Any], QuantSpec], Pair]] = {
    "affine": _affine,
    "symmetric": _symmetric,
    "symmetric-full": _symmetric_full,
}


def range_parameters(
    lo: ArrayLike, hi: ArrayLike, *, spec: QuantSpec, rule: str = "affine"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The scale (float32) and zero point (integer) that a named rule gives to the range [lo, hi].

    lo, hi: reals of the parameters' shape.  A degenerate range gives scale 1.  Computed in float64; the
    scale is rounded to float32 at the end, after the zero point is found.

    Raises ArgumentError for an unknown rule and for ends that are not finite or not in order.

    >>> scale, zero_point = range_parameters(-1.0, 3.0, spec=QuantSpec(8, signed=False), rule="affine")
    >>> scale == np.float32(4 / 255), int(zero_point)
    (np.True_, 64)
    """
    if rule not in RULES:
        raise ArgumentError(complaint(f"rule={rule!r}", f"one of {', '.join(RULES)}", "range_parameters"))
    L, H = reals(lo, "lo").astype(np.float64), reals(hi, "hi").astype(np.float64)
    if not (np.all(np.isfinite(L)) and np.all(np.isfinite(H)) and np.all(L <= H)):
        raise ArgumentError(complaint(f"range [{L}, {H}]", "finite, lo <= hi", "range_parameters"))
    scale, zero_point = RULES[rule](L, H, spec)
    tiny = np.finfo(np.float32).smallest_subnormal
    return np.maximum(np.asarray(scale).astype(np.float32), tiny), np.asarray(zero_point).astype(np.int64)
