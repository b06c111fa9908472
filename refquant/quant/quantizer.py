"""Codes from reals and reals from codes: clauses Q1 to Q6 and D1 to D2.

Letters: x input, s scale, z zero point, q = x/s the quotient, k its rounding, c the code.

The definition is on Fractions, one element at a time (`quantize_exact`, `dequantize_exact`); the array
form is what one uses, and tests bind the two.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..arith.exact import product, two_sum
from ..arith.formats import FORMATS, round_fraction
from ..arith.quotient import EXACT_LIMIT, QUOTIENTS, exact_position
from ..arith.rounding import round_array, round_exact
from ..errors import ArgumentError, CodeOverflowError, NotANumberError, complaint
from .spec import QuantSpec

__all__ = [
    "dequantize",
    "dequantize_exact",
    "fake_quantize",
    "into_range",
    "parameters",
    "quantize",
    "quantize_exact",
    "reals",
]

Real: TypeAlias = float | Fraction
Reals: TypeAlias = NDArray[Any]


# ---- the definition -------------------------------------------------------------------------------------------


def _rounded(v: Fraction | float, to: str) -> Fraction | float:
    return round_fraction(v, to) if isinstance(v, Fraction) else v


def _in_range(v: Fraction | float, what: str) -> Fraction:
    if not isinstance(v, Fraction):
        raise ArgumentError(complaint(what, "finite in the arithmetic of the quotient", "clause Q2"))
    return v


def _divide_by_definition(x: Fraction, s: Fraction, z: Fraction | None, quotient: str) -> Fraction | float:
    """Clauses Q2 and Q3 for finite x: the quotient, and the zero point if it is added here."""
    if quotient == "exact":
        return x / s + (z or 0)
    to = quotient.removeprefix("fused-").removeprefix("reciprocal-")
    S = _in_range(_rounded(s, to), f"scale={float(s)} in {to}")
    Z = _in_range(_rounded(z or Fraction(0), to), f"zero_point in {to}")
    X = _rounded(x, to)
    if S == 0:
        raise ArgumentError(complaint(f"scale={float(s)}, which becomes 0 in {to}", "> 0", "clause Q2"))
    if not isinstance(X, Fraction):
        return X
    v = X / S if to == quotient else X * _in_range(_rounded(1 / S, to), "1/scale")
    if quotient.startswith("fused-"):
        return _rounded(v + Z, to)
    q = _rounded(v, to)
    return _rounded(q + Z, to) if isinstance(q, Fraction) and z is not None else q


def quantize_exact(
    x: Real, scale: Real, zero_point: Real, spec: QuantSpec, random_bits: tuple[int, int] | None = None
) -> int:
    """The code of one real by the numbered clauses, on Fractions: the definition that arrays are held to.

    x and scale are taken as the rationals that they are.  +-inf saturates; NaN goes by `spec.nan`.
    For `rounding="stochastic"`, random_bits is (u, width) with 0 <= u < 2^width: floor(q + u / 2^width).

    Raises ArgumentError for a scale that is not finite and > 0, NotANumberError and CodeOverflowError as
    the spec says.  Source: clauses Q1 to Q6.

    >>> quantize_exact(2.5, 1.0, 0, QuantSpec(8)), quantize_exact(-300.0, 1.0, 0, QuantSpec(8))
    (2, -128)
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ArgumentError(complaint(f"scale={scale}", "finite and > 0", "clause Q1"))
    if math.isnan(x):
        return _code_of_nan(spec, round(zero_point))
    before = spec.zero_point_order == "before"
    q: Fraction | float = x
    if math.isfinite(x):
        q = _divide_by_definition(Fraction(x), Fraction(scale), Fraction(zero_point) if before else None, spec.quotient)
    if not isinstance(q, Fraction):
        if spec.overflow == "raise":
            raise CodeOverflowError(_overflow_message(spec, 1))
        return spec.qmax if q > 0 else spec.qmin
    if spec.rounding == "stochastic":
        u, width = _need_random_bits(random_bits)
        k = (q + Fraction(u, 1 << width)).__floor__()
    else:
        k = round_exact(q, spec.rounding)
    c = k if before else k + int(zero_point)
    if spec.qmin <= c <= spec.qmax:
        return c
    if spec.overflow == "raise":
        raise CodeOverflowError(_overflow_message(spec, 1))
    if spec.overflow == "wrap":
        return (c - spec.qmin) % (1 << spec.bits) + spec.qmin
    return spec.qmin if c < spec.qmin else spec.qmax


