"""Codes from reals and reals from codes: clauses Q1 to Q6 and D1 to D2.

Letters: x input, s scale, z zero point, q = x/s the quotient, k its rounding, c the code.

The definition is on Fractions, one element at a time (`quantize_exact`, `dequantize_exact`); the array
form is what one uses, and tests bind the two.
"""

from fractions import Fraction
from operator import index
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..arith.exact import product, two_sum
from ..arith.formats import FORMATS, round_fraction
from ..arith.quotient import EXACT_LIMIT, QUOTIENTS, exact_position
from ..arith.rounding import round_array, round_exact
from ..errors import ArgumentError, CodeOverflowError, NotANumberError, complaint, instance_of, one_of
from .arguments import Real, exact_parameters, parameters, rational, reals
from .spec import QuantSpec

__all__ = [
    "code_of_nan",
    "dequantize",
    "dequantize_exact",
    "fake_quantize",
    "into_range",
    "into_range_exact",
    "overflow_error",
    "parameters",
    "quantize",
    "quantize_exact",
    "quantized",
    "reals",
]

Reals: TypeAlias = NDArray[Any]


# ---- the definition -------------------------------------------------------------------------------------------


def _usable(v: Fraction, to: str, what: str) -> Fraction:
    """A scale, its reciprocal or a zero point in the arithmetic of the quotient."""
    rounded = round_fraction(v, to)
    if not isinstance(rounded, Fraction) or (what == "scale" and rounded == 0):
        should = "finite and > 0 in that arithmetic" if what == "scale" else "finite in that arithmetic"
        got = f"{what}, which becomes {float(rounded)} in {to}"
        raise ArgumentError(complaint(got, should, "clause Q2", "use a wider quotient"))
    return rounded


def _divide_by_definition(x: Fraction | float, s: Fraction, z: Fraction | None, quotient: str) -> Fraction | float:
    """Clauses Q2 and Q3: the quotient, and the zero point if it is added here; infinite where x or a step is."""
    if quotient == "exact":
        return x / s + (z or 0) if isinstance(x, Fraction) else x
    to = quotient.removeprefix("fused-").removeprefix("reciprocal-")
    S, Z = _usable(s, to, "scale"), _usable(z or Fraction(0), to, "zero_point")
    inverse = 1 / S if to == quotient else _usable(1 / S, to, "1/scale")
    X = round_fraction(x, to) if isinstance(x, Fraction) else x
    if not isinstance(X, Fraction):
        return X
    if quotient.startswith("fused-"):
        return round_fraction(X * inverse + Z, to)
    q = round_fraction(X * inverse, to)
    return round_fraction(q + Z, to) if isinstance(q, Fraction) and z is not None else q


def quantize_exact(
    x: Real, scale: Real, zero_point: Real, spec: QuantSpec, random_bits: tuple[int, int] | None = None
) -> int:
    """The code of one real by the numbered clauses, on Fractions: the definition that arrays are held to.

    x, scale and zero_point are taken as the rationals that they are: Python's and NumPy's numbers, Fractions of
    any size.  +-inf saturates; NaN goes by `spec.nan`.
    For `rounding="stochastic"`, random_bits is (u, width) with 0 <= u < 2^width: floor(q + u / 2^width).

    Raises ArgumentError for a scale, a zero point and random bits that do not fit, NotANumberError and
    CodeOverflowError as the spec says: all that `quantize` refuses.  Source: clauses Q1 to Q6.

    >>> quantize_exact(2.5, 1.0, 0, QuantSpec(8)), quantize_exact(-300.0, 1.0, 0, QuantSpec(8))
    (2, -128)
    """
    where = "quantize_exact"
    instance_of(spec, QuantSpec, "spec", where)
    X = rational(x, "x", where)
    s, z = exact_parameters(scale, zero_point, spec, where)
    before, stochastic = spec.zero_point_order == "before", spec.rounding == "stochastic"
    part = _fraction_of_bits(random_bits) if stochastic else Fraction(0)
    fill = None
    if X != X:  # NaN
        X, fill = Fraction(0), code_of_nan(spec)
    q = _divide_by_definition(X, s, z if before else None, spec.quotient)
    if fill is not None:
        return fill
    if not isinstance(q, Fraction):
        return into_range_exact(q, spec)
    k = (q + part).__floor__() if stochastic else round_exact(q, spec.rounding)
    return into_range_exact(k if before else k + int(z), spec)


