"""From a range of values to scale and zero point: one named row a rule (clauses R1 and on).

Letters: lo <= hi the range, n = qmax - qmin the number of steps, s the scale, z the zero point.

A rule is a few choices: the arithmetic it computes in, the range it takes, the scale, the rounding of z.  They
matter: backends that agree on everything else differ by one code in a whole tensor because of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.rounding import round_array
from ..errors import ArgumentError, complaint, instance_of, one_of
from .arguments import reals, top_code
from .spec import QuantSpec

__all__ = ["RULES", "Rule", "by_rule", "range_parameters"]

Reals = NDArray[Any]

# ---- scales ---------------------------------------------------------------------------------------------------


def _kept(s: Reals, size: Reals) -> Reals:
    """s, or the least positive number of its type where size > 0 but s, which is proportional to it, underflows."""
    return np.where((s == 0) & (size > 0), np.finfo(s.dtype).smallest_subnormal, s)


def _over(size: Reals, steps: float) -> Reals:
    """size / steps in the arithmetic of size; 0 only where size is 0."""
    return _kept(np.asarray(size / size.dtype.type(steps)), size)


def _span(lo: Reals, hi: Reals, spec: QuantSpec) -> Reals:
    """(hi - lo) / n: n steps span the range."""
    return _over(hi - lo, spec.qmax - spec.qmin)


def _magnitude(lo: Reals, hi: Reals, spec: QuantSpec) -> Reals:
    """max(|lo|, |hi|) / qmax."""
    return _over(np.maximum(-lo, hi), top_code(spec, "range_parameters"))


def _magnitude_half(lo: Reals, hi: Reals, spec: QuantSpec) -> Reals:
    """max(|lo|, |hi|) / (n / 2): 127.5 for int8."""
    return _over(np.maximum(-lo, hi), (spec.qmax - spec.qmin) / 2)


def _either_end(lo: Reals, hi: Reals, spec: QuantSpec) -> Reals:
    """max(lo / qmin, hi / qmax): the least scale at which neither end is clipped; lo says nothing to unsigned codes."""
    low = _over(-lo, -spec.qmin) if spec.qmin < 0 else np.zeros_like(lo)
    return np.maximum(low, _over(hi, top_code(spec, "range_parameters"))) if np.any(hi > 0) else low


def _power(exponent: Callable[[Reals, int], Reals]) -> Callable[[Reals, Reals, QuantSpec], Reals]:
    def scale(lo: Reals, hi: Reals, spec: QuantSpec) -> Reals:
        fraction, e = np.frexp(np.maximum(-lo, hi))  # apart, since fraction / qmax does not underflow
        s = np.ldexp(np.where(fraction > 0, 1.0, 0.0), exponent(fraction, top_code(spec, "range_parameters")) + e)
        return _kept(np.asarray(s), fraction)

    return scale


def _up(largest: Reals, qmax: int) -> Reals:
    """The least e with largest <= qmax 2^e: the exponent is rounded up, nothing is clipped."""
    e = np.frexp(largest / qmax)[1]
    return np.asarray(e - (np.ldexp(float(qmax), e - 1) >= largest))


def _nearest(largest: Reals, qmax: int) -> Reals:
    """The e for which 2^e is nearest to largest / qmax on a logarithmic axis: above 2^(e - 1/2)."""
    fraction, e = np.frexp(largest / qmax)
    return np.asarray(e - (2 * fraction * fraction < 1))


def _floor(largest: Reals, qmax: int) -> Reals:
    """floor(log2 largest) - floor(log2 qmax): up to one step more than qmax is clipped."""
    return np.asarray(np.frexp(largest)[1] - np.frexp(float(qmax))[1])


# ---- zero points ----------------------------------------------------------------------------------------------


def _none(lo: Reals, hi: Reals, s: Reals, spec: QuantSpec) -> Reals:
    return np.zeros_like(s)


def _from_low(mode: str) -> Callable[[Reals, Reals, Reals, QuantSpec], Reals]:
    """qmin - lo / s, rounded by a mode."""
    return lambda lo, hi, s, spec: round_array(lo.dtype.type(spec.qmin) - lo / s, mode)


def _low_rounded_first(lo: Reals, hi: Reals, s: Reals, spec: QuantSpec) -> Reals:
    """qmin - round(lo / s): the quotient is rounded alone, which differs on ties when qmin is odd."""
    return np.asarray(lo.dtype.type(spec.qmin) - np.rint(lo / s))


def _smaller_error(lo: Reals, hi: Reals, s: Reals, spec: QuantSpec) -> Reals:
    """Of qmin - lo / s and qmax - hi / s the one computed from smaller numbers, ties away from zero; 0 for [0, 0]."""
    qmin, qmax = lo.dtype.type(spec.qmin), lo.dtype.type(spec.qmax)
    low, high = lo / s, hi / s
    from_low = abs(qmin) + np.abs(low) < abs(qmax) + np.abs(high)
    return np.where(lo == hi, 0.0, round_array(np.where(from_low, qmin - low, qmax - high), "half_away"))


# ---- rules ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """One way from a range to parameters.

    source: where it is written.  quirk: what surprises in it.  dtype: the arithmetic of every step.
    scale: (lo, hi, spec) -> s.  zero_point: (lo, hi, s, spec) -> z, then clamped to [qmin, qmax].
    with_zero: the range is first made to hold 0.  least: no scale is below this, not even that of [0, 0].
    """

    source: str
    quirk: str
    scale: Callable[[Reals, Reals, QuantSpec], Reals]
    zero_point: Callable[[Reals, Reals, Reals, QuantSpec], Reals] = _none
    dtype: type[np.float32] | type[np.float64] = np.float64
    with_zero: bool = True
    least: float = 0.0


_F32 = np.float32
_EPS32 = float(np.finfo(np.float32).eps)

RULES: dict[str, Rule] = {
    "affine": Rule(  # R1
        "Jacob et al. 2018, section 3, in float64", "ties of z to even", _span, _from_low("half_even")
    ),
    "symmetric": Rule("absmax, restricted range: Jacob et al. 2018", "the least code of int8 is not used", _magnitude),
    "symmetric-full": Rule("PyTorch, PTQ for XNNPACK and ao", "s differs by side: lo may decide", _either_end),  # R3
    "symmetric-half": Rule(
        "absmax over half the steps (127.5)", "the largest value is clipped by 1/2", _magnitude_half
    ),
    "affine-away": Rule(  # R5
        "as R1, ties of z away from zero", "127 or 128 for a range that is symmetric", _span, _from_low("half_away")
    ),
    "affine-float32": Rule("as R1, in float32", "z flips next to a tie", _span, _from_low("half_even"), _F32),
    "affine-as-given": Rule(  # R7
        "as R1, the range not made to hold 0",
        "clamping z then moves the grid",
        _span,
        _from_low("half_even"),
        with_zero=False,
    ),
    "onnx-dynamic": Rule(  # R8
        "ONNX DynamicQuantizeLinear, version 11",
        "the formula clamps before it rounds, which is the same for integer "
        "bounds; a range [0, 0], where it divides by 0, has s = 1 here",
        _span,
        _from_low("half_even"),
        _F32,
    ),
    "torch-affine": Rule(  # R9
        "PyTorch 2, torch.ao.quantization.observer, qparams of affine schemes",
        "s is at least 2^-23, for [0, 0] too; z from lo / s rounded alone",
        _span,
        _low_rounded_first,
        _F32,
        least=_EPS32,
    ),
    "torch-symmetric": Rule(  # R10
        "PyTorch 2, the same, symmetric schemes of signed codes",
        "127.5; s is at least 2^-23, for [0, 0] too",
        _magnitude_half,
        dtype=_F32,
        least=_EPS32,
    ),
    "tflite": Rule(  # R11
        "TensorFlow Lite, kernels/internal/quantization_util, parameters of a range in double; gemmlowp's example",
        "z from the end of smaller error, ties away from zero; [0, 0] is an exception: z = 0, s = 0 (1 here)",
        _span,
        _smaller_error,
    ),
    "tensorflow-nudged": Rule(  # R12
        "TensorFlow, fake_quant ops, Nudge",
        "float32, ties of z away from zero, the range as given: it must hold 0",
        _span,
        _from_low("half_away"),
        _F32,
        with_zero=False,
    ),
    "power-of-two-up": Rule("least power of two that clips nothing", "up to twice the scale needed", _power(_up)),
    "power-of-two-nearest": Rule("power of two nearest in log2", "may clip", _power(_nearest)),  # R14
    "power-of-two-floor": Rule(  # R15
        "OCP Microscaling 1.0, section 6.3: floor(log2 max) less the exponent of the largest code",
        "values above qmax steps are clipped",
        _power(_floor),
    ),
}
"""name -> rule: R1, R2, ... in this order."""


def range_parameters(
    lo: ArrayLike, hi: ArrayLike, *, spec: QuantSpec, rule: str = "affine"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The scale (float32) and zero point (integer) that a named rule gives to the range [lo, hi].

    lo, hi: reals of the parameters' shape.  Computed in the rule's arithmetic; z is found from the scale of
    that arithmetic, which is then rounded to float32, and is brought into [qmin, qmax].  A range without extent
    gives scale 1, unless the rule has a least scale; one with extent gives at least the smallest positive
    float32, also where a step underflows.  Symmetric rules give the code nearest to 0: 0 itself, or 1 where the
    codes are unsigned and narrow.

    Raises ArgumentError for an unknown rule, for ends that are not finite or not in order, for a rule that
    divides by qmax on a grid without positive codes, and where the scale overflows float32.

    >>> scale, zero_point = range_parameters(-1.0, 3.0, spec=QuantSpec(8, signed=False), rule="affine")
    >>> scale == np.float32(4 / 255), int(zero_point)
    (np.True_, 64)
    """
    here = f"range_parameters({one_of(rule, RULES, 'rule', 'range_parameters')})"
    instance_of(spec, QuantSpec, "spec", here)
    scale, z = by_rule(RULES[rule], lo, hi, spec, here)
    return scale, np.clip(z, spec.qmin, spec.qmax).astype(np.int64)