def dequantize_exact(code: int, scale: Real, zero_point: Real, spec: QuantSpec, to: str = "float32") -> float:
    """The real of one code, on Fractions: the definition of clauses D1 and D2.

    >>> dequantize_exact(3, 0.5, 1, QuantSpec(8))
    1.0
    """
    s, z = Fraction(scale), Fraction(zero_point)
    if spec.dequantize == "scale-difference":
        return float(round_fraction((code - z) * s, to))
    first, second = round_fraction(code * s, to), round_fraction(z * s, to)
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return float(round_fraction(first - second, to))
    return float(first) - float(second)


# ---- arguments ------------------------------------------------------------------------------------------------


def reals(x: ArrayLike, what: str = "x") -> Reals:
    """x as a float16, float32 or float64 array, values unchanged; integers and booleans become float64.

    Raises ArgumentError for any other type and for integers that float64 cannot hold.

    >>> reals([1, 2]).dtype, reals(np.float32(1)).dtype
    (dtype('float64'), dtype('float32'))
    """
    a = np.asarray(x)
    if a.dtype in (np.float16, np.float32, np.float64):
        return a
    if a.dtype.kind in "iub":
        f = a.astype(np.float64)
        if a.dtype.itemsize < 8 or bool(np.all(np.abs(f) <= 2.0**53)):
            return f
    types = "real numbers: float16, float32, float64, or integers up to 2^53"
    raise ArgumentError(complaint(f"{what} of type {a.dtype}", types, "quantize", "convert it first"))


class Parameters(NamedTuple):
    """Scale and zero point, checked and spread over the tensor."""

    s: Reals
    z: Reals


def _shaped(parameter: NDArray[Any], name: str, shape: tuple[int, ...], spec: QuantSpec) -> NDArray[Any]:
    wanted = spec.granularity.parameter_shape(shape)
    if parameter.shape not in ((), wanted):
        got, should = f"{name} of shape {parameter.shape}", f"shape {wanted} (or a scalar)"
        raise ArgumentError(complaint(got, should, f"{spec.granularity} of a tensor of shape {shape}"))
    return spec.granularity.spread(parameter, shape) if parameter.shape else parameter


def parameters(scale: ArrayLike, zero_point: ArrayLike, shape: tuple[int, ...], spec: QuantSpec) -> Parameters:
    """Scale and zero point for a tensor of this shape, broadcastable against it.

    Raises ArgumentError where a scale is not finite and > 0, where a zero point added after rounding is
    not an integer in [qmin, qmax], and where a shape does not fit the granularity.
    """
    s, z = reals(scale, "scale"), reals(zero_point, "zero_point")
    if not np.all(np.isfinite(s) & (s > 0)):
        worst = s[~(np.isfinite(s) & (s > 0))].flat[0]
        raise ArgumentError(complaint(f"scale={worst!s}", "finite and > 0", f"quantize(spec={spec})"))
    if spec.zero_point_order == "after":
        good = (z == np.rint(z)) & (z >= spec.qmin) & (z <= spec.qmax)
        should, todo = f"an integer in [{spec.qmin}, {spec.qmax}]", "clip it or widen bits"
    else:
        good = np.isfinite(z)
        should, todo = "finite", ""
    if not np.all(good):
        got = f"zero_point={z[~good].flat[0]:g}"
        raise ArgumentError(complaint(got, should, f"quantize(spec={spec})", todo))
    return Parameters(_shaped(s, "scale", shape, spec), _shaped(z, "zero_point", shape, spec))


def _overflow_message(spec: QuantSpec, count: int) -> str:
    got = f"{count} value{'s' if count != 1 else ''} beyond the codes"
    should = f"in [{spec.qmin}, {spec.qmax}]"
    return complaint(got, should, f"quantize(spec={spec}, overflow='raise')", "saturate, or enlarge the scale")


def _code_of_nan(spec: QuantSpec, z: int) -> int:
    if spec.nan == "raise":
        todo = "clean the input, or name a policy: nan='zero', 'qmin' or 'qmax'"
        raise NotANumberError(complaint("NaN", "a real number", f"quantize(spec={spec}), clause Q1", todo))
    return {"zero": z, "qmin": spec.qmin, "qmax": spec.qmax}[spec.nan]


