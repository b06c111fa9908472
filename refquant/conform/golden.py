"""Golden values: every operation by its definition, on integers and Fractions, one element at a time.

Letters: as in `rules_scalar` and `rules_layer`; fl rounds a rational once to a float format.

No path here is one that it is to check: codes come from `quantize_exact` and must equal `quantize_integers`, which
shares no arithmetic with it; products are sums of Python integers; float results are rationals rounded once where
their clause says so.  Scales and allocations are solved by one solver and refuted, or found again, by another.
"""

import itertools
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arith.formats import round_fraction
from ..arith.rounding import round_exact
from ..errors import CertificateError, complaint
from ..quant.integers import quantize_integers
from ..quant.quantizer import dequantize_exact, quantize_exact
from ..quant.ranges_exact import range_parameters_exact
from ..quant.spec import QuantSpec
from ..solve.knapsack import allocate_integer
from ..solve.scale import solve_scale
from .golden_network import golden_network
from .golden_requantize import added_exact, requantized_exact, rounded_to
from .networks import network_of
from .operations import Request
from .rules_scalar import Outputs

__all__ = ["GOLDEN", "golden", "slack_of"]

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


def _network(request: Request) -> Outputs:
    name, x = request.options["network"], np.asarray(request.inputs["x"])
    graph, plan = network_of(name, request.inputs, request.spec, request.integer)
    return dict(golden_network(graph, plan, x))


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
    "network": _network,
}
"""operation -> its definition."""


def slack_of(request: Request) -> dict[str, tuple[Array, int]]:
    """For outputs that are sums in a free order: the sum M of magnitudes, and the operations n, each correctly rounded.

    A scale's cotangent sums (round(u) - fl(u)) g: fl(u) = u (1 + d), and one more rounding each for the difference,
    the product and each of the n - 1 sums, so it lies within gamma_(n + 2) M of the exact one, M = sum |g| (|r| + |u|).

    >>> slack_of(Request("quantize", QuantSpec(8), {}))
    {}
    """
    if request.op != "gradient":
        return {}
    spec = request.spec
    x, rows = _elements(request, "x", "cotangent", "scale", "zero_point")
    size = [abs(g) * (max(abs(spec.qmin - z), abs(spec.qmax - z)) + abs(a / s)) for a, g, s, z in rows]
    each = spec.granularity.rows(np.array(size).reshape(x.shape))
    M = each.sum(axis=1).reshape(spec.granularity.parameter_shape(x.shape))
    return {"scale": (M, each.shape[1] + 3)}  # one more for the rounding of M itself


def golden(request: Request) -> Outputs:
    """The outputs of a request by definition: slow, exact, and independent of what it checks.

    Raises CertificateError where two definitions differ, which would be a defect of refquant.

    >>> request = Request("quantize", QuantSpec(8), {"x": np.array([0.5, 1.5]), "scale": 1.0, "zero_point": 0})
    >>> golden(request)["codes"].tolist()
    [0, 2]
    """
    return GOLDEN[request.op](request)