def by_rule(
    row: Rule, lo: ArrayLike, hi: ArrayLike, spec: QuantSpec, where: str
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The scale and the zero point of a rule, the latter not yet brought into [qmin, qmax]; integers in float64.

    Raises as `range_parameters`; its errors say that they come from `where`.

    >>> scale, z = by_rule(RULES["affine"], -1.0, 3.0, QuantSpec(8, signed=False), "here")
    >>> float(z)
    64.0
    """
    lo, hi = _ends(lo, hi, where)
    if row.with_zero:
        lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        L, H = lo.astype(row.dtype), hi.astype(row.dtype)
        extent = row.scale(lo, hi, spec) > 0
        tiny = np.finfo(row.dtype).smallest_subnormal
        s: Reals = np.maximum(row.scale(L, H, spec), row.least or np.where(extent, tiny, 1)).astype(row.dtype)
        scale = np.maximum(s.astype(np.float32), np.finfo(np.float32).smallest_subnormal)
        if not np.all(np.isfinite(scale)):
            i = np.flatnonzero(~np.isfinite(scale))[0]
            got = f"range [{lo.flat[i]}, {hi.flat[i]}], whose scale is infinite"
            raise ArgumentError(complaint(got, "a scale that float32 holds", where))
        z = row.zero_point(L, H, s, spec).astype(np.float64)  # in which every qmin and qmax is exact
    return np.asarray(scale), np.asarray(z)


def _ends(lo: ArrayLike, hi: ArrayLike, where: str) -> tuple[Reals, Reals]:
    """Both ends of every range in float64, of one shape."""
    low, high = reals(lo, "lo", where).astype(np.float64), reals(hi, "hi", where).astype(np.float64)
    try:
        low, high = np.broadcast_arrays(low, high)
    except ValueError:
        got = f"lo of shape {low.shape}, hi of shape {high.shape}"
        raise ArgumentError(complaint(got, "one shape, that of the parameters", where)) from None
    bad = ~(np.isfinite(low) & np.isfinite(high) & (low <= high))
    if np.any(bad):
        raise ArgumentError(complaint(f"range [{low[bad][0]}, {high[bad][0]}]", "finite, lo <= hi", where))
    return low, high