def _need_random_bits(random_bits: Any) -> Any:
    if random_bits is None:
        should = "given: floor(q + u / 2^width) needs the bits u"
        raise ArgumentError(complaint("random_bits=None", should, "rounding='stochastic'"))
    return random_bits


# ---- the array form -------------------------------------------------------------------------------------------


def _stochastic(x: Reals, s: Reals, bits: NDArray[np.unsignedinteger]) -> NDArray[np.float64]:
    """floor(x/s + u / 2^width), exactly: the width is that of the unsigned type of u."""
    width = 8 * bits.dtype.itemsize
    magnitude, S = np.broadcast_arrays(np.abs(np.asarray(x, np.float64)), np.asarray(s, np.float64))
    with np.errstate(invalid="ignore", over="ignore"):
        rest = np.fmod(magnitude, S)
        n = np.rint((magnitude - rest) / S)
        large = S >= 1
        over, under = np.where(large, rest, np.ldexp(rest, width)), np.where(large, np.ldexp(S, -width), S)
        fine = exact_position(over, under)  # of r 2^width
        fraction = np.where(x < 0, -np.ceil(fine), np.floor(fine))  # floor of +-r 2^width, below 2^32
        carry = np.floor((fraction + bits) / 2.0**width)
        return np.where(np.isfinite(x), np.where(x < 0, -n, n) + carry, x)


def _random_bits(random_bits: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.unsignedinteger]:
    u = np.asarray(_need_random_bits(random_bits))
    if u.dtype not in (np.uint8, np.uint16, np.uint32) or u.shape != shape:
        got = f"random_bits of type {u.dtype} and shape {u.shape}"
        raise ArgumentError(complaint(got, f"uint8, uint16 or uint32 of shape {shape}", "rounding='stochastic'"))
    return u


def into_range(k: NDArray[np.float64], z: NDArray[np.float64], spec: QuantSpec) -> NDArray[np.int64]:
    """Clauses Q5 and Q6: integers k (floats, possibly infinite) plus z, brought into [qmin, qmax]."""
    low, high = spec.qmin - z, spec.qmax - z
    beyond = (k < low) | (k > high)
    if spec.overflow == "raise" and beyond.any():
        raise CodeOverflowError(_overflow_message(spec, int(beyond.sum())))
    if spec.overflow == "wrap":
        turn = 2.0**spec.bits
        with np.errstate(invalid="ignore"):
            wrapped = np.mod(np.fmod(k, turn) - low, turn) + low
        k = np.where(np.isfinite(k), wrapped, k)
    return (np.clip(k, low, high) + z).astype(np.int64)


def _by_definition(
    where: NDArray[np.bool_], codes: NDArray[np.int64], x: Reals, s: Reals, z: Reals, u: Any, spec: QuantSpec
) -> None:
    """Overwrite the codes at a few elements with the definition's."""
    X, S, Z = (np.broadcast_to(v, codes.shape)[where].tolist() for v in (x, s, z))
    U = [None] * len(X) if u is None else [(int(b), 8 * u.dtype.itemsize) for b in u[where]]
    codes[where] = [quantize_exact(a, b, c, spec, d) for a, b, c, d in zip(X, S, Z, U, strict=True)]


