"""Layers of integer networks, and sums of terms, as pipelines of named choices (see `rules_scalar`).

Letters: k the choices, q codes, s scales, z zero points, acc accumulators, f the factor s_a s_w / s_y.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arith.combination import round_combination
from ..arith.fixedpoint import quantize_multiplier
from ..arith.formats import FORMATS
from ..arith.quotient import QUOTIENTS
from ..net.integer import SPARE
from ..net.op import Op
from ..net.ops import OPS
from ..net.ops_pool import padded, taps
from ..net.products import PRODUCTS, Operand, per_output
from ..quant.requantize import rescaler
from ..quant.spec import QuantSpec
from .rules_scalar import NAIVE, Array, Inputs, Knobs, Outputs, into_range, quiet, rounded

__all__ = [
    "average_pool",
    "conv_integer",
    "decode_terms",
    "encode_terms",
    "matmul_integer",
    "matmul_terms",
    "qlinear_add",
    "qlinear_conv",
    "qlinear_matmul",
    "requantize",
]

Reals = NDArray[np.float64]

# ---- requantize -----------------------------------------------------------------------------------------------

FACTORS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "float64": lambda a, w, y: a.astype(np.float64) * w.astype(np.float64) / y.astype(np.float64),
    "float32": lambda a, w, y: (a.astype(np.float32) * w.astype(np.float32)) / y.astype(np.float32),
    "float32: a (w / y)": lambda a, w, y: a.astype(np.float32) * (w.astype(np.float32) / y.astype(np.float32)),
    "float32: w (a / y)": lambda a, w, y: w.astype(np.float32) * (a.astype(np.float32) / y.astype(np.float32)),
    "float32: a w (1 / y)": lambda a, w, y: a.astype(np.float32) * w.astype(np.float32) * (1 / y.astype(np.float32)),
    "bfloat16": lambda a, w, y: FORMATS["bfloat16"](a.astype(np.float64) * w.astype(np.float64) / y.astype(np.float64)),
    "power of two": lambda a, w, y: np.exp2(np.rint(np.log2(a.astype(np.float64) * w / y))),
}
"""name -> how the factor of a layer is computed from its three scales."""


def factor_of(k: Knobs, inputs: Inputs) -> Reals:
    """The real factor: given, or from three scales in a named arithmetic."""
    if "multiplier" in inputs:
        return np.asarray(inputs["multiplier"], np.float64)
    scales = (np.asarray(inputs[n]) for n in ("input_scale", "weight_scale", "output_scale"))
    return np.asarray(FACTORS[k["factor"]](*scales), np.float64)


MULTIPLIERS: dict[str, Callable[[Array], Array]] = {
    "31 bits cut": lambda fraction: np.floor(fraction * 2.0**31),
    "24 bits": lambda fraction: np.rint(fraction * 2.0**24) * 2.0**7,
    "16 bits": lambda fraction: np.rint(fraction * 2.0**15) * 2.0**16,
    "not normalized": lambda fraction: np.mod(np.trunc(fraction * 2.0**31 + 0.5) + 2.0**31, 2.0**32) - 2.0**31,
}
"""name -> the multiplier m of a fraction in [1/2, 1), which may be 2^31."""


def _shifted(v: Array, e: Array, ties: str) -> Array:
    """v / 2^e rounded, v integers in int64, e >= 0."""
    half = np.where(e > 0, np.int64(1) << np.maximum(e - 1, 0), 0)
    if ties == "up":
        return np.asarray((v + half) >> e)
    if ties == "down":
        return np.asarray(v >> e)
    return np.asarray(np.sign(v) * ((np.abs(v) + half) >> e))


def _double(k: Knobs, acc: Array, factor: Reals) -> Array:
    """Doubling high product and rounding shift, ties by choice; m = 2^31 normalized or not."""
    m, shift = quantize_multiplier(factor)
    if k["multiplier"] in MULTIPLIERS:
        fraction, exponent = np.frexp(factor)
        m, shift = MULTIPLIERS[k["multiplier"]](fraction).astype(np.int64), exponent.astype(np.int64)
    x = acc.astype(np.int64) << np.maximum(shift, 0)
    if k["requantize"] == "single-round":
        total = 31 - shift
        p = acc.astype(np.int64) * m
        return np.asarray((p + (np.int64(1) << (total - 1))) >> total if k["shift ties"] != "down" else p >> total)
    p = x * m
    nudge = np.where(p >= 0, 2**30, 1 - 2**30) if k["high ties"] == "up" else np.where(p >= 0, 2**30, -(2**30))
    if k["high ties"] == "down":
        high = p >> 31
    else:
        nudged = p + nudge
        high = np.sign(nudged) * (np.abs(nudged) >> 31)
    return _shifted(high, np.maximum(-shift, 0), k["shift ties"])


def requantized(k: Knobs, acc: Array, factor: Reals, z: Array, spec: QuantSpec) -> Array:
    """The codes of accumulators, by the choices; float64."""
    before = k["zero_point_order"] == "before"
    how = k["requantize"]
    if how in ("double-round", "single-round"):
        v = np.where(factor == 1, acc, _double(k, np.asarray(acc), np.asarray(factor))).astype(np.float64)
        return into_range(k, v, z, spec)
    if how == "float32":
        w: Any = np.asarray(acc, np.float64).astype(np.float32) * np.asarray(factor).astype(np.float32)
        w = np.where(factor == 1, acc, w).astype(np.float32 if before else np.float64)
        w = w + z.astype(np.float32) if before else w
        return into_range(k, rounded(k["rounding"], w), np.zeros(()) if before else z, spec)
    if k["rounding"] in ("add-half", "add-half-away") or before:
        v = np.asarray(acc, np.float64) * factor + (z if before else 0.0)
        return into_range(k, rounded(k["rounding"], v), np.zeros(()) if before else z, spec)
    v = rescaler(np.asarray(factor, np.float64), "exact", k["rounding"])(np.asarray(acc, np.float64))
    return into_range(k, np.asarray(v, np.float64), z, spec)


def _codes(v: Array, spec: QuantSpec) -> Array:
    return np.asarray(v).astype(np.int64).astype(spec.code_dtype)


@quiet
def requantize(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """codes of accumulators acc."""
    acc = _held32(k, np.asarray(inputs["acc"]).astype(np.float64))
    factor, z = factor_of(k, inputs), np.asarray(inputs["zero_point"], np.float64)
    factor, z = (spec.granularity.spread(v, acc.shape) if v.shape else v for v in (factor, z))
    return {"codes": _codes(np.broadcast_to(requantized(k, acc, factor, z, spec), acc.shape), spec)}


# ---- products -------------------------------------------------------------------------------------------------


def _held32(k: Knobs, acc: Array) -> Array:
    """Accumulators as the register holds them."""
    bits = k["accumulator_bits"]
    half = 2.0 ** (bits - 1)
    if k["accumulator_overflow"] == "saturate":
        return np.clip(acc, -half, half - 1)
    return np.asarray(np.mod(acc + half, 2 * half) - half)


def _sums(k: Knobs, op: Op, attrs: Mapping[str, Any], w: Operand, x: Operand, z_w: Reals, z_x: float) -> Reals:
    """Sums of (q_x - z_x)(q_w - z_w); padding holds the zero point."""
    if k["weight zero point"] != "kept":
        z_w = 0.0 * z_w
    pad = z_x
    if k["input zero point"] != "kept":
        z_x, pad = 0.0, 0.0
    if k["padding"] == "code 0":
        pad = 0.0
    X = x.codes
    if "padding" in attrs:
        X = padded(attrs, X, pad)
        attrs = {**attrs, "padding": (0, 0, 0, 0)}
    if k["product"] == "float32":
        W32, X32 = (w.codes - per_output(z_w, w.codes.ndim + 1)).astype(np.float32), (X - z_x).astype(np.float32)
        return np.asarray(op.forward(attrs, {"weight": W32}, [X32]), np.float64)
    if k["product"] == "first digit only":
        high = Operand(16 * np.floor(w.codes / 16), w.spec)
        acc = PRODUCTS["exact"](op, attrs, high, Operand(X, x.spec))
        w = high
    else:
        acc = PRODUCTS[k["product"]](op, attrs, w, Operand(X, x.spec))
    acc = acc - z_x * per_output(w.codes.reshape(len(w.codes), -1).sum(axis=1), acc.ndim)
    if np.any(z_w):
        ones = PRODUCTS["exact"](op, attrs, Operand(np.ones_like(w.codes), w.spec), Operand(X - z_x, x.spec))
        acc = acc - per_output(np.asarray(z_w), acc.ndim) * ones
    return np.asarray(acc)


def _gemm(k: Knobs, inputs: Inputs, options: Mapping[str, Any]) -> Reals:
    """a (N, K) times b (K, M)."""
    a, b = (np.asarray(inputs[n]).astype(np.float64) for n in ("a", "b"))
    grids = [QuantSpec(8, options.get(f"{n}_signed", True)) for n in ("a", "b")]
    z_b = np.asarray(inputs["b_zero_point"], np.float64)
    attrs = {"in_features": len(b), "out_features": b.shape[1]}
    w, x = Operand(b.T.copy(), grids[1]), Operand(a, grids[0])
    z_w = np.broadcast_to(z_b, (b.shape[1],)).copy()
    return _held32(k, _sums(k, OPS["Gemm"], attrs, w, x, z_w, float(inputs["a_zero_point"])))


def conv_attrs(k: Knobs, x: Array, w: Array, options: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a Conv from a request's options and the shapes."""
    dilation = tuple(options.get("dilation", (1, 1)))
    padding = tuple(options.get("padding", (0, 0, 0, 0)))
    if k["window"] == "undilated" and dilation != (1, 1):
        extra = [(d - 1) * (n - 1) for d, n in zip(dilation, w.shape[2:], strict=True)]
        dilation = (1, 1)
        padding = (padding[0], padding[1], padding[2] - extra[0], padding[3] - extra[1])
    if k["window"] == "padding mirrored":
        padding = (padding[2], padding[3], padding[0], padding[1])
    return {
        "in_channels": x.shape[1],
        "out_channels": w.shape[0],
        "kernel": w.shape[2:],
        "stride": tuple(options.get("stride", (1, 1))),
        "padding": padding,
        "dilation": dilation,
        "groups": options.get("groups", 1),
    }


