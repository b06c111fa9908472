"""What a caller passes, checked: numbers as arrays of reals, or one by one as the rationals that they are.

Letters: s scale, z zero point.  Arrays and single numbers are held to the same rules.
"""

from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, complaint
from .spec import QuantSpec

__all__ = [
    "Parameters",
    "Real",
    "exact_parameters",
    "parameters",
    "positive",
    "rational",
    "reals",
    "shaped",
    "top_code",
]

Real: TypeAlias = float | Fraction | np.number[Any]
Reals: TypeAlias = NDArray[Any]

_REAL = "real numbers: float16, float32, float64, or integers up to 2^53"
_POSITIVE = "finite and > 0"


# ---- arrays ---------------------------------------------------------------------------------------------------


def reals(x: ArrayLike, what: str = "x", where: str = "quantize") -> Reals:
    """x as a float16, float32 or float64 array, values unchanged; integers and booleans become float64.

    Raises ArgumentError for any other type and for integers beyond 2^53, above which float64 has gaps.

    >>> reals([1, 2]).dtype, reals(np.float32(1)).dtype
    (dtype('float64'), dtype('float32'))
    """
    try:
        a = np.asarray(x)
    except ValueError as error:  # rows of several lengths
        raise ArgumentError(complaint(f"{what}: {error}", "an array", where)) from None
    if a.dtype.kind == "f" and a.dtype.itemsize <= 8:
        return a.astype(a.dtype.newbyteorder("="), copy=False)
    if a.dtype.kind in "iub" and (not a.size or (-(2**53) <= int(a.min()) and int(a.max()) <= 2**53)):
        return a.astype(np.float64)
    extent = f" up to {max(abs(int(a.min())), abs(int(a.max())))}" if a.dtype.kind in "iu" else ""
    raise ArgumentError(complaint(f"{what} of type {a.dtype}{extent}", _REAL, where, "convert it first"))


def positive(x: ArrayLike, what: str, where: str) -> Reals:
    """x as an array of reals, each finite and > 0.

    Raises ArgumentError where one is not.

    >>> positive(0.5, "scale", "quantize")
    array(0.5)
    """
    v = reals(x, what, where)
    good = np.isfinite(v) & (v > 0)
    if not np.all(good):
        raise ArgumentError(complaint(f"{what}={v[~good].flat[0]!s}", _POSITIVE, where))
    return v


def top_code(spec: QuantSpec, where: str) -> int:
    """qmax as a divisor; raises ArgumentError for one bit with a sign, whose codes -1 and 0 leave none.

    >>> top_code(QuantSpec(8), "range_parameters")
    127
    """
    if not spec.qmax:
        todo = "take 2 bits, or a rule that does not divide by qmax"
        raise ArgumentError(complaint(f"qmax=0 ({spec})", "> 0", where, todo))
    return spec.qmax


def shaped(parameter: NDArray[Any], what: str, shape: tuple[int, ...], spec: QuantSpec) -> NDArray[Any]:
    """A parameter, which is a scalar or of the granularity's shape, broadcastable against a tensor of this shape.

    Raises ArgumentError for any other shape.

    >>> from .granularity import PerChannel
    >>> shaped(np.ones(2), "scale", (2, 3), QuantSpec(8, granularity=PerChannel(0))).shape
    (2, 1)
    """
    wanted = spec.granularity.parameter_shape(shape)
    if parameter.shape not in ((), wanted):
        got, should = f"{what} of shape {parameter.shape}", f"shape {wanted} (or a scalar)"
        raise ArgumentError(complaint(got, should, f"{spec.granularity} of a tensor of shape {shape}"))
    return spec.granularity.spread(parameter, shape) if parameter.shape else parameter


class Parameters(NamedTuple):
    """Scale and zero point, checked and spread over the tensor."""

    s: Reals
    z: Reals


def parameters(
    scale: ArrayLike,
    zero_point: ArrayLike,
    shape: tuple[int, ...],
    spec: QuantSpec,
    where: str = "quantize",
    what: str = "scale",
) -> Parameters:
    """Scale and zero point for a tensor of this shape, broadcastable against it.

    Raises ArgumentError where a scale is not finite and > 0, where a zero point added after rounding is not an
    integer in [qmin, qmax] (before: not finite), and where a shape does not fit the granularity.

    >>> parameters(0.5, 3, (2,), QuantSpec(8))
    Parameters(s=array(0.5), z=array(3.))
    """
    here = f"{where}(spec={spec})"
    s, z = positive(scale, what, here), reals(zero_point, "zero_point", here)
    good = np.isfinite(z)
    if spec.zero_point_order == "after":
        good &= (z == np.rint(z)) & (z >= spec.qmin) & (z <= spec.qmax)
    if not np.all(good):
        raise _unfit_zero_point(f"{z[~good].flat[0]:g}", spec, here)
    return Parameters(shaped(s, what, shape, spec), shaped(z, "zero_point", shape, spec))


def _unfit_zero_point(z: object, spec: QuantSpec, where: str) -> ArgumentError:
    should, todo = "finite", ""
    if spec.zero_point_order == "after":
        should, todo = f"an integer in [{spec.qmin}, {spec.qmax}]", "clip it or widen bits"
    return ArgumentError(complaint(f"zero_point={z!s}", should, where, todo))


# ---- single numbers -------------------------------------------------------------------------------------------


def rational(x: Real, what: str, where: str) -> Fraction | float:
    """The rational that a number is, of whatever type; an infinity or a NaN as a float.

    Raises ArgumentError for what is not a real number.

    >>> rational(np.float32(0.1), "x", "here"), rational(float("-inf"), "x", "here")
    (Fraction(13421773, 134217728), -inf)
    """
    try:
        number: Any = x.item() if isinstance(x, np.generic | np.ndarray) and x.ndim == 0 else x
        return Fraction(*number.as_integer_ratio())
    except (OverflowError, ValueError):  # an infinity, a NaN
        return float(number)
    except (AttributeError, TypeError):
        raise ArgumentError(complaint(f"{what}={x!r}", "a real number", where)) from None


def exact_parameters(
    scale: Real, zero_point: Real, spec: QuantSpec, where: str, what: str = "scale"
) -> tuple[Fraction, Fraction]:
    """Scale and zero point of one element as rationals; what `parameters` refuses is refused.

    >>> exact_parameters(0.5, 3, QuantSpec(8), "quantize_exact")
    (Fraction(1, 2), Fraction(3, 1))
    """
    here = f"{where}(spec={spec})"
    s, z = rational(scale, what, here), rational(zero_point, "zero_point", here)
    if not (isinstance(s, Fraction) and s > 0):
        raise ArgumentError(complaint(f"{what}={scale}", _POSITIVE, here))
    on_grid = isinstance(z, Fraction) and z.denominator == 1 and spec.qmin <= z <= spec.qmax
    if not (isinstance(z, Fraction) and (on_grid or spec.zero_point_order == "before")):
        raise _unfit_zero_point(zero_point, spec, here)
    return s, z