def into_range_exact(c: int | float, spec: QuantSpec, where: str = "quantize") -> int:
    """Clause Q6 for one code, an integer or an infinity; an infinity saturates under `wrap` too.

    Raises CodeOverflowError for a code outside [qmin, qmax] under `raise`.

    >>> into_range_exact(200, QuantSpec(8)), into_range_exact(200, QuantSpec(8, overflow="wrap"))
    (127, -56)
    """
    if spec.qmin <= c <= spec.qmax:
        return int(c)
    if spec.overflow == "raise":
        raise overflow_error(spec, 1, where)
    if spec.overflow == "wrap" and isinstance(c, int):
        return (c - spec.qmin) % (1 << spec.bits) + spec.qmin
    return spec.qmin if c < spec.qmin else spec.qmax


def dequantize_exact(code: Real, scale: Real, zero_point: Real, spec: QuantSpec, to: str = "float32") -> float:
    """The real of one code, on Fractions: the definition of clauses D1 and D2.

    Arguments are taken as the rationals that they are; raises ArgumentError for all that `dequantize` refuses.

    >>> dequantize_exact(3, 0.5, 1, QuantSpec(8))
    1.0
    """
    where = "dequantize_exact"
    instance_of(spec, QuantSpec, "spec", where)
    one_of(to, FORMATS, "dtype", where)
    s, z = exact_parameters(scale, zero_point, spec, where)
    c = rational(code, "code", where)
    if not (isinstance(c, Fraction) and c.denominator == 1 and spec.qmin <= c <= spec.qmax):
        raise ArgumentError(complaint(f"code={code}", f"an integer in [{spec.qmin}, {spec.qmax}]", where))
    if spec.dequantize == "scale-difference":
        return float(round_fraction((c - z) * s, to))
    first, second = round_fraction(c * s, to), round_fraction(z * s, to)
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return float(round_fraction(first - second, to))
    return float(first) - float(second)


# ---- what both forms refuse -----------------------------------------------------------------------------------


def overflow_error(spec: QuantSpec, count: int, where: str) -> CodeOverflowError:
    """What is raised under `overflow="raise"` for so many codes outside [qmin, qmax]."""
    got = f"{count} value{'s' if count != 1 else ''} beyond the codes"
    should = f"in [{spec.qmin}, {spec.qmax}]"
    here = f"{where}(spec={spec}, overflow='raise')"
    return CodeOverflowError(complaint(got, should, here, "saturate, or enlarge the scale"))


def code_of_nan(spec: QuantSpec) -> int | None:
    """The code that NaN becomes (clause Q1); None where it is the code that 0 has.

    Raises NotANumberError where the policy is `raise`.

    >>> code_of_nan(QuantSpec(8, nan="qmin")), code_of_nan(QuantSpec(8, nan="zero"))
    (-128, None)
    """
    if spec.nan == "raise":
        todo = "clean the input, or name a policy: nan='zero', 'qmin' or 'qmax'"
        raise NotANumberError(complaint("NaN", "a real number", f"quantize(spec={spec}), clause Q1", todo))
    return {"zero": None, "qmin": spec.qmin, "qmax": spec.qmax}[spec.nan]


def _need_random_bits(random_bits: Any) -> Any:
    if random_bits is None:
        should = "given: floor(q + u / 2^width) needs the bits u"
        raise ArgumentError(complaint("random_bits=None", should, "rounding='stochastic'"))
    return random_bits


def _fraction_of_bits(random_bits: tuple[int, int] | None) -> Fraction:
    try:
        u, width = map(index, _need_random_bits(random_bits))
        fits = 0 <= u < 1 << width
    except (TypeError, ValueError):
        fits = False
    if not fits:
        should = "(u, width), integers with 0 <= u < 2^width"
        raise ArgumentError(complaint(f"random_bits={random_bits}", should, "rounding='stochastic'"))
    return Fraction(u, 1 << width)


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
    u = u.astype(u.dtype.newbyteorder("="), copy=False)
    if u.dtype not in (np.uint8, np.uint16, np.uint32) or u.shape != shape:
        got = f"random_bits of type {u.dtype} and shape {u.shape}"
        raise ArgumentError(complaint(got, f"uint8, uint16 or uint32 of shape {shape}", "rounding='stochastic'"))
    return u