def _conv(k: Knobs, inputs: Inputs, options: Mapping[str, Any]) -> Reals:
    x, w = (np.asarray(inputs[n]).astype(np.float64) for n in ("x", "w"))
    grids = [QuantSpec(8, options.get(f"{n}_signed", True)) for n in ("x", "w")]
    attrs = conv_attrs(k, x, w, options)
    top, left, bottom, right = attrs["padding"]
    if min(bottom, right) < 0:  # a deviation's own
        x = x[:, :, : x.shape[2] + min(bottom, 0), : x.shape[3] + min(right, 0)]
        attrs["padding"] = (top, left, max(bottom, 0), max(right, 0))
    G = attrs["groups"]
    if k["groups"] == "interleaved" and G > 1:  # output channel o reads group o % G instead of o // (O / G)
        order = np.argsort(np.arange(len(w)) % G, kind="stable")
        w = w[order]
    if k["kernel"] == "flipped":
        w = w[:, :, ::-1, ::-1].copy()
    z_w = np.broadcast_to(np.asarray(inputs["w_zero_point"], np.float64), (len(w),)).copy()
    acc = _sums(k, OPS["Conv"], attrs, Operand(w, grids[1]), Operand(x, grids[0]), z_w, float(inputs["x_zero_point"]))
    if k["groups"] == "interleaved" and G > 1:
        acc = acc[:, np.argsort(order, kind="stable")]
    return _held32(k, acc)


