"""Golden values: every operation by its definition, on integers and Fractions, one element at a time.

Letters: as in `rules_scalar` and `rules_layer`; fl rounds a rational once to a float format.

No path here is one that it is to check: codes come from `quantize_exact` and must equal `quantize_integers`, which
shares no arithmetic with it; products are sums of Python integers; float results are rationals rounded once where
their clause says so.  Scales and allocations are solved by one solver and refuted, or found again, by another.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arith.formats import round_fraction
from ..arith.rounding import round_exact
from ..errors import CertificateError, complaint
from ..quant.integer_spec import IntegerSpec
from ..quant.integers import quantize_integers
from ..quant.quantizer import dequantize_exact, quantize_exact
from ..quant.ranges_exact import range_parameters_exact
from ..quant.spec import QuantSpec
from ..solve.knapsack import allocate_integer
from ..solve.scale import solve_scale
from .operations import Request
from .rules_scalar import Outputs

__all__ = ["GOLDEN", "HOW", "added_exact", "golden", "requantized_exact", "rounded_to"]

Array = NDArray[Any]


def _spread(parameter: Any, shape: tuple[int, ...], spec: QuantSpec) -> Array:
    p = np.asarray(parameter)
    return np.broadcast_to(spec.granularity.spread(p, shape) if p.shape else p, shape)


def _elements(request: Request, first: str, *rest: str) -> tuple[Array, list[tuple[Any, ...]]]:
    """The first input, and with each of its elements those of the others that serve it."""
    x = np.asarray(request.inputs[first])
    others = [_spread(request.inputs[n], x.shape, request.spec) for n in rest]
    return x, list(zip(x.ravel().tolist(), *(o.ravel().tolist() for o in others), strict=True))


def _code(x: float, s: float, z: Any, spec: QuantSpec) -> int:
    c = quantize_exact(x, s, z, spec)
    other = quantize_integers(x, s, z, spec)
    if c != other:
        got = f"{c} and {other} for x={x!r}, scale={s!r}, zero_point={z!r}"
        raise CertificateError(complaint(got, "one code by both definitions", "golden", "report this"))
    return c


# ---- element by element ---------------------------------------------------------------------------------------


def _quantize(request: Request) -> Outputs:
    x, rows = _elements(request, "x", "scale", "zero_point")
    codes = [_code(a, s, z, request.spec) for a, s, z in rows]
    return {"codes": np.array(codes, request.spec.code_dtype).reshape(x.shape)}


def _dequantize(request: Request) -> Outputs:
    c, rows = _elements(request, "codes", "scale", "zero_point")
    to = request.options.get("dtype", "float32")
    reals = [dequantize_exact(q, s, z, request.spec, to) for q, s, z in rows]
    return {"x": np.array(reals, np.dtype(to) if to != "bfloat16" else np.float32).reshape(c.shape)}


def _fake_quantize(request: Request) -> Outputs:
    x, rows = _elements(request, "x", "scale", "zero_point")
    spec, to = request.spec, x.dtype.name
    reals = [dequantize_exact(_code(a, s, z, spec), s, z, spec, to) for a, s, z in rows]
    return {"y": np.array(reals, x.dtype).reshape(x.shape)}


def _range_parameters(request: Request) -> Outputs:
    lo, hi = (np.asarray(request.inputs[n], np.float64) for n in ("lo", "hi"))
    rule = request.options["rule"]
    found = [range_parameters_exact(a, b, request.spec, rule) for a, b in zip(lo.flat, hi.flat, strict=True)]
    scale, z = ([pair[i] for pair in found] for i in (0, 1))
    return {
        "scale": np.array(scale, np.float32).reshape(lo.shape),
        "zero_point": np.array(z, np.int64).reshape(lo.shape),
    }


def _dynamic_quantize(request: Request) -> Outputs:
    x = np.asarray(request.inputs["x"])
    values = x.ravel().tolist()
    scale, z = range_parameters_exact(min(values), max(values), request.spec, request.options["rule"])
    codes = [_code(v, scale, z, request.spec) for v in values]
    shaped = np.array(codes, request.spec.code_dtype).reshape(x.shape)
    return {"codes": shaped, "scale": np.array(scale, np.float32), "zero_point": np.array(z, np.int64)}


def _gradient(request: Request) -> Outputs:
    """Exact rationals, rounded once to float64."""
    spec = request.spec
    x, rows = _elements(request, "x", "cotangent", "scale", "zero_point")
    dx, parts = [], []
    for a, g, s, z in rows:
        u = Fraction(a) / Fraction(s)
        r = round_exact(u, spec.rounding)
        low, high = spec.qmin - int(z), spec.qmax - int(z)
        inside = low <= r <= high
        dx.append(g if inside else 0.0)
        parts.append(Fraction(g) * ((r - u) if inside else low if r < low else high))
    wanted = spec.granularity.parameter_shape(x.shape)
    place = spec.granularity.rows(np.arange(x.size).reshape(x.shape), fill=-1)
    sums = [float(sum((parts[i] for i in row if i >= 0), Fraction(0))) for row in place.astype(int).tolist()]
    return {"x": np.array(dx).reshape(x.shape), "scale": np.array(sums).reshape(wanted)}


# ---- requantization -------------------------------------------------------------------------------------------


def rounded_to(v: Fraction, name: str) -> Fraction:
    """v rounded once to a float format; beyond it, a number that every code range saturates.

    >>> rounded_to(Fraction(1, 3), "bfloat16")
    Fraction(171, 512)
    """
    r = round_fraction(v, name)
    return r if isinstance(r, Fraction) else Fraction(math.copysign(2.0**200, v))  # it saturates


def _multiplier(factor: Fraction) -> tuple[int, int]:
    """m and shift, 2^30 <= m < 2^31, with m 2^(shift - 31) nearest to the factor; ties away."""
    shift = factor.numerator.bit_length() - factor.denominator.bit_length()
    while factor >= Fraction(2) ** shift:
        shift += 1
    while factor < Fraction(2) ** (shift - 1):
        shift -= 1
    m = round_exact(factor * Fraction(2) ** (31 - shift), "half_away")
    return (m // 2, shift + 1) if m == 2**31 else (m, shift)


def _c_divide(n: int, d: int) -> int:
    """n / d as C divides integers: toward zero."""
    return -(-n // d) if n < 0 else n // d


def _double_round(acc: int, factor: Fraction) -> int:
    """The doubling high product by its nudge and a truncating division, then the rounding shift, ties away."""
    m, shift = _multiplier(factor)
    p = (acc << max(shift, 0)) * m
    high = _c_divide(p + (2**30 if p >= 0 else 1 - 2**30), 2**31)
    return round_exact(Fraction(high, 1 << max(-shift, 0)), "half_away")


def _single_round(acc: int, factor: Fraction) -> int:
    m, shift = _multiplier(factor)
    return round_exact(Fraction(acc * m) * Fraction(2) ** (shift - 31), "half_up")


HOW: dict[str, Callable[[int, Fraction, str], int]] = {
    "exact": lambda acc, f, mode: round_exact(acc * f, mode),
    "float32": lambda acc, f, mode: round_exact(
        rounded_to(rounded_to(Fraction(acc), "float32") * rounded_to(f, "float32"), "float32"), mode
    ),
    "single-round": lambda acc, f, mode: _single_round(acc, f),
    "double-round": lambda acc, f, mode: _double_round(acc, f),
}


def requantized_exact(acc: int, factor: Fraction, z: int, spec: QuantSpec, how: str) -> int:
    """The code of one accumulator by a named way, on integers and Fractions; a factor of 1 changes nothing.

    >>> requantized_exact(7984, Fraction(1583594044, 2**40), 0, QuantSpec(8), "double-round")
    12
    """
    k = acc if factor == 1 else HOW[how](acc, factor, spec.rounding)
    return min(max(k + z, spec.qmin), spec.qmax)


def _factor(inputs: Mapping[str, Any], in_: str) -> list[Fraction]:
    """The real factors: given, or from three scales, each step rounded to float64 or float32."""
    if "multiplier" in inputs:
        return [Fraction(v) for v in np.asarray(inputs["multiplier"], np.float64).ravel().tolist()]
    a, w, y = (
        np.asarray(inputs[n], np.float64).ravel().tolist() for n in ("input_scale", "weight_scale", "output_scale")
    )
    return [rounded_to(rounded_to(Fraction(a[0]) * Fraction(v), in_) / Fraction(y[0]), in_) for v in w]


def _requantize(request: Request) -> Outputs:
    acc, spec = np.asarray(request.inputs["acc"]), request.spec
    factors = _factor(request.inputs, request.integer.factor)
    which = np.arange(len(factors)) if len(factors) > 1 else np.array(0)
    where = _spread(which, acc.shape, spec).ravel().tolist()
    z = _spread(request.inputs["zero_point"], acc.shape, spec).ravel().tolist()
    how = request.integer.requantize
    rows = zip(acc.ravel().tolist(), where, z, strict=True)
    codes = [requantized_exact(int(a), factors[i], int(b), spec, how) for a, i, b in rows]
    return {"codes": np.array(codes, spec.code_dtype).reshape(acc.shape)}


# ---- layers ---------------------------------------------------------------------------------------------------


def _wrapped(acc: int, request: Request) -> int:
    half = 1 << (request.integer.accumulator_bits - 1)
    if request.integer.accumulator_overflow == "saturate":
        return min(max(acc, -half), half - 1)
    return (acc + half) % (2 * half) - half


def _dot(a: list[int], w: list[int], z_a: int, z_w: int, product: str) -> int:
    """One sum of products; int16-pairs saturates those of raw codes two by two."""
    if product == "int16-pairs":
        terms = [x * y for x, y in zip(a, w, strict=True)]
        pairs = [sum(terms[i : i + 2]) for i in range(0, len(terms), 2)]
        total = sum(min(max(p, -(2**15)), 2**15 - 1) if len(terms) - 2 * i > 1 else p for i, p in enumerate(pairs))
        return total - z_a * sum(w) - z_w * sum(x - z_a for x in a)
    return sum((x - z_a) * (y - z_w) for x, y in zip(a, w, strict=True))


def _gemm(request: Request) -> Array:
    inputs = request.inputs
    a, b = np.asarray(inputs["a"]).astype(int), np.asarray(inputs["b"]).astype(int)
    z_a, z_b = int(inputs["a_zero_point"]), np.broadcast_to(inputs["b_zero_point"], (b.shape[1],)).tolist()
    columns = b.T.tolist()
    sums = [
        [
            _wrapped(_dot(row, col, z_a, int(z), request.integer.product), request)
            for col, z in zip(columns, z_b, strict=True)
        ]
        for row in a.tolist()
    ]
    return np.array(sums, object).reshape(len(a), b.shape[1])


def _windows(
    H: int, W: int, kernel: tuple[int, int], options: Mapping[str, Any]
) -> tuple[int, int, Callable[..., Any]]:
    """The output size, and for an output position the input positions that its taps see (None outside)."""
    (kh, kw), (sh, sw) = kernel, options.get("stride", (1, 1))
    (dh, dw), (top, left, bottom, right) = options.get("dilation", (1, 1)), options.get("padding", (0, 0, 0, 0))
    h = (H + top + bottom - dh * (kh - 1) - 1) // sh + 1
    w = (W + left + right - dw * (kw - 1) - 1) // sw + 1

    def seen(i: int, j: int) -> list[tuple[int, int] | None]:
        places = [(i * sh - top + u * dh, j * sw - left + v * dw) for u in range(kh) for v in range(kw)]
        return [(r, c) if 0 <= r < H and 0 <= c < W else None for r, c in places]

    return h, w, seen


def _conv(request: Request) -> Array:
    inputs, options = request.inputs, request.options
    x, w = np.asarray(inputs["x"]).astype(int).tolist(), np.asarray(inputs["w"]).astype(int)
    N, (O, I, kh, kw) = len(x), w.shape
    H, W = np.asarray(inputs["x"]).shape[2:]
    z_x, z_w = int(inputs["x_zero_point"]), np.broadcast_to(inputs["w_zero_point"], (O,)).tolist()
    h, width, seen = _windows(H, W, (kh, kw), options)
    each = O // options.get("groups", 1)
    acc = np.empty((N, O, h, width), object)
    for n, o, i, j in itertools.product(range(N), range(O), range(h), range(width)):
        first = o // each * I
        taps = seen(i, j)
        a = [z_x if p is None else x[n][first + c][p[0]][p[1]] for c in range(I) for p in taps]
        acc[n, o, i, j] = _wrapped(_dot(a, w[o].ravel().tolist(), z_x, int(z_w[o]), request.integer.product), request)
    return acc


def _sums(make: Callable[[Request], Array]) -> Callable[[Request], Outputs]:
    return lambda request: {"acc": make(request).astype(np.int64).astype(np.int32)}


def _layer(make: Callable[[Request], Array], a: str, w: str) -> Callable[[Request], Outputs]:
    def run(request: Request) -> Outputs:
        acc, inputs, spec = make(request), request.inputs, request.spec
        scales = {"input_scale": inputs[f"{a}_scale"], "weight_scale": inputs[f"{w}_scale"]}
        factors = _factor({**scales, "output_scale": inputs["y_scale"]}, request.integer.factor)
        bias = np.broadcast_to(inputs.get("bias", 0), (acc.shape[1],)).tolist()
        z, how = int(inputs["y_zero_point"]), request.integer.requantize
        codes = np.empty(acc.shape, spec.code_dtype)
        for index in np.ndindex(*acc.shape):
            o = index[1]
            total = _wrapped(int(acc[index]) + int(bias[o]), request)
            codes[index] = requantized_exact(total, factors[o if len(factors) > 1 else 0], z, spec, how)
        return {"codes": codes}

    return run


def added_exact(s: Sequence[Fraction], integer: IntegerSpec, rounding: str) -> Callable[[int, int], int]:
    """The steps of s_y that s_a p + s_b q is, by a named way (clause N4), on Fractions; s: s_a, s_b, s_y.

    >>> added_exact([Fraction(1, 2), Fraction(1, 4), Fraction(1)], IntegerSpec(), "half_even")(3, 4)
    2
    """

    def fl(v: Fraction) -> Fraction:
        return rounded_to(v, "float32")

    f, g = (rounded_to(v / s[2], "float64") for v in s[:2])
    twice, rule = 2 * max(s[:2]), HOW["single-round" if integer.requantize == "single-round" else "double-round"]
    F, G = (rounded_to(v / twice, "float64") for v in s[:2])
    back = rounded_to(twice / rounded_to(2**20 * s[2], "float64"), "float64")
    return {
        "exact": lambda p, q: round_exact(p * f + q * g, rounding),
        "float32": lambda p, q: round_exact(fl(fl(fl(p * s[0]) + fl(q * s[1])) / s[2]), rounding),
        "fixed-point": lambda p, q: rule(rule(p << 20, F, "") + rule(q << 20, G, ""), back, ""),
    }[integer.add]


def _add(request: Request) -> Outputs:
    inputs, spec = request.inputs, request.spec
    s = [Fraction(float(inputs[f"{n}_scale"])) for n in ("a", "b", "y")]
    z = [int(inputs[f"{n}_zero_point"]) for n in ("a", "b", "y")]
    a, b = (np.asarray(inputs[n]) for n in ("a", "b"))
    rule = added_exact(s, request.integer, spec.rounding)
    pairs = zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
    codes = [min(max(rule(p - z[0], q - z[1]) + z[2], spec.qmin), spec.qmax) for p, q in pairs]
    return {"codes": np.array(codes, spec.code_dtype).reshape(a.shape)}


def _average_pool(request: Request) -> Outputs:
    q, spec, options = np.asarray(request.inputs["x"]), request.spec, request.options
    z, kernel = int(request.inputs["zero_point"]), tuple(options["kernel"])
    N, C, H, W = q.shape
    h, w, seen = _windows(H, W, kernel, {"stride": kernel, **options})
    codes = np.empty((N, C, h, w), spec.code_dtype)
    for n, c, i, j in np.ndindex(N, C, h, w):
        places = seen(i, j)
        inside = [int(q[n, c, p[0], p[1]]) - z for p in places if p is not None]
        count = len(places) if options.get("count_include_pad", False) else len(inside)
        k = round_exact(Fraction(sum(inside), count), spec.rounding) + z
        codes[n, c, i, j] = min(max(k, spec.qmin), spec.qmax)
    return {"codes": codes}


# ---- sums of terms --------------------------------------------------------------------------------------------


def _encode_terms(request: Request) -> Outputs:
    x, scales, spec = np.asarray(request.inputs["x"]), np.asarray(request.inputs["scales"]).tolist(), request.spec
    rest = QuantSpec(spec.bits, False, rounding=spec.rounding) if request.options.get("rest_unsigned", False) else spec
    codes = np.empty((len(scales), x.size), np.int32)
    for i, v in enumerate(x.ravel().tolist()):
        r = Fraction(v)
        for t, s in enumerate(scales):
            grid = spec if t == 0 else rest
            c = min(max(round_exact(r / Fraction(s), spec.rounding), grid.qmin), grid.qmax)
            codes[t, i] = c
            r = rounded_to(r - rounded_to(Fraction(s) * c, "float64"), "float64")
    return {"codes": codes.reshape(len(scales), *x.shape)}


def _decode_terms(request: Request) -> Outputs:
    codes, scales = np.asarray(request.inputs["codes"]), np.asarray(request.inputs["scales"]).tolist()
    flat = codes.reshape(len(codes), -1).T.tolist()
    values = []
    for row in flat:
        total = Fraction(0)
        for q, s in zip(row, scales, strict=True):
            total = rounded_to(total + rounded_to(Fraction(s) * q, "float64"), "float64")
        values.append(float(round_fraction(total, "float32")))
    return {"x": np.array(values, np.float32).reshape(codes.shape[1:])}


# ---- solvers --------------------------------------------------------------------------------------------------


def _solve_scale(request: Request) -> Outputs:
    """Solved by the sweep; objective and bound held by the checker, which has another evaluator and another bound."""
    x = np.asarray(request.inputs["x"], np.float64)
    best = solve_scale(x, spec=request.spec)
    best.check(x, spec=request.spec)
    return {"scale": best.value, "objective": best.objective, "lower_bound": best.lower_bound}


def _allocate(request: Request) -> Outputs:
    """By dynamic programme on integer costs: no relaxation, no tolerance."""
    error, cost = (np.asarray(request.inputs[n]) for n in ("error", "cost"))
    best = allocate_integer(error, cost.astype(np.int64), int(request.inputs["budget"]))
    return {"choices": best.value, "error": best.objective}


GOLDEN: dict[str, Callable[[Request], Outputs]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "fake_quantize": _fake_quantize,
    "range_parameters": _range_parameters,
    "dynamic_quantize": _dynamic_quantize,
    "requantize": _requantize,
    "matmul_integer": _sums(_gemm),
    "conv_integer": _sums(_conv),
    "qlinear_matmul": _layer(_gemm, "a", "b"),
    "qlinear_conv": _layer(_conv, "x", "w"),
    "qlinear_add": _add,
    "average_pool": _average_pool,
    "encode_terms": _encode_terms,
    "decode_terms": _decode_terms,
    "matmul_terms": _sums(_gemm),
    "gradient": _gradient,
    "solve_scale": _solve_scale,
    "allocate": _allocate,
}
"""operation -> its definition.  Whole networks: `golden_network`."""


def golden(request: Request) -> Outputs:
    """The outputs of a request by definition: slow, exact, and independent of what it checks.

    Raises CertificateError where two definitions differ, which would be a defect of refquant.

    >>> request = Request("quantize", QuantSpec(8), {"x": np.array([0.5, 1.5]), "scale": 1.0, "zero_point": 0})
    >>> golden(request)["codes"].tolist()
    [0, 2]
    """
    return GOLDEN[request.op](request)