def into_range(k: NDArray[Any], z: NDArray[Any], spec: QuantSpec, where: str = "quantize") -> NDArray[np.int64]:
    """Clauses Q5 and Q6: integers k (int64, or floats, possibly infinite) plus z, brought into [qmin, qmax].

    Exact in the type of k and z, where qmin - z and qmax - z are.  Raises CodeOverflowError as the spec says.

    >>> into_range(np.array([1e300, 2.0, -np.inf]), np.array(1.0), QuantSpec(8, overflow="wrap"))
    array([   1,    3, -128])
    """
    low, high = spec.qmin - z, spec.qmax - z
    beyond = (k < low) | (k > high)
    if spec.overflow == "raise" and np.any(beyond):
        raise overflow_error(spec, int(np.sum(beyond)), where)
    if spec.overflow == "wrap":
        turn = 1 << spec.bits
        with np.errstate(invalid="ignore"):
            wrapped = np.mod(np.fmod(k, turn) - low, turn) + low
        k = np.where(np.isfinite(k), wrapped, k)
    return np.asarray(np.clip(k, low, high) + z).astype(np.int64)


def _by_definition(where: NDArray[np.bool_], x: Reals, s: Reals, z: Reals, u: Any, spec: QuantSpec) -> list[int]:
    """The codes of a few elements, by the definition."""
    X, S, Z = (np.broadcast_to(v, where.shape)[where].tolist() for v in (x, s, z))
    U = [None] * len(X) if u is None else [(b, 8 * u.dtype.itemsize) for b in u[where].tolist()]
    return [quantize_exact(a, b, c, spec, d) for a, b, c, d in zip(X, S, Z, U, strict=True)]


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

    +-inf saturates (also under `wrap`), NaN goes by `spec.nan`, -0 is 0, empty gives empty.  A code by the
    policy `qmin` or `qmax` is not beyond the codes; one by `zero` is what 0 gives, and may be.
    For `rounding="stochastic"`, random_bits holds uint8, uint16 or uint32 of x's shape.

    Raises ArgumentError for a scale not finite and > 0, a zero point or shape that does not fit;
    NotANumberError and CodeOverflowError where the spec says `raise`.  Source: clauses Q1 to Q6.

    >>> quantize([0.5, 1.5, 2.5, -9.0], 1.0, spec=QuantSpec(bits=4))
    array([ 0,  2,  2, -8], dtype=int32)
    """
    return quantized(x, scale, zero_point, spec, random_bits)


def quantized(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike,
    spec: QuantSpec,
    random_bits: ArrayLike | None = None,
    where: str = "quantize",
) -> NDArray[np.int32] | NDArray[np.int64]:
    """What `quantize` gives; its errors say that they come from `where`.

    >>> quantized(2.5, 1.0, 0, QuantSpec(8))
    array(2, dtype=int32)
    """
    instance_of(spec, QuantSpec, "spec", where)
    X = reals(x, "x", where)
    s, z = parameters(scale, zero_point, X.shape, spec, where)
    before, stochastic = spec.zero_point_order == "before", spec.rounding == "stochastic"
    u = _random_bits(random_bits, X.shape) if stochastic else None
    nan, fill, real = np.isnan(X), None, X
    if nan.any():
        fill, real = code_of_nan(spec), np.where(nan, X.dtype.type(0), X)
    exact = spec.quotient == "exact"
    q = QUOTIENTS[spec.quotient](real, s, z if before else None)
    if u is not None:
        k = _stochastic(real, s, u) if exact else _stochastic(q, np.ones(()), u)
    else:
        k = round_array(q, spec.rounding).astype(np.float64, copy=False)
    k, offset = np.asarray(k), np.zeros(()) if before else z.astype(np.float64)
    if exact and (spec.overflow == "wrap" or (stochastic and before)):
        far = np.isfinite(real) & ((np.abs(q) >= EXACT_LIMIT / 2) | (stochastic and before))
        k[far] = _by_definition(far, X, s, z, u, spec) - np.broadcast_to(offset, X.shape)[far]
    if fill is not None:
        k = np.where(nan, fill - offset, k)
    codes: NDArray[Any] = into_range(k, offset, spec, where).astype(spec.code_dtype).reshape(X.shape)
    return codes


def _format_name(dtype: DTypeLike | str) -> str:
    try:
        name: object = dtype if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype).name
    except TypeError:
        name = dtype
    return one_of(name, FORMATS, "dtype", "dequantize")


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
    instance_of(spec, QuantSpec, "spec", "dequantize")
    c = np.asarray(codes)
    if c.dtype.kind not in "iu" and c.size:
        raise ArgumentError(complaint(f"codes of type {c.dtype}", "integers", "dequantize"))
    if c.size and not (spec.qmin <= c.min() and c.max() <= spec.qmax):
        got = f"codes from {c.min()} to {c.max()}"
        raise ArgumentError(complaint(got, f"in [{spec.qmin}, {spec.qmax}]", f"dequantize(spec={spec})"))
    s, z = parameters(scale, zero_point, c.shape, spec, "dequantize")
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