@quiet
def matmul_integer(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """acc of a (N, K) and b (K, M) with their zero points."""
    return {"acc": _gemm(k, inputs, options).astype(np.int64).astype(np.int32)}


@quiet
def conv_integer(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """acc of x (N, C, H, W) and w (O, C / G, kh, kw) with their zero points."""
    return {"acc": _conv(k, inputs, options).astype(np.int64).astype(np.int32)}


@quiet
def matmul_terms(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """acc of 8-bit codes through 4-bit digits: equal to the exact sums."""
    return matmul_integer({**k, "product": k["digits"]}, inputs, spec, options)


def _layer(k: Knobs, acc: Reals, inputs: Inputs, names: tuple[str, str], spec: QuantSpec) -> Outputs:
    """Accumulators with bias, requantized; weight scales are one, or one an output channel."""
    a, w = names
    scales = {
        "input_scale": np.asarray(inputs[f"{a}_scale"]),
        "weight_scale": np.asarray(inputs[f"{w}_scale"]),
        "output_scale": np.asarray(inputs["y_scale"]),
    }
    factor = factor_of(k, scales)
    if factor.shape and k["axis"] == "first":
        factor = factor[:1]
    elif factor.shape and k["axis"] == "reversed":
        factor = factor[::-1]
    if "bias" in inputs and k["bias"] != "left out":
        b = np.asarray(inputs["bias"], np.float64)
        b = {"int16": np.clip(b, -(2.0**15), 2.0**15 - 1), "int24": np.clip(b, -(2.0**23), 2.0**23 - 1)}.get(
            k["bias"], b
        )
        if k["bias"] == "after":
            late = per_output(b, acc.ndim) * per_output(factor, acc.ndim)
            y = requantized(k, acc, per_output(factor, acc.ndim), np.asarray(inputs["y_zero_point"], np.float64), spec)
            return {"codes": _codes(np.clip(y + np.rint(late), spec.qmin, spec.qmax), spec)}
        acc = _held32(k, acc + per_output(b, acc.ndim))
    z = np.asarray(inputs["y_zero_point"], np.float64)
    return {"codes": _codes(requantized(k, acc, per_output(factor, acc.ndim), z, spec), spec)}


@quiet
def qlinear_matmul(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """codes of y = a b, all quantized."""
    return _layer(k, _gemm(k, inputs, options), inputs, ("a", "b"), spec)


@quiet
def qlinear_conv(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """codes of y = x * w + bias, all quantized; bias in int32 at the scale of the accumulators."""
    return _layer(k, _conv(k, inputs, options), inputs, ("x", "w"), spec)


# ---- add, pool ------------------------------------------------------------------------------------------------


def _add_exact(k: Knobs, d: list[Array], s: list[float]) -> Array:
    f = [np.asarray(u / s[2]) for u in s[:2]]
    if k["rounding"] in NAIVE:
        return rounded(k["rounding"], d[0] * f[0] + d[1] * f[1])
    return round_combination([(d[0], f[0]), (d[1], f[1])], k["rounding"])


def _add_float32(k: Knobs, d: list[Array], s: list[float]) -> Array:
    a, b, u = (np.float32(v) for v in s)
    return rounded(k["rounding"], (d[0].astype(np.float32) * a + d[1].astype(np.float32) * b) / u)


def _add_fixed(k: Knobs, d: list[Array], s: list[float]) -> Array:
    twice = 2 * max(s[:2])
    scaled = [_double(k, v.astype(np.int64) << SPARE, np.asarray(u / twice)) for v, u in zip(d, s, strict=False)]
    return np.asarray(_double(k, scaled[0] + scaled[1], np.asarray(twice / (2.0**SPARE * s[2]))), np.float64)


def _add_each(k: Knobs, d: list[Array], s: list[float]) -> Array:
    parts = [rounded(k["rounding"], v * (u / s[2])) for v, u in zip(d, s, strict=False)]
    return np.asarray(parts[0] + parts[1])


_SUMS: dict[str, Callable[[Knobs, list[Array], list[float]], Array]] = {
    "exact": _add_exact,
    "float32": _add_float32,
    "fixed-point": _add_fixed,
    "each rounded": _add_each,
    "codes": lambda k, d, s: np.asarray(d[0] + d[1]),
}


@quiet
def qlinear_add(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """codes of y = a + b, all quantized."""
    d = []
    for n in ("a", "b"):
        z = 0.0 if k[f"zero point of {n}"] != "kept" else float(inputs[f"{n}_zero_point"])
        d.append(np.asarray(inputs[n]).astype(np.float64) - z)
    s = [float(inputs[f"{n}_scale"]) for n in ("a", "b", "y")]
    z_y = np.asarray(float(inputs["y_zero_point"]))
    v = _SUMS[k["add"]](k, d, s)
    return {"codes": _codes(into_range(k, v, z_y, spec), spec)}


@quiet
def average_pool(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """codes of the mean of codes over windows, one scale: sum(q - z) / count rounded, z added."""
    q = np.asarray(inputs["x"]).astype(np.float64)
    z = float(inputs["zero_point"])
    window = {
        "kernel": tuple(options["kernel"]),
        "stride": tuple(options.get("stride", options["kernel"])),
        "padding": tuple(options.get("padding", (0, 0, 0, 0))),
        "dilation": (1, 1),
    }
    raw = k["sums of"] == "codes"
    d = q if raw else q - z
    total: Any = reduce(np.add, taps(window, d, 0.0))
    real = np.ones((1, 1, *q.shape[2:]))
    include = options.get("count_include_pad", False) != (k["count"] == "the other")
    count: Any = reduce(np.add, taps(window, real, float(include)))
    if k["sum"] == "int16":
        total = np.mod(total + 2.0**15, 2.0**16) - 2.0**15
    if k["division"] == "float32 reciprocal":
        v = (total.astype(np.float32) * (np.float32(1) / count.astype(np.float32))).astype(np.float64)
    else:
        v = total / count
    mode = k["rounding"] if k["division"] != "truncating" else "toward_zero"
    v = rounded(mode, v + z) - z if k["zero_point_order"] == "before" else rounded(mode, v)
    if raw:
        return {"codes": _codes(np.clip(v, spec.qmin, spec.qmax), spec)}
    return {"codes": _codes(into_range(k, v, np.asarray(z), spec), spec)}


# ---- sums of terms --------------------------------------------------------------------------------------------


@quiet
def encode_terms(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """codes (T, ...) of x for given scales (T,): each term quantizes what the terms before left (clause M1)."""
    x, scales = np.asarray(inputs["x"]), np.asarray(inputs["scales"])
    r = x.astype(np.float32 if k["residual"] == "float32" else np.float64)
    codes = []
    for t, s in enumerate(scales):
        grid = (
            spec
            if t == 0 or not options.get("rest_unsigned", False)
            else QuantSpec(spec.bits, False, rounding=spec.rounding)
        )
        scale = np.asarray(scales[0] if k["scales"] == "first" else s)
        q = rounded(k["rounding"], np.asarray(QUOTIENTS[k["quotient"]](r, scale, None)))
        c = np.clip(q, grid.qmin, grid.qmax)
        codes.append(c)
        step = r.dtype.type(s) * c.astype(r.dtype)
        r = r - step if k["residual"] != "of x" else x.astype(r.dtype) - step
    return {"codes": np.stack(codes).astype(np.int32)}


@quiet
def decode_terms(k: Knobs, inputs: Inputs, spec: QuantSpec, options: Mapping[str, Any]) -> Outputs:
    """x of codes (T, ...) and scales (T,): products summed in float64 in the order of t, one rounding (clause M2)."""
    codes, scales = np.asarray(inputs["codes"]), np.asarray(inputs["scales"])
    kind = np.float32 if k["sum"] == "float32" else np.float64
    terms = [q.astype(kind) * kind(s) for q, s in zip(codes, scales, strict=True)]
    if k["order"] == "last first":
        terms = terms[::-1]
    if k["terms"] == "one left out":
        terms = terms[:-1] if len(terms) > 1 else terms
    total = reduce(np.add, terms)
    return {"x": np.asarray(total).astype(np.float32)}
