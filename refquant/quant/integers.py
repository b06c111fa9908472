"""A second definition of `quantize`, on integers alone: significands, exponents, divmod.

It computes with no code of the definition on Fractions, not the rounding table and not the formats, so that an
error would have to be made twice; they share what they refuse.  A number is n / d with integers n and d > 0.

Letters: x = X 2^i, s = S 2^j; f = floor(q), rest = q - f; t = 2 rest compared with 1.
"""

import math

from ..errors import ArgumentError, complaint, instance_of
from .arguments import exact_parameters
from .quantizer import code_of_nan, overflow_error
from .spec import QuantSpec

__all__ = ["quantize_integers"]

PRECISION = {"float64": (53, -1074), "float32": (24, -149), "float16": (11, -24), "bfloat16": (8, -133)}
LARGEST = {"float64": 1024, "float32": 128, "float16": 16, "bfloat16": 128}


def _ratio(x: float) -> tuple[int, int]:
    """x = n / d from its significand and exponent."""
    significand, exponent = math.frexp(x)
    n, e = int(math.ldexp(significand, 53)), exponent - 53
    return (n << e, 1) if e >= 0 else (n, 1 << -e)


def _compare(n: int, d: int) -> int:
    return (n > d) - (n < d)


def _round(n: int, d: int, mode: str) -> int:
    """The integer that n / d rounds to: floor, and the question whether to add one."""
    f, rest = divmod(n, d)
    if rest == 0:
        return f
    half = _compare(2 * rest, d)
    up = {
        "floor": False,
        "ceil": True,
        "toward_zero": n < 0,
        "away_from_zero": n > 0,
        "half_even": half > 0 or (half == 0 and f % 2 == 1),
        "half_away": half > 0 or (half == 0 and n > 0),
        "half_toward_zero": half > 0 or (half == 0 and n < 0),
        "half_up": half >= 0,
        "half_down": half > 0,
    }[mode]
    return f + up


def _to_format(n: int, d: int, name: str) -> tuple[int, int] | None:
    """n / d rounded to a float format, half to even; None beyond its largest value."""
    p, least = PRECISION[name]
    e = max(least, abs(n).bit_length() - d.bit_length() - p - 1)
    while abs(n) << max(0, -e) >= d << max(0, e) + p:  # |n / d| >= 2^p 2^e: coarsen
        e += 1
    k = _round(n << max(0, -e), d << max(0, e), "half_even")
    value = (k << e, 1) if e >= 0 else (k, 1 << -e)
    return None if abs(value[0]) >= value[1] << LARGEST[name] else value


def _quotient(x: float, s: float, z: float | None, spec: QuantSpec) -> tuple[int, int] | int:
    """q (+ z) as n / d; or the sign of an infinity."""
    sign, infinite = (1 if x > 0 else -1), math.isinf(x)
    X, S, Z = _ratio(0.0 if infinite else x), _ratio(s), _ratio(z or 0.0)
    if spec.quotient == "exact":
        if infinite:
            return sign
        n, d = X[0] * S[1], X[1] * S[0]
        return n * Z[1] + Z[0] * d, d * Z[1]
    to = spec.quotient.split("-")[-1]
    a, b, c = (_to_format(*v, to) for v in (X, S, Z))
    if b is None or c is None or b[0] == 0:
        raise ArgumentError(complaint(f"scale={s}, zero_point={z}", f"usable in {to}", "clause Q2"))
    inverse = (b[1], b[0]) if to == spec.quotient else _to_format(b[1], b[0], to)
    if inverse is None:
        raise ArgumentError(complaint("1/scale", f"finite in {to}", "clause Q2"))
    if a is None or infinite:
        return sign
    n, d = a[0] * inverse[0], a[1] * inverse[1]
    if spec.quotient.startswith("fused") and z is not None:
        n, d, z = n * c[1] + c[0] * d, d * c[1], None
    q = _to_format(n, d, to)
    if q is not None and z is not None:
        q = _to_format(q[0] * c[1] + c[0] * q[1], q[1] * c[1], to)
    return q if q is not None else sign


def quantize_integers(x: float, scale: float, zero_point: float, spec: QuantSpec) -> int:
    """The code of one float by clauses Q1 to Q6, for the nine deterministic modes.

    +-inf saturates, NaN goes by `spec.nan`, -0 is 0.  Equal to `quantize_exact` everywhere (a test).

    Raises ArgumentError for stochastic rounding, and whatever `quantize_exact` raises.

    >>> quantize_integers(2.5, 1.0, 0, QuantSpec(8)), quantize_integers(-0.5, 1.0, 3, QuantSpec(8, rounding="floor"))
    (2, 2)
    """
    where = "quantize_integers"
    if instance_of(spec, QuantSpec, "spec", where).rounding == "stochastic":
        raise ArgumentError(complaint("rounding=stochastic", "deterministic", where))
    exact_parameters(scale, zero_point, spec, where)
    x, fill = (0.0, code_of_nan(spec)) if math.isnan(x) else (x, None)
    before = spec.zero_point_order == "before"
    q = _quotient(x, scale, zero_point if before else None, spec)
    if fill is not None:
        return fill
    if isinstance(q, int):  # an infinity: beyond either end
        c = spec.qmax + 1 if q > 0 else spec.qmin - 1
    else:
        c = _round(*q, spec.rounding) + (0 if before else int(zero_point))
        if spec.overflow == "wrap":
            low = c & ((1 << spec.bits) - 1)  # two's complement: keep the low bits, read the sign bit
            return low - (1 << spec.bits) if spec.signed and low >> (spec.bits - 1) else low
    if spec.overflow == "raise" and not spec.qmin <= c <= spec.qmax:
        raise overflow_error(spec, 1, where)
    return sorted((spec.qmin, c, spec.qmax))[1]
