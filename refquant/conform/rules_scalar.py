"""Element by element operations as pipelines of named choices, each of which a deviation may change.

Letters: k the choices ("knobs"), x input, s scale, z zero point, q quotient, c code.

With the choices that a spec names, every pipeline gives what the reference gives (a test holds it to that); another
value of one choice is a backend with one deviation, two are a pair.  So mutants and explanations are data: rows of
`deviations.DEVIATIONS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..arith.exact import product
from ..arith.formats import FORMATS
from ..arith.quotient import QUOTIENTS
from ..arith.rounding import round_array
from ..quant.granularity import PerChannel, PerGroup
from ..quant.ranges import RULES, by_rule
from ..quant.spec import QuantSpec

__all__ = [
    "NAIVE",
    "Array",
    "Inputs",
    "Knobs",
    "Outputs",
    "codes_of",
    "dequantize",
    "dynamic_quantize",
    "fake_quantize",
    "gradient",
    "into_range",
    "quantize",
    "quiet",
    "range_parameters",
    "rounded",
]

Array: TypeAlias = NDArray[Any]
Knobs: TypeAlias = Mapping[str, Any]
Inputs: TypeAlias = Mapping[str, Any]
Outputs: TypeAlias = dict[str, Array]


def quiet(f: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """The function with NumPy's warnings off.

    >>> quiet(lambda x: {"y": np.float32([x]) / 0})(1.0)
    {'y': array([inf], dtype=float32)}
    """

    def run(*args: Any) -> Outputs:
        with np.errstate(all="ignore"):  # deviations overflow where the rules do not
            return f(*args)

    return run


# ---- parameters: which of them serves an element --------------------------------------------------------------


def _spread(k: Knobs, parameter: Array, shape: tuple[int, ...], spec: QuantSpec) -> Array:
    """A parameter, broadcastable against the tensor, by the choice of axis."""
    p, grain = np.asarray(parameter), spec.granularity
    if not p.shape:
        return p
    if k["axis"] == "first":
        return np.asarray(p.ravel()[0])
    if k["axis"] == "reversed":
        p = np.flip(p)
    if isinstance(grain, PerChannel):
        fits = [a for a in range(len(shape)) if shape[a] == p.size]
        wanted = {"last": fits[-1:], "other": [a for a in fits if a != grain.axis % len(shape)]}.get(k["axis"], [])
        grain = PerChannel(wanted[0]) if wanted else grain
    if isinstance(grain, PerGroup) and k["axis"] == "even groups":  # i * groups // n instead of i // size
        n = shape[grain.axis]
        return np.asarray(np.take(p, np.arange(n) * p.shape[grain.axis] // n, grain.axis))
    return grain.spread(p, shape)


def _held(name: str, x: Array) -> Array:
    """x as a format holds it; subnormals may be flushed, or x be infinite where 1 / x is subnormal."""
    if name == "reciprocal flushed":
        return np.where(1 / x.astype(np.float64) < np.finfo(np.float32).smallest_normal, np.inf, x).astype(x.dtype)
    if name == "flushed":
        tiny = np.finfo(x.dtype if x.dtype.kind == "f" else np.float64).smallest_normal
        return np.where(np.abs(x) < tiny, np.copysign(x.dtype.type(0), x), x)
    return x if name == "as given" else FORMATS[name](x)


# ---- quantize -------------------------------------------------------------------------------------------------


def _add_half(q: Array) -> Array:
    """floor(q + 1/2) with the sum rounded: false ties below 1/2 and above 2^(p-1)."""
    return np.asarray(np.floor(q + q.dtype.type(0.5)))


def _add_half_away(q: Array) -> Array:
    return np.asarray(np.trunc(q + np.copysign(q.dtype.type(0.5), q)))


NAIVE: dict[str, Callable[[Array], Array]] = {"add-half": _add_half, "add-half-away": _add_half_away}
"""Roundings that are none of the nine: what one writes without thinking."""


def rounded(mode: str, q: Array) -> Array:
    """q rounded by one of the nine modes or a naive way, as float64."""
    return np.asarray((NAIVE[mode](q) if mode in NAIVE else round_array(q, mode)).astype(np.float64))


def _cast32(v: Array) -> Array:
    """What x86 makes of a float cast to int32: out of range, NaN and infinities give -2^31."""
    return np.where(np.abs(v) < 2.0**31, np.trunc(v), -(2.0**31))


def _wrapped(v: Array, low: float, spec: QuantSpec) -> Array:
    finite = np.where(np.isfinite(v), v, 0.0)
    return np.mod(np.fmod(finite, 2.0**spec.bits) - low, 2.0**spec.bits) + low


def into_range(k: Knobs, v: Array, z: Array, spec: QuantSpec) -> Array:
    """Integers v, the zero point z not yet added, as codes by the choice of overflow."""
    low, high = float(spec.qmin + (k["grid"] == "narrow" and not spec.narrow)), float(spec.qmax)
    if k["grid"] == "short":
        high -= 1
    how = k["overflow"]
    if how == "wrap":
        return _wrapped(v + z, low, spec)
    if how == "cast to int32":
        return np.asarray(np.clip(_cast32(v) + z, low, high))
    if how == "sum in int32":  # v fits, v + z wraps
        total = np.clip(v, -(2.0**31), 2.0**31 - 1) + z
        return np.clip(np.where(total > 2.0**31 - 1, total - 2.0**32, total), low, high)
    if how == "clip, then add":
        return np.asarray(np.clip(np.clip(v, low, high) + z, low, high))
    if how == "clip, then add and wrap":
        return _wrapped(np.clip(v, low, high) + z, low, spec)
    if how == "upper end only":
        return _wrapped(np.minimum(v + z, high), low, spec)
    return np.asarray(np.clip(v + z, low, high))


def codes_of(k: Knobs, x: Array, s: Array, z: Array, spec: QuantSpec) -> Array:
    """The codes of x as float64; s and z spread."""
    X, S = _held(k["operand"], x), _held(k["scale"], s)
    if k["clip"] == "reals first":
        low, high = ((spec.qmin - z) * S).astype(X.dtype), ((spec.qmax - z) * S).astype(X.dtype)
        X = np.clip(X, low, high)
    before = k["zero_point_order"] == "before"
    nan = np.isnan(X)
    X = np.where(nan, X.dtype.type(0), X)
    if k["infinity"] == "zero":
        X = np.where(np.isinf(X), X.dtype.type(0), X)
    if np.any(~np.isfinite(S) | (S <= 0)):  # a deviation's own: no scale is left
        q = np.where((X == 0) | np.isinf(S), 0.0, np.copysign(np.inf, X)) + 0 * np.where(np.isfinite(S), S, 0)
    else:
        try:
            q = QUOTIENTS[k["quotient"]](X, S, z.astype(np.float64) if before else None)
        except ValueError:
            q = np.where(X == 0, 0.0, np.copysign(np.inf, X)) + 0 * S
    c = into_range(k, rounded(k["rounding"], np.asarray(q)), np.zeros(()) if before else z, spec)
    fill: Any = {"zero": z, "qmin": spec.qmin, "qmax": spec.qmax, "raise": spec.qmin}[k["nan"]]
    return np.asarray(np.where(nan, fill, c))


@quiet
def quantize(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """codes of x with scale and zero_point."""
    x = np.asarray(inputs["x"])
    s, z = (_spread(k, np.asarray(inputs[n]), x.shape, spec) for n in ("scale", "zero_point"))
    z = z.astype(np.float64) if k["zero point"] == "kept" else 0.0 * z
    c = codes_of(k, x, s, z, spec)
    c = np.broadcast_to(c, x.shape).astype(np.int64).astype(spec.code_dtype)
    return {"codes": c[0] if k["shape"] == "squeezed" and x.shape[:1] == (1,) else c}


# ---- dequantize -----------------------------------------------------------------------------------------------


def reals_of(k: Knobs, c: Array, s: Array, z: Array, spec: QuantSpec, to: str) -> Array:
    """The reals of codes; s and z spread."""
    S, Z, q = _held(k["scale"], s).astype(np.float64), z.astype(np.float64), c.astype(np.float64)
    if k["zero point"] != "kept":
        Z = 0.0 * Z
    if k["dequantize"] == "difference-of-products":
        return FORMATS[to](np.asarray(product(q, S, to) - product(Z, S, to)))
    d = q - Z
    if k["difference"] == "wrap":
        d = np.mod(d + 2.0 ** (spec.bits - 1), 2.0**spec.bits) - 2.0 ** (spec.bits - 1)
    elif k["difference"] == "saturate":
        d = np.clip(d, -(2.0 ** (spec.bits - 1)), 2.0 ** (spec.bits - 1) - 1)
    elif k["difference"] == "reversed":
        d, S = Z - q, -S
    y = product(d, S, "float32") if k["result"] == "float32 first" else product(d, S, to)
    y = FORMATS[to](y)
    return _held("flushed", y) if k["result"] == "flushed" else y


@quiet
def dequantize(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """x of codes with scale and zero_point, in the format options["dtype"]."""
    c = np.asarray(inputs["codes"])
    s, z = (_spread(k, np.asarray(inputs[n]), c.shape, spec) for n in ("scale", "zero_point"))
    return {"x": np.broadcast_to(reals_of(k, c, s, z, spec, options.get("dtype", "float32")), c.shape)}


@quiet
def fake_quantize(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """x replaced by the reals of its codes, in its own format."""
    x = np.asarray(inputs["x"])
    s, z = (_spread(k, np.asarray(inputs[n]), x.shape, spec) for n in ("scale", "zero_point"))
    c = codes_of(k, x, s, z.astype(np.float64), spec)
    y = np.broadcast_to(reals_of(k, c, s, z, spec, x.dtype.name), x.shape)
    if k["sign of zero"] != "of the code":
        y = np.where((y == 0) if k["sign of zero"] == "kept" else (x == 0) & (y == 0), np.copysign(y, x), y)
    return {"y": y}


# ---- gradients ------------------------------------------------------------------------------------------------


@quiet
def gradient(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """Cotangents of fake_quantize: of x (straight through inside the range) and of the scale (LSQ), float64.

    A quotient that rounds to a code of the grid is inside.  The scale's is a sum over the elements that share it.
    """
    x, g = np.asarray(inputs["x"], np.float64), np.asarray(inputs["cotangent"], np.float64)
    s, z = (np.asarray(_spread(k, np.asarray(inputs[n]), x.shape, spec), np.float64) for n in ("scale", "zero_point"))
    u = x / s
    r = rounded(k["rounding"], u)
    low, high = spec.qmin - z, spec.qmax - z
    inside = (r >= low) & (r <= high)
    if k["inside"] == "by the quotient":
        inside = (u >= low) & (u <= high)
    elif k["inside"] == "open":
        inside = (r > low) & (r < high)
    elif k["inside"] == "everywhere":
        inside = np.ones_like(inside)
    own = {"rounding less quotient": r - u, "rounding": r, "quotient less rounding": u - r}[k["scale gradient"]]
    outside = np.where(r < low, low, high) if k["outside"] == "ends" else np.zeros_like(r)
    each = np.where((r >= low) & (r <= high), own, outside) * g
    wanted = spec.granularity.parameter_shape(x.shape)
    ds = spec.granularity.rows(each).sum(axis=1).reshape(wanted)
    return {"x": np.where(inside, g, 0.0), "scale": ds}


# ---- ranges ---------------------------------------------------------------------------------------------------


def _log2(v: Any) -> Array:
    return np.asarray(np.log2(np.asarray(v).astype(np.float32)))


LOGARITHMS: dict[str, Callable[[Any, int], Array]] = {
    "power-of-two-up": lambda largest, qmax: np.ceil(_log2(largest / qmax)),
    "power-of-two-nearest": lambda largest, qmax: np.rint(_log2(largest / qmax)),
    "power-of-two-floor": lambda largest, qmax: np.floor(_log2(largest)) - np.floor(np.log2(qmax)),
}
"""rule -> its exponent as one writes it without thinking: off next to powers of two."""


@quiet
def range_parameters(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """scale and zero_point of the range [lo, hi] by the rule options["rule"], its parts exchanged by the choices."""
    row = RULES[options["rule"]]
    for part in ("scale", "zero_point", "dtype", "with_zero", "least"):
        if k[f"rule: {part}"] is not None:
            row = replace(row, **{part: getattr(RULES[k[f"rule: {part}"]], part)})
    if k["exponent"] == "float32 logarithm" and options["rule"] in LOGARITHMS:
        exponent = LOGARITHMS[options["rule"]]
        row = replace(row, scale=lambda lo, hi, spec: np.exp2(np.float64(exponent(np.maximum(-lo, hi), spec.qmax))))
    s, z = by_rule(row, inputs["lo"], inputs["hi"], spec, "range_parameters")
    if k["zero overflow"] == "wrap":
        z = _wrapped(z, spec.qmin, spec)
    c = np.clip(z, spec.qmin, spec.qmax)
    if k["scale"] != "as given":
        s = _held(k["scale"], s)
    return {"scale": np.asarray(s, np.float32), "zero_point": c.astype(np.int64)}


@quiet
def dynamic_quantize(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """codes, scale and zero_point of x, its range by the rule options["rule"]."""
    x = np.asarray(inputs["x"])
    found = range_parameters(k, {"lo": x.min(), "hi": x.max()}, spec, options)
    return {**quantize(k, {"x": x, **found}, spec, options), **found}
