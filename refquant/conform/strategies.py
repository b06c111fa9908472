"""Hypothesis strategies for what is hard to quantize: specs, scales, tensors, requests, networks and their plans.

Letters: s scale, z zero point, k code, x reals.

Uniform floats almost never meet a tie.  Here elements are drawn at breakpoints: (k + 1/2) s and k s, the floats beside
them, both ends of the range, infinities, -0, subnormals.  Everything shrinks to few, small, positive numbers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import hypothesis.strategies as st
import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, CodeOverflowError, NotANumberError
from ..net.graph import Graph, InputSpec, Node
from ..net.plan import ActivationQuantizer, QuantPlan
from ..quant.granularity import Granularity, PerChannel, PerGroup, PerTensor
from ..quant.integer_spec import IntegerSpec
from ..quant.multiterm import MultiTerm
from ..quant.spec import CHOICES, QuantSpec
from .case import F32, Case, ends, floats_beside
from .cases_elements import RULE_NAMES
from .golden import golden, slack_of
from .judge import Expected
from .operations import Request
from .requests import SPOKEN, request_of

__all__ = ["SEARCHED", "answered", "graphs", "plans", "requests", "scales", "specs", "tensors", "zero_points"]

Array = NDArray[Any]
Draw = st.DrawFn
MOST = 12
"""Elements that most arrays have at the most."""

# ---- specs and their parameters -------------------------------------------------------------------------------


@st.composite
def specs(draw: Draw, /, **fixed: Any) -> QuantSpec:
    """Any semantics of up to 16 bits but stochastic rounding; keywords fix fields."""
    choices = {name: st.sampled_from([v for v in values if v != "stochastic"]) for name, values in CHOICES.items()}
    drawn: dict[str, Any] = {
        "bits": draw(st.integers(2, 16)),
        "signed": draw(st.booleans()),
        "narrow": draw(st.booleans()),
    }
    drawn |= {name: draw(strategy) for name, strategy in choices.items() if name not in fixed}
    drawn |= fixed
    if drawn["overflow"] == "wrap" and "narrow" not in fixed:
        drawn["narrow"] = False
    return QuantSpec(**drawn)


def scales(least: float = 2.0**-20, most: float = 2.0**20) -> st.SearchStrategy[np.float32]:
    """Float32 scales: 1, powers of two and the floats beside them, and any between least and most."""
    e = st.integers(int(np.ceil(np.log2(least))) + 1, int(np.log2(most)) - 1)
    powers = st.builds(lambda n, i: floats_beside(2.0**n)[i], e, st.integers(0, 2))
    whole = st.builds(lambda n: F32(2.0**n), e)
    inside = st.floats(least, most, width=32).map(F32)
    return st.one_of(st.just(F32(1)), whole, powers, st.sampled_from([F32(0.1), F32(0.3)]), inside).map(
        lambda s: F32(np.clip(s, least, most))
    )


def zero_points(spec: QuantSpec) -> st.SearchStrategy[int]:
    """Codes of the grid, 0 and both ends often."""
    return codes(spec.qmin, spec.qmax)


def codes(low: int, high: int) -> st.SearchStrategy[int]:
    """Integers from low to high: 0, both ends, and any."""
    return st.one_of(st.just(min(max(0, low), high)), st.integers(low, high), st.sampled_from([low, high]))


# ---- tensors --------------------------------------------------------------------------------------------------


def _elements(s: float, low: int, high: int, nan: bool, dtype: Any) -> st.SearchStrategy[Any]:
    """One element, where codes from low to high are in range."""
    half = st.integers(2 * low - 3, 2 * high + 3).map(lambda n: n / 2)
    with np.errstate(over="ignore"):
        at = st.builds(lambda k, i: floats_beside(k * s, dtype)[i], half, st.integers(0, 2))
        odd = st.sampled_from([0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-38, 3e38, -3e38, 2.0**31, -(2.0**31), 65504.0])
        special = odd.map(lambda v: np.asarray(v, np.float64).astype(dtype)[()])
    anything = st.floats(allow_nan=nan, width=16 if dtype == np.float16 else 32).map(lambda v: dtype(v))
    return st.one_of(at, at, at, special, anything)


@st.composite
def tensors(
    draw: Draw, spec: QuantSpec, scale: float, zero_point: int = 0, *, shape: tuple[int, ...] | None = None
) -> NDArray[np.float32]:
    """Float32 tensors rich in ties and breakpoints of a quantizer; NaN only where the spec has a code for it.

    shape: drawn if None, with up to 12 elements; empty ones too.
    """
    shape = draw(st.sampled_from([(), (0,)]) | st.integers(1, MOST).map(lambda n: (n,))) if shape is None else shape
    low, high, n = spec.qmin - zero_point, spec.qmax - zero_point, int(np.prod(shape))
    element = _elements(float(scale), low, high, spec.nan != "raise", F32)
    return np.array(draw(st.lists(element, min_size=n, max_size=n)), F32).reshape(shape)


def _ints(draw: Draw, shape: tuple[int, ...], low: int, high: int) -> Array:
    n = int(np.prod(shape))
    return np.array(draw(st.lists(codes(low, high), min_size=n, max_size=n)), np.int64).reshape(shape)


def _int(draw: Draw, low: int, high: int) -> Array:
    return np.asarray(draw(codes(low, high)))


# ---- cases ----------------------------------------------------------------------------------------------------


GRAINS: list[Granularity] = [PerTensor(), PerTensor(), PerChannel(0), PerChannel(1), PerGroup(1, 2)]


@st.composite
def _element_by_element(draw: Draw, op: str, spec: QuantSpec) -> Case:
    """quantize, fake_quantize, dequantize: one scale, one a channel, or one a group."""
    grain = draw(st.sampled_from(GRAINS))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    wanted = grain.parameter_shape(shape)
    n = int(np.prod(wanted))
    s = np.array(draw(st.lists(scales(), min_size=n, max_size=n)), F32).reshape(wanted)
    z = _ints(draw, wanted, spec.qmin, spec.qmax)
    parameters = {"scale": s, "zero_point": z}
    more: dict[str, Any] = {"bits": spec.bits, "signed": spec.signed, "granularity": grain}
    if op == "dequantize":
        q = _ints(draw, shape, spec.qmin, spec.qmax)
        options = {"dtype": draw(st.sampled_from(["float32", "float16", "float64"]))}
        return Case(op, {"codes": q, **parameters}, options=options, **more)
    x = draw(tensors(spec, float(s.ravel()[0]), int(z.ravel()[0]), shape=shape))
    return Case(op, {"x": x, **parameters}, **more)


@st.composite
def _range(draw: Draw, op: str, spec: QuantSpec) -> Case:
    """Ranges with ends at 0, of equal size, next to powers of two."""
    end = st.one_of(st.just(F32(0)), scales(), scales().map(lambda s: -s), st.integers(-255, 255).map(lambda n: n / 2))
    pairs = draw(st.lists(st.tuples(end, end), min_size=1, max_size=4))
    lo, hi = (np.array([f(p) for p in pairs], F32) for f in (min, max))
    options = {"rule": draw(st.sampled_from(RULE_NAMES))}
    return Case(op, {"lo": lo, "hi": hi}, spec.bits, spec.signed, options=options)


@st.composite
def _dynamic(draw: Draw, op: str, spec: QuantSpec) -> Case:
    finite = st.floats(-1000, 1000, width=32) | st.integers(-512, 512).map(lambda n: n / 2)
    x = np.array(draw(st.lists(finite, min_size=1, max_size=MOST)), F32)
    return Case(op, {"x": x}, 8, False, options={"rule": "onnx-dynamic"})


@st.composite
def _requantize(draw: Draw, op: str, spec: QuantSpec) -> Case:
    """Accumulators next to ties of the factor, at the ends of int32, any."""
    inputs: dict[str, Any]
    if draw(st.booleans()):
        factor = float(draw(scales(2.0**-24, 4.0)))
        inputs = {"multiplier": np.asarray(factor)}
    else:
        a, w, y = (draw(scales(2.0**-8, 2.0**2)) for _ in range(3))
        inputs = {"input_scale": a, "weight_scale": w, "output_scale": y}
        factor = float(a) * float(w) / float(y)
    z = _int(draw, spec.qmin, spec.qmax)
    near = st.integers(2 * (spec.qmin - int(z)) - 3, 2 * (spec.qmax - int(z)) + 3).map(lambda n: round(n / 2 / factor))
    acc = st.one_of(near, near, codes(-(2**31), 2**31 - 1), st.integers(-300, 300))
    found = draw(st.lists(acc.filter(lambda v: abs(v) < 2**31), min_size=1, max_size=MOST))
    return Case(op, {"acc": np.array(found, np.int64), "zero_point": z, **inputs}, spec.bits, spec.signed)


@st.composite
def _matmul(draw: Draw, op: str, spec: QuantSpec) -> Case:
    m, K, n = (draw(st.integers(1, most)) for most in (2, 5, 3))
    signed = {"a_signed": draw(st.booleans()), "b_signed": draw(st.booleans())}
    (a_low, a_high), (b_low, b_high) = (ends(8, v) for v in signed.values())
    inputs: dict[str, Any] = {
        "a": _ints(draw, (m, K), a_low, a_high),
        "b": _ints(draw, (K, n), b_low, b_high),
        "a_zero_point": _int(draw, a_low, a_high),
        "b_zero_point": _int(draw, b_low, b_high),
    }
    if op == "qlinear_matmul":
        each = draw(st.booleans())
        b_scale = draw(st.lists(scales(2.0**-6, 1.0), min_size=n, max_size=n)) if each else draw(scales(2.0**-6, 1.0))
        scaled = {"a_scale": draw(scales(2.0**-6, 1.0)), "b_scale": np.asarray(b_scale, F32)}
        inputs |= {**scaled, "y_scale": draw(scales(2.0**-2, 2.0**8)), "y_zero_point": _int(draw, spec.qmin, spec.qmax)}
    return Case(op, inputs, spec.bits, spec.signed, options=signed)


@st.composite
def _conv(draw: Draw, op: str, spec: QuantSpec) -> Case:
    groups, each, C = (draw(st.integers(1, 2)) for _ in range(3))
    kh, kw, sh, sw, dh, dw = (draw(st.integers(1, 2)) for _ in range(6))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(4))
    H, W = dh * (kh - 1) + 1 + draw(st.integers(0, 2)), dw * (kw - 1) + 1 + draw(st.integers(0, 2))
    signed = {"x_signed": draw(st.booleans()), "w_signed": draw(st.booleans())}
    (x_low, x_high), (w_low, w_high) = (ends(8, v) for v in signed.values())
    O = groups * each
    inputs: dict[str, Any] = {
        "x": _ints(draw, (1, groups * C, H, W), x_low, x_high),
        "w": _ints(draw, (O, C, kh, kw), w_low, w_high),
        "x_zero_point": _int(draw, x_low, x_high),
        "w_zero_point": _int(draw, w_low, w_high),
    }
    options = {"stride": (sh, sw), "dilation": (dh, dw), "padding": padding, "groups": groups, **signed}
    if op == "qlinear_conv":
        inputs |= {
            "x_scale": draw(scales(2.0**-6, 1.0)),
            "w_scale": np.array(draw(st.lists(scales(2.0**-6, 1.0), min_size=O, max_size=O)), F32),
            "y_scale": draw(scales(2.0**-2, 2.0**8)),
            "y_zero_point": _int(draw, spec.qmin, spec.qmax),
            "bias": _ints(draw, (O,), -(2**20), 2**20),
        }
    return Case(op, inputs, spec.bits, spec.signed, options=options)


@st.composite
def _add(draw: Draw, op: str, spec: QuantSpec) -> Case:
    n = draw(st.integers(1, MOST))
    inputs: dict[str, Any] = {name: _ints(draw, (n,), spec.qmin, spec.qmax) for name in ("a", "b")}
    for name in ("a", "b", "y"):
        inputs |= {f"{name}_scale": draw(scales(2.0**-6, 4.0)), f"{name}_zero_point": _int(draw, spec.qmin, spec.qmax)}
    return Case(op, inputs, spec.bits, spec.signed)


@st.composite
def _pool(draw: Draw, op: str, spec: QuantSpec) -> Case:
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(2))
    padding = tuple(draw(st.integers(0, kernel[i % 2] - 1)) for i in range(4))
    shape = (1, draw(st.integers(1, 2)), *(k + draw(st.integers(0, 2)) for k in kernel))
    options = {
        "kernel": kernel,
        "stride": tuple(draw(st.integers(1, 2)) for _ in range(2)),
        "padding": padding,
        "count_include_pad": draw(st.booleans()),
    }
    inputs = {"x": _ints(draw, shape, spec.qmin, spec.qmax), "zero_point": _int(draw, spec.qmin, spec.qmax)}
    return Case(op, inputs, spec.bits, spec.signed, options=options)


@st.composite
def _terms(draw: Draw, op: str, spec: QuantSpec) -> Case:
    bits, T, n = draw(st.integers(2, 4)), draw(st.integers(1, 3)), draw(st.integers(1, MOST))
    s = np.array(sorted(draw(st.lists(scales(2.0**-10, 1.0), min_size=T, max_size=T)), reverse=True), F32)
    low, high = ends(bits, True)
    if op == "decode_terms":
        return Case(op, {"codes": _ints(draw, (T, n), low, high), "scales": s}, bits)
    x = draw(tensors(QuantSpec(bits), float(s[0]), shape=(n,)).filter(lambda x: bool(np.isfinite(x).all())))
    return Case(op, {"x": x, "scales": s}, bits)


@st.composite
def _gradient(draw: Draw, op: str, spec: QuantSpec) -> Case:
    s, z, n = float(draw(scales(2.0**-4, 4.0))), draw(codes(-8, 7)), draw(st.integers(1, MOST))
    half = st.integers(2 * (-8 - z) - 3, 2 * (7 - z) + 3).map(lambda k: k / 2 * s)
    x = np.array(draw(st.lists(half | st.floats(-20 * s, 20 * s), min_size=n, max_size=n)))
    g = np.array(draw(st.lists(st.integers(-64, 64).map(lambda k: k / 64), min_size=n, max_size=n)))
    return Case(op, {"x": x, "cotangent": g, "scale": np.asarray(s), "zero_point": np.asarray(z)}, 4)


@st.composite
def _solve(draw: Draw, op: str, spec: QuantSpec) -> Case:
    x = draw(st.lists(st.integers(-1000, 1000).map(lambda n: n / 64), min_size=1, max_size=MOST).filter(any))
    return Case(op, {"x": np.array(x)}, draw(st.integers(2, 4)))


@st.composite
def _allocate(draw: Draw, op: str, spec: QuantSpec) -> Case:
    items, choices = draw(st.integers(1, 4)), draw(st.integers(2, 3))
    cost = np.cumsum(_ints(draw, (items, choices), 1, 9), axis=1)
    budget = int(cost[:, 0].sum()) + draw(st.integers(0, 30))
    error = _ints(draw, (items, choices), 0, 99).astype(float)
    return Case(op, {"error": error, "cost": cost, "budget": np.asarray(budget)})


SEARCHED: dict[str, Callable[[str, QuantSpec], st.SearchStrategy[Case]]] = {
    "quantize": _element_by_element,
    "dequantize": _element_by_element,
    "fake_quantize": _element_by_element,
    "range_parameters": _range,
    "dynamic_quantize": _dynamic,
    "requantize": _requantize,
    "matmul_integer": _matmul,
    "conv_integer": _conv,
    "qlinear_matmul": _matmul,
    "qlinear_conv": _conv,
    "qlinear_add": _add,
    "average_pool": _pool,
    "encode_terms": _terms,
    "decode_terms": _terms,
    "matmul_terms": _matmul,
    "gradient": _gradient,
    "solve_scale": _solve,
    "allocate": _allocate,
}
"""operation -> its cases under a spec; networks have cases in packs alone."""


# ---- requests -------------------------------------------------------------------------------------------------

WIDTHS = [(8, True), (8, False), (4, True), (4, False), (2, True), (16, True)]


def answered(request: Request) -> Expected | None:
    """The answer by definition, None where the semantics refuse the request (a NaN, a scale with no reciprocal).

    >>> answered(Request("quantize", QuantSpec(8), {"x": F32([0.5]), "scale": 1, "zero_point": 0})).outputs
    {'codes': array([0], dtype=int32)}
    """
    try:
        return Expected(golden(request), slack_of(request))
    except (ArgumentError, NotANumberError, CodeOverflowError):
        return None


def requests(op: str, profile: str) -> st.SearchStrategy[Request]:
    """Requests of an operation under a profile's semantics, each with an answer (`answered`).

    op: one of `SEARCHED`; the profile one that speaks of it.

    >>> requests("network", "onnx@21").is_empty
    True
    """
    if op not in SEARCHED or profile not in SPOKEN[op]:
        return st.nothing()
    found = (request_of(Case(op, {}, bits, signed), profile) for bits, signed in WIDTHS)
    known = [r.spec for r in found if r is not None and (r.spec.bits == 8 or op not in _EIGHT)]
    cases = st.sampled_from(known).flatmap(lambda spec: SEARCHED[op](op, spec))
    drawn = cases.map(lambda case: request_of(case, profile)).filter(lambda r: r is not None)
    return drawn.filter(lambda r: answered(r) is not None)  # type: ignore[arg-type]


_EIGHT = ("matmul_integer", "conv_integer", "qlinear_matmul", "qlinear_conv", "qlinear_add", "average_pool")


# ---- networks -------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw: Draw) -> Graph:
    """Small networks: convolutions, perhaps with a skip, a Relu and a pool between, and a last Gemm.

    Weights are small multiples of 1/16, so that zeros, equal values and ties are common.
    """
    shape, last = (draw(st.integers(1, 2)), 4, 4), "x"
    nodes: list[Node] = []
    arrays: dict[str, Array] = {}

    def some(*wanted: int) -> Array:
        return (_ints(draw, wanted, -16, 16) / 16).astype(F32)

    def add(op: str, inputs: tuple[str, ...], attrs: Mapping[str, Any] | None = None, **params: Array) -> str:
        name = f"{op.lower()}{len(nodes)}"
        arrays.update({f"{name}.{role}": a for role, a in params.items()})
        nodes.append(Node(name, op, inputs, attrs or {}, {role: f"{name}.{role}" for role in params}))
        return name

    for _ in range(draw(st.integers(1, 2))):
        C, O = shape[0], draw(st.integers(1, 2))
        attrs = {"in_channels": C, "out_channels": O, "kernel": [3, 3], "stride": [1, 1], "padding": [1, 1]}
        before, last = last, add("Conv", (last,), attrs, weight=some(O, C, 3, 3), bias=some(O))
        if C == O and draw(st.booleans()):
            last = add("Add", (before, last))
        last = add("Relu", (last,)) if draw(st.booleans()) else last
        shape = (O, *shape[1:])
    if draw(st.booleans()):
        last = add("AveragePool", (last,), {"kernel": [2, 2], "stride": [2, 2]})
        shape = (shape[0], 2, 2)
    n = int(np.prod(shape))
    last = add("Flatten", (last,))
    last = add("Gemm", (last,), {"in_features": n, "out_features": 2}, weight=some(2, n), bias=some(2))
    return Graph("drawn", InputSpec("x", (nodes[0].attrs["in_channels"], 4, 4)), last, tuple(nodes), arrays)


_PASSING = ("Relu", "Relu6", "MaxPool", "Flatten")


@st.composite
def plans(draw: Draw, graph: Graph, integer: IntegerSpec | None = None) -> QuantPlan:
    """Plans for an integer-only network: 8-bit activations and weights whose scales make codes saturate and tie."""
    activations: dict[str, ActivationQuantizer] = {}
    for tensor in graph.shapes:
        readers = graph.readers(tensor)
        if len(readers) == 1 and readers[0].op in _PASSING and tensor not in (graph.input.name, graph.output):
            continue
        spec = QuantSpec(8, draw(st.booleans()))
        z = draw(zero_points(spec))
        activations[tensor] = ActivationQuantizer(spec, np.asarray(draw(scales(2.0**-8, 1.0))), np.asarray(z))
    weights = {}
    for node in graph.linear_nodes:
        shape = graph.param(node, "weight").shape
        grid, O = QuantSpec(8, granularity=PerChannel(0)), shape[0]
        s = np.array(draw(st.lists(scales(2.0**-8, 2.0**-2), min_size=O, max_size=O)), F32)
        q = _ints(draw, shape, grid.qmin, grid.qmax).astype(np.int32)
        weights[node.name] = MultiTerm(q[None], s[None], (grid,), np.ones(O, np.int64))
    return QuantPlan(weights, activations, integer or IntegerSpec(accumulator_overflow="wrap"))