def quantize(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = 0,
    *,
    spec: QuantSpec,
    random_bits: ArrayLike | None = None,
) -> NDArray[np.int32] | NDArray[np.int64]:
    """The integer codes of a real tensor, element for element those of `quantize_exact`.

    x: any shape, float16, float32, float64 (or integers); taken as the reals that they are.
    scale, zero_point: scalars or of shape `spec.granularity.parameter_shape(x.shape)`; scale in reals per
    step, zero_point in codes.  Returns int32 codes (int64 above 31 bits) of x's shape.

    +-inf saturates (also under `wrap`), NaN goes by `spec.nan`, -0 is 0, empty gives empty.
    For `rounding="stochastic"`, random_bits holds uint8, uint16 or uint32 of x's shape.

    Raises ArgumentError for a scale not finite and > 0, a zero point or shape that does not fit;
    NotANumberError and CodeOverflowError where the spec says `raise`.  Source: clauses Q1 to Q6.

    >>> quantize([0.5, 1.5, 2.5, -9.0], 1.0, spec=QuantSpec(bits=4))
    array([ 0,  2,  2, -8], dtype=int32)
    """
    X = reals(x)
    s, z = parameters(scale, zero_point, X.shape, spec)
    before, stochastic = spec.zero_point_order == "before", spec.rounding == "stochastic"
    u = _random_bits(random_bits, X.shape) if stochastic else None
    nan = np.isnan(X)
    some_nan = bool(nan.any())
    if some_nan:
        _code_of_nan(spec, 0)
        X = np.where(nan, X.dtype.type(0), X)
    exact = spec.quotient == "exact"
    q = QUOTIENTS[spec.quotient](X, s, z if before else None)
    if u is not None:
        k = _stochastic(X, s, u) if exact else _stochastic(q, np.ones(()), u)
    else:
        k = round_array(q, spec.rounding).astype(np.float64, copy=False)
    offset = np.zeros(()) if before else z.astype(np.float64)
    codes = into_range(np.asarray(k), offset, spec)
    if exact and (spec.overflow == "wrap" or (u is not None and before)):
        far = np.isfinite(X) & ((np.abs(q) >= EXACT_LIMIT / 2) | np.full(X.shape, u is not None and before))
        if far.any():
            _by_definition(far, codes, X, s, z, u, spec)
    if some_nan:
        fill = np.rint(z).astype(np.int64) if spec.nan == "zero" else _code_of_nan(spec, 0)
        codes = np.where(nan, fill, codes)
    shaped: NDArray[Any] = codes.astype(spec.code_dtype).reshape(X.shape)
    return shaped


def _format_name(dtype: DTypeLike | str) -> str:
    name = dtype if dtype == "bfloat16" else np.dtype(dtype).name
    if name not in FORMATS:
        raise ArgumentError(complaint(f"dtype={name}", f"one of {', '.join(FORMATS)}", "dequantize"))
    return str(name)


def dequantize(
    codes: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = 0,
    *,
    spec: QuantSpec,
    dtype: DTypeLike | str = np.float32,
) -> NDArray[Any]:
    """The reals of integer codes: (q - z) exact, times the scale with one rounding to dtype.

    codes: integers, any shape; scale and zero_point as in `quantize`.  dtype: float16, float32, float64
    or "bfloat16" (returned as float32).  Overflow of dtype gives infinities, as IEEE 754 says.

    Raises ArgumentError for codes that are not integers or lie outside [qmin, qmax], and as `quantize`.
    Source: clauses D1, D2.

    >>> dequantize([-2, 0, 3], 0.5, 1, spec=QuantSpec(bits=3))
    array([-1.5, -0.5,  1. ], dtype=float32)
    """
    c = np.asarray(codes)
    if c.dtype.kind not in "iu" and c.size:
        raise ArgumentError(complaint(f"codes of type {c.dtype}", "integers", "dequantize"))
    if c.size and not (spec.qmin <= c.min() and c.max() <= spec.qmax):
        got = f"codes from {c.min()} to {c.max()}"
        raise ArgumentError(complaint(got, f"in [{spec.qmin}, {spec.qmax}]", f"dequantize(spec={spec})"))
    s, z = parameters(scale, zero_point, c.shape, spec)
    to = _format_name(dtype)
    q, S, Z = c.astype(np.float64), s.astype(np.float64), z.astype(np.float64)
    if spec.dequantize == "difference-of-products":
        with np.errstate(over="ignore", invalid="ignore"):
            return FORMATS[to](np.asarray(product(q, S, to) - product(Z, S, to))).reshape(c.shape)
    difference, lost = two_sum(q, -Z)
    x = np.asarray(product(difference, S, to))
    if np.any(lost):
        where = np.broadcast_to(lost != 0, c.shape)
        rows = zip(*(np.broadcast_to(v, c.shape)[where].tolist() for v in (c, S, Z)), strict=True)
        x[where] = [dequantize_exact(int(a), b, z0, spec, to) for a, b, z0 in rows]
    return x.reshape(c.shape)


def fake_quantize(x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = 0, *, spec: QuantSpec) -> NDArray[Any]:
    """x replaced by the reals of its codes, in x's own float type: dequantize after quantize.

    Arguments, edge cases and errors are those of `quantize` and `dequantize`.

    >>> fake_quantize([0.3, 0.8, 9.0], 0.5, spec=QuantSpec(bits=3))
    array([0.5, 1. , 1.5])
    """
    X = reals(x)
    return dequantize(quantize(X, scale, zero_point, spec=spec), scale, zero_point, spec=spec, dtype=X.dtype)
