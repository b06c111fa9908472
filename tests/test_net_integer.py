"""Integer networks: against loops over Python integers, against the fake-quantized network, and in 4-bit digits."""

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import refquant as rq
from refquant.arith.combination import round_combination, round_combination_exact
from refquant.arith.rounding import MODES, round_exact
from refquant.net.edges import Edge, edges_of, layer_of
from refquant.net.fold import fold_batch_norm
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.integer import RULES, accumulators, held
from refquant.net.ops import OPS
from refquant.net.ops_pool import window_shape
from refquant.net.plan import ActivationQuantizer, QuantPlan
from refquant.net.plan_json import plan_from_json, plan_to_json
from refquant.net.products import PRODUCTS, Operand, digits, terms_needed
from refquant.ptq.complexity import low_bit_macs
from refquant.quant.multiterm import MultiTerm, encode_ladder
from refquant.quant.requantize import HOWS
from refquant.quant.spec import QuantSpec
from refquant.zoo import load_data, load_network

Codes = NDArray[np.int64]
Tensors = Mapping[str, NDArray[Any]]

WINDOW = {"kernel": [2, 2], "stride": [1, 1], "padding": [1, 0, 0, 1]}


# ---- a network with every op, and random plans for it ---------------------------------------------------------


def everything(rng: np.random.Generator, include_pad: bool = False) -> Graph:
    nodes = (
        Node(
            "c1",
            "Conv",
            ("x",),
            {"in_channels": 2, "out_channels": 4, "kernel": [3, 2], "stride": [1, 1], "padding": [1, 0, 1, 1]},
            {"weight": "c1.w", "bias": "c1.b"},
        ),
        Node("r1", "Relu6", ("c1",)),
        Node("m1", "MaxPool", ("r1",), WINDOW),
        Node(
            "d1",
            "Conv",
            ("m1",),
            {"in_channels": 4, "out_channels": 4, "groups": 4, **WINDOW, "dilation": [1, 1]},
            {"weight": "d1.w", "bias": "d1.b"},
        ),
        Node("a1", "Add", ("m1", "d1")),
        Node("r2", "Relu", ("a1",)),
        Node("v1", "AveragePool", ("r2",), {**WINDOW, "stride": [2, 2], "count_include_pad": include_pad}),
        Node("v2", "AveragePool", ("d1",), {**WINDOW, "stride": [2, 2]}),
        Node("k1", "Concat", ("v1", "v2"), {"axis": 1}),
        Node(
            "c2",
            "Conv",
            ("k1",),
            {"in_channels": 8, "out_channels": 4, "groups": 2, "kernel": [2, 2], "stride": [1, 1], "dilation": [2, 2]},
            {"weight": "c2.w"},
        ),
        Node("g1", "GlobalAvgPool", ("k1",)),
        Node("f1", "Flatten", ("g1",)),
        Node("y", "Gemm", ("f1",), {"in_features": 8, "out_features": 3}, {"weight": "y.w", "bias": "y.b"}),
    )
    shapes = {"c1.w": (4, 2, 3, 2), "d1.w": (4, 1, 2, 2), "c2.w": (4, 4, 2, 2), "y.w": (3, 8)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {f"{n}.b": rng.normal(size=len(arrays[f"{n}.w"])).astype(np.float32) for n in ("c1", "d1", "y")}
    return Graph("everything", InputSpec("x", (2, 5, 5), scale=1 / 64, mean=0.5, std=0.25), "y", nodes, arrays)


def random_plan(graph: Graph, rng: np.random.Generator, spec: rq.IntegerSpec, powers: bool, rounding: str) -> QuantPlan:
    """Scales that make codes saturate and tie; powers of two, or any float32."""

    def scale(low: float, high: float, size: int | None = None) -> Any:
        s = rng.uniform(low, high, size)
        return (2.0 ** np.round(np.log2(s)) if powers else s.astype(np.float32) if size else np.float32(s)) * 1.0

    activations = {}
    for tensor in graph.shapes:
        if tensor in ("c1", "a1"):  # quantized as the Relu that reads them
            continue
        signed = bool(rng.integers(2))
        grid = QuantSpec(int(rng.integers(3, 9)), signed, rounding=rounding)
        z = int(rng.integers(grid.qmin, grid.qmax + 1))
        activations[tensor] = ActivationQuantizer(grid, np.array(scale(0.02, 0.5), np.float32), np.array(z))
    activations["m1"], activations["f1"] = activations["r1"], activations["g1"]
    weights = {}
    for node in graph.linear_nodes:
        W = graph.param(node, "weight")
        grid = QuantSpec(int(rng.integers(2, 9)), granularity=rq.PerChannel(0))
        codes = rng.integers(grid.qmin, grid.qmax + 1, (1, *W.shape))
        scales = np.asarray(scale(0.01, 0.2, len(W)), np.float32)[None]
        weights[node.name] = MultiTerm(codes, scales, (grid,), np.ones(len(W), np.int64))
    return QuantPlan(weights, activations, spec)


# ---- the reference: loops over Python integers and Fractions -------------------------------------------------


def requantized(acc: int, factor: float, spec: rq.IntegerSpec, mode: str) -> int:
    if factor == 1:
        return acc
    if spec.requantize == "exact":
        return round_exact(acc * Fraction(factor), mode)
    if spec.requantize == "float32":
        return round_exact(Fraction(float(np.float32(acc) * np.float32(factor))), mode)
    fraction, exponent = math.frexp(factor)
    m = round_exact(Fraction(fraction) * 2**31, "half_away")
    if spec.requantize == "single-round":
        return round_exact(Fraction(acc * m) * Fraction(2) ** (exponent - 31), "half_up")
    high = round_exact(Fraction((acc << max(exponent, 0)) * m, 2**31), "half_up")
    return round_exact(Fraction(high, 2 ** max(-exponent, 0)), "half_away")


def factor_of(scale: float, made: Edge, spec: rq.IntegerSpec) -> float:
    return scale / made.scale if spec.factor == "float64" else float(np.float32(scale) / np.float32(made.scale))


def loop_linear(graph: Graph, node: Node, q: Codes, plan: QuantPlan, edges: Mapping[str, Edge]) -> Codes:
    spec, read, made = plan.integer, edges[node.inputs[0]], edges[node.name]
    assert spec is not None
    layer = layer_of(graph, node, plan, read, spec)
    W, z = layer.codes.astype(int), int(read.zero_point)
    out = np.zeros(graph.shapes[node.name], int)
    if node.op == "Gemm":
        q, W = q[:, None, None], W[:, :, None, None]
        attrs: dict[str, Any] = {"groups": 1, "stride": (1, 1), "dilation": (1, 1), "padding": (0, 0, 0, 0)}
        attrs["kernel"] = (1, 1)
    else:
        attrs = dict(node.attrs)
    (sh, sw), (dh, dw), (top, left, _, _) = attrs["stride"], attrs["dilation"], attrs["padding"]
    inputs, per_group = W.shape[1], len(W) // attrs["groups"]
    h, w = window_shape(attrs, *q.shape[1:])
    bits = spec.accumulator_bits
    for o, i, j in product(range(len(W)), range(h), range(w)):
        terms = []
        for c, a, b in product(range(inputs), *map(range, attrs["kernel"])):
            row, column = i * sh + a * dh - top, j * sw + b * dw - left
            inside = 0 <= row < q.shape[1] and 0 <= column < q.shape[2]
            code = int(q[o // per_group * inputs + c, row, column]) if inside else z
            terms.append((code, int(W[o, c, a, b])))
        if spec.product == "int16-pairs":
            acc = 0
            for k in range(0, len(terms), 2):
                pair = sum(code * weight for code, weight in terms[k : k + 2])
                acc += max(-(2**15), min(2**15 - 1, pair)) if len(terms[k : k + 2]) == 2 else pair
            acc -= z * sum(weight for _, weight in terms)
        else:
            acc = sum((code - z) * weight for code, weight in terms)
        acc += int(layer.bias[o])
        if spec.accumulator_overflow == "wrap":
            acc = (acc + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
        elif spec.accumulator_overflow == "saturate":
            acc = max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, acc))
        s = read.scale * float(layer.scale[o] if layer.scale.shape else layer.scale)
        k = requantized(acc, factor_of(s, made, spec), spec, made.spec.rounding)
        out[(o, i, j) if node.op == "Conv" else o] = k
    return out


def loop_add(d: list[int], edges: list[Edge], made: Edge, spec: rq.IntegerSpec) -> int:
    mode = made.spec.rounding
    if spec.add == "exact":
        parts = [(float(v), e.scale / made.scale) for v, e in zip(d, edges, strict=True)]
        return round_combination_exact(parts, mode)
    if spec.add == "float32":
        a, b = (np.float32(v) * np.float32(e.scale) for v, e in zip(d, edges, strict=True))
        return round_exact(Fraction(float((a + b) / np.float32(made.scale))), mode)
    how = replace(spec, requantize="single-round" if spec.requantize == "single-round" else "double-round")
    twice = 2 * max(e.scale for e in edges)
    total = sum(fixed(v << 20, e.scale / twice, how) for v, e in zip(d, edges, strict=True))
    return fixed(total, twice / (2**20 * made.scale), how)


def fixed(acc: int, factor: float, spec: rq.IntegerSpec) -> int:
    """As `requantized`, also by a factor of 1, which fixed point too leaves as it is."""
    return requantized(acc, factor, spec, "half_even")


def loop_pool(node: Node, d: Codes, read: Edge, made: Edge, spec: rq.IntegerSpec, shape: tuple[int, ...]) -> Codes:
    out = np.zeros(shape, int)
    if node.op == "GlobalAvgPool":
        attrs: dict[str, Any] = {"kernel": d.shape[1:], "stride": (1, 1), "padding": (0, 0, 0, 0)}
    else:
        attrs = dict(node.attrs)
    (kh, kw), (sh, sw), (top, left, _, _) = attrs["kernel"], attrs["stride"], attrs["padding"]
    for c, i, j in product(*map(range, shape)):
        places = [(i * sh + a - top, j * sw + b - left) for a, b in product(range(kh), range(kw))]
        seen = [int(d[c, r, s]) for r, s in places if 0 <= r < d.shape[1] and 0 <= s < d.shape[2]]
        if node.op == "MaxPool":
            out[c, i, j] = requantized(max(seen), factor_of(read.scale, made, spec), spec, made.spec.rounding)
            continue
        count = kh * kw if attrs.get("count_include_pad") else len(seen)
        if spec.pool == "exact":
            exact = Fraction(sum(seen)) * Fraction(read.scale / made.scale) / count
            out[c, i, j] = round_exact(exact, made.spec.rounding)
        else:
            raw = sum(seen) + int(read.zero_point) * count
            divided = round_exact(Fraction(raw, count), spec.pool) - int(read.zero_point)
            factor = factor_of(read.scale, made, spec)
            out[c, i, j] = requantized(divided, factor, spec, made.spec.rounding)
    return out


def loop(graph: Graph, codes: Codes, plan: QuantPlan) -> dict[str, Codes]:
    """One image, from the codes of its input, by definition."""
    edges, spec = edges_of(graph, plan), plan.integer
    assert spec is not None
    tensors = {graph.input.name: codes}
    for node in graph.nodes:
        made, reads = edges[node.name], [edges[t] for t in node.inputs]
        q = [tensors[t] for t in node.inputs]
        d = [v - int(e.zero_point) for v, e in zip(q, reads, strict=True)]
        shape, mode = graph.shapes[node.name], made.spec.rounding
        to_made = [factor_of(e.scale, made, spec) for e in reads]
        if node.op in ("Conv", "Gemm"):
            k = loop_linear(graph, node, q[0], plan, edges)
        elif node.op == "Add":
            pairs = zip(d[0].ravel(), d[1].ravel(), strict=True)
            k = np.array([loop_add([int(a), int(b)], reads, made, spec) for a, b in pairs]).reshape(shape)
        elif node.op.endswith("Pool"):
            k = loop_pool(node, d[0], reads[0], made, spec, shape)
        else:
            floor = 0 if node.op.startswith("Relu") else -(2**30)
            cap = 2**30
            if node.op == "Relu6":
                cap = rq.quantize_exact(6.0, made.scale, int(made.zero_point), made.spec) - int(made.zero_point)
            parts = [
                [min(requantized(max(int(v), floor), f, spec, mode), cap) for v in part.ravel()]
                for part, f in zip(d, to_made, strict=True)
            ]
            k = np.array([v for part in parts for v in part]).reshape(shape)  # Concat along axis 1: of one image, 0
        tensors[node.name] = np.clip(k + int(made.zero_point), made.spec.qmin, made.spec.qmax)
    return tensors


SPECS = {
    "exact": rq.IntegerSpec(),
    "float32": rq.IntegerSpec(requantize="float32", factor="float32", add="float32", pool="half_away"),
    "single-round": rq.IntegerSpec(requantize="single-round", add="fixed-point", pool="half_even"),
    "double-round": rq.IntegerSpec(requantize="double-round", add="fixed-point", pool="toward_zero"),
    "wrapping 8 bits": rq.IntegerSpec(accumulator_bits=8, accumulator_overflow="wrap", bias_overflow="saturate"),
    "saturating 10 bits": rq.IntegerSpec(accumulator_bits=10, accumulator_overflow="saturate", bias_bits=9),
    "int16 pairs": rq.IntegerSpec(product="int16-pairs"),
    "two terms": rq.IntegerSpec(product="two-terms", pool="floor"),
    "signed terms": rq.IntegerSpec(product="signed-terms", bias_rounding="half_away"),
}


@pytest.mark.guarantee(
    "Every op of an integer network equals loops over Python integers, for nine integer semantics",
    kind="sampled",
    clauses="N1 N2 N3 N4 N5",
)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("powers", [True, False], ids=["powers of two", "any scales"])
def test_every_op_is_its_definition(name: str, powers: bool) -> None:
    spec = SPECS[name]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        graph = everything(rng, include_pad=bool(seed % 2))
        rounding = MODES[seed] if name == "exact" else "half_even"
        plan = random_plan(graph, rng, replace(spec, bias_overflow="saturate"), powers, rounding)
        images = rng.integers(0, 64, (3, 2, 5, 5))
        _, traced = rq.forward(graph, images, plan, mode="integer", trace=True)
        assert set(traced) == set(graph.shapes)
        for n in range(len(images)):
            expected = loop(graph, traced["x"][n].astype(np.int64), plan)
            for tensor, codes in expected.items():
                assert np.array_equal(traced[tensor][n], codes), (name, seed, tensor)


def test_the_network_holds_every_op() -> None:
    ops = {node.op for node in everything(np.random.default_rng(0)).nodes}
    assert ops == set(RULES)
    assert set(RULES) | {"BatchNorm", "Softmax"} == set(OPS)


# ---- integer equals fake --------------------------------------------------------------------------------------


@cache
def zoo_plan(name: str) -> QuantPlan:
    calibration = load_data("fashion-mnist").calibration.x[:32]
    return rq.quantize_network(load_network(name), calibration, bits=(8, 8), integer=rq.IntegerSpec())


def reals_of(graph: Graph, plan: QuantPlan, codes: Tensors) -> dict[str, NDArray[np.float32]]:
    edges = edges_of(graph, plan)
    return {t: ((q - edges[t].zero_point) * edges[t].scale).astype(np.float32) for t, q in codes.items()}


@pytest.mark.guarantee(
    "Integer equals fake on every tensor where scales are powers of two, all ops and rounding modes",
    kind="sampled",
    clauses="N1 N2 N3 N4 N5",
)
@pytest.mark.parametrize("rounding", MODES)
def test_integer_equals_fake_where_scales_are_powers_of_two(rounding: str) -> None:
    """Then every real of the fake network is a dyadic number that float64 holds, and both are exact.

    An average over n elements is one correctly rounded division: a quotient that is no tie is at least 1 / (2 n)
    steps from one.
    """
    for seed in range(8):
        rng = np.random.default_rng(seed)
        graph = everything(rng, include_pad=bool(seed % 2))
        plan = random_plan(graph, rng, rq.IntegerSpec(bias_overflow="saturate"), True, rounding)
        images = rng.integers(0, 64, (20, 2, 5, 5))
        _, codes = rq.forward(graph, images, plan, mode="integer", trace=True)
        _, reals = rq.forward(graph, images, plan, mode="fake", trace=True)
        for tensor, expected in reals_of(graph, plan, codes).items():
            assert np.array_equal(reals[tensor], expected), (seed, tensor)


@pytest.mark.guarantee(
    "Integer equals fake on every tensor of the three networks", kind="checked", clauses="N1 N2 N3 N4 N5"
)
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_integer_equals_fake_on_the_zoo(name: str) -> None:
    """Scales are any float32: equality is a fact about these networks and images, seen on every tensor."""
    graph, images = load_network(name), load_data("fashion-mnist")
    plan = zoo_plan(name)
    x = images.test.x[:48]
    _, codes = rq.forward(graph, x, plan, mode="integer", trace=True)
    _, reals = rq.forward(graph, x, plan, mode="fake", trace=True)
    for tensor, expected in reals_of(fold_batch_norm(graph), plan, codes).items():
        assert np.array_equal(reals[tensor], expected), tensor
    assert codes[fold_batch_norm(graph).output].dtype == np.int32


def difference_bound(graph: Graph, plan: QuantPlan, rounding_errors: float) -> dict[str, int]:
    """How many codes each tensor can differ under two requantization rules, from the same images.

    Each rule's integer is within its rounding error of the real k = acc factor; rounding_errors is their sum.
    Linear: |k - k'| <= factor sum|q_w| d + rounding errors, and integers obey its floor.  Saturating and the
    zero point change no difference; proofs/03_integer_network.py has the argument.
    """
    edges, bounds = edges_of(graph, plan), {graph.input.name: 0}
    for node in graph.nodes:
        made, reads = edges[node.name], [edges[t] for t in node.inputs]
        if node.op in ("Conv", "Gemm"):
            assert plan.integer is not None
            layer = layer_of(graph, node, plan, reads[0], plan.integer)
            rows = np.abs(layer.codes).reshape(len(layer.codes), -1).sum(axis=1)
            gain = float(np.max(rows * reads[0].scale * layer.scale) / made.scale)
            bounds[node.name] = math.floor(gain * bounds[node.inputs[0]] + rounding_errors)
            continue
        moved = [e.scale / made.scale * bounds[t] for e, t in zip(reads, node.inputs, strict=True)]
        passes = all(e.scale == made.scale for e in reads) and node.op not in ("Add", "AveragePool", "GlobalAvgPool")
        total = sum(moved) if node.op == "Add" else max(moved)
        bounds[node.name] = math.floor(total + (0 if passes else rounding_errors))
    return bounds


@pytest.mark.guarantee(
    "Requantization rules differ by no more than the proved bound on the three networks", kind="checked", clauses="N3"
)
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
@pytest.mark.parametrize("how", ["single-round", "double-round"])
def test_requantization_rules_differ_by_no_more_than_the_bound(name: str, how: str) -> None:
    graph, images = load_network(name), load_data("fashion-mnist")
    plan = zoo_plan(name)
    other = replace(plan, integer=rq.IntegerSpec(requantize=how))
    x = images.test.x[:48]
    _, a = rq.forward(graph, x, plan, mode="integer", trace=True)
    _, b = rq.forward(graph, x, other, mode="integer", trace=True)
    # exact errs by 1/2, double rounding by 1/2 + 1/2; a 31-bit multiplier by 2^-31 of |k| < 2^17: in all below 1.6
    bounds = difference_bound(fold_batch_norm(graph), plan, 1.6)
    differences = {tensor: int(np.abs(a[tensor] - b[tensor]).max()) for tensor in a}
    assert all(differences[t] <= bounds[t] for t in a), (differences, bounds)
    first = fold_batch_norm(graph).linear_nodes[0].name
    assert bounds[first] == 1
    assert (how == "double-round") <= (max(differences.values()) >= 1)  # the bound is of use


# ---- two 4-bit terms ------------------------------------------------------------------------------------------


@pytest.mark.guarantee(
    "Two 4-bit terms reproduce the three 8-bit networks bit for bit, in both digit conventions",
    kind="checked",
    clauses="N1",
)
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
@pytest.mark.parametrize("convention", ["two-terms", "signed-terms"])
def test_four_bit_terms_reproduce_the_eight_bit_network(name: str, convention: str) -> None:
    graph, images = load_network(name), load_data("fashion-mnist")
    plan = zoo_plan(name)
    low = replace(plan, integer=rq.IntegerSpec(product=convention))
    x = images.test.x[:48]
    _, eight = rq.forward(graph, x, plan, mode="integer", trace=True)
    _, four = rq.forward(graph, x, low, mode="integer", trace=True)
    assert all(np.array_equal(eight[tensor], four[tensor]) for tensor in eight)


@pytest.mark.guarantee("4-bit digits stand for every code of 1 to 12 bits", kind="exhaustive", clauses="N1")
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(1, 13))
def test_digits_stand_for_every_code(bits: int, signed: bool) -> None:
    spec = QuantSpec(bits, signed)
    codes = np.arange(spec.qmin, spec.qmax + 1.0)
    sliced = digits(codes, spec, signed=False)
    assert np.array_equal(sum(16.0**i * d for i, d in enumerate(sliced)), codes)
    assert len(sliced) == -(-bits // 4)
    assert all(0 <= d.min() and d.max() <= 15 for d in sliced[:-1])
    assert -8 <= sliced[-1].min()
    assert sliced[-1].max() <= (7 if signed else 15)
    balanced = digits(codes, spec, signed=True)
    assert np.array_equal(sum(16.0**i * d for i, d in enumerate(balanced)), codes)
    assert all(-8 <= d.min() and d.max() <= 7 for d in balanced)


def test_signed_digits_need_a_third_term_from_120_on() -> None:
    codes = np.arange(-128.0, 128.0)
    needed = terms_needed(codes, QuantSpec(8), "signed-terms")
    assert codes[needed == 3].tolist() == list(range(120, 128))
    assert codes[needed == 1].tolist() == list(range(-8, 8))
    for spec in (QuantSpec(8), QuantSpec(8, signed=False), QuantSpec(8, narrow=True)):  # moved onto -136..119
        inputs = np.arange(spec.qmin, spec.qmax + 1.0)
        assert terms_needed(inputs, spec, "signed-terms", moved=True).max() == 2


def test_low_bit_macs_are_counted_by_hand() -> None:
    """Channel 0 has a code of 120: three signed digits; activations of 8 bits: two digits either way."""
    node = Node("y", "Gemm", ("x",), {"in_features": 2, "out_features": 2}, {"weight": "w"})
    graph = Graph("g", InputSpec("x", (2,)), "y", (node,), {"w": np.ones((2, 2), np.float32)})
    grid = QuantSpec(8, granularity=rq.PerChannel(0))
    weights = {"y": MultiTerm(np.array([[[120, 1], [119, 1]]]), np.ones((1, 2)), (grid,), np.ones(2, np.int64))}
    byte = ActivationQuantizer(QuantSpec(8, signed=False), np.array(1.0), np.array(0))
    plan = QuantPlan(weights, {"x": byte, "y": byte}, rq.IntegerSpec(product="two-terms"))
    assert low_bit_macs(graph, plan) == {"y": 4 * 2 * 2}
    assert low_bit_macs(graph, replace(plan, integer=rq.IntegerSpec(product="signed-terms"))) == {"y": 2 * (3 + 2) * 2}
    assert low_bit_macs(graph, replace(plan, integer=rq.IntegerSpec())) == {"y": 4}


def test_slicing_is_the_seeds_floor_quantizer() -> None:
    """A code is a sum of two 4-bit terms of scales 16 and 1, as `encode_ladder` with floor writes it."""
    codes = np.arange(-128.0, 128.0)
    low, high = digits(codes, QuantSpec(8), signed=False)
    terms = encode_ladder(
        codes, 16.0, spec=QuantSpec(4, rounding="floor"), rest=QuantSpec(4, False, rounding="floor"), terms=2
    )
    assert np.array_equal(terms.codes, [high, low])
    assert np.array_equal(terms.scales, [16.0, 1.0])


@pytest.mark.guarantee("4-bit digits give the product of every two 8-bit codes", kind="exhaustive", clauses="N1")
@pytest.mark.parametrize("product_name", ["two-terms", "signed-terms"])
def test_every_product_of_two_codes(product_name: str) -> None:
    gemm = {"in_features": 1, "out_features": 256}
    w = Operand(np.arange(-128.0, 128.0)[:, None], QuantSpec(8))
    for spec in (QuantSpec(8), QuantSpec(8, signed=False)):
        x = Operand(np.arange(spec.qmin, spec.qmax + 1.0)[:, None], spec)
        assert np.array_equal(PRODUCTS[product_name](OPS["Gemm"], gemm, w, x), x.codes * w.codes.T)


# ---- clauses one by one ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_zero_points_of_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    W, X = rng.integers(0, 256, (5, 7)), rng.integers(0, 256, (4, 7))
    z_w, z_x = rng.integers(0, 256, 5), int(rng.integers(0, 256))
    byte, attrs = QuantSpec(8, signed=False), {"in_features": 7, "out_features": 5}
    w, x = Operand(W.astype(float), byte), Operand(X.astype(float), byte)
    expected = (X - z_x) @ (W - z_w[:, None]).T
    for name in ("exact", "two-terms", "signed-terms"):
        acc = accumulators(OPS["Gemm"], attrs, w, x, z_w.astype(float), z_x, product=name)
        assert np.array_equal(acc, expected), name


def test_a_register_raises_wraps_and_saturates() -> None:
    acc = np.array([-129.0, -128.0, 127.0, 128.0, 1000.0])
    spec = rq.IntegerSpec(accumulator_bits=8, accumulator_overflow="wrap")
    assert held(acc, spec, "").tolist() == [127, -128, 127, -128, -24]
    assert held(acc, replace(spec, accumulator_overflow="saturate"), "").tolist() == [-128, -128, 127, 127, 127]
    with pytest.raises(rq.CodeOverflowError, match="3 accumulators from -129 to 1000"):
        held(acc, replace(spec, accumulator_overflow="raise"), "")


def test_the_pair_that_saturates() -> None:
    """255 x 127 twice is 64770 and becomes 32767; an odd last product is alone."""
    w, x = Operand(np.full((1, 3), 127.0), QuantSpec(8)), Operand(np.full((1, 3), 255.0), QuantSpec(8, signed=False))
    pairs = PRODUCTS["int16-pairs"](OPS["Gemm"], {"in_features": 3, "out_features": 1}, w, x)
    assert pairs.tolist() == [[32767.0 + 255 * 127]]


def test_140000_products_wrap_an_int32() -> None:
    acc = np.array([140000 * 127 * 127.0])
    assert held(acc, rq.IntegerSpec(accumulator_overflow="wrap"), "").tolist() == [2258060000 - 2**32]


def test_bias_codes() -> None:
    spec = rq.IntegerSpec(bias_bits=8)
    bias, s_w = np.array([0.5, -0.25, 1.0]), np.array([0.25, 0.125, 0.0625])
    assert rq.quantize_bias(bias, np.float32(0.5), s_w, spec=spec).tolist() == [4, -4, 32]
    with pytest.raises(rq.CodeOverflowError, match="1 value beyond"):
        rq.quantize_bias(bias * 100, np.float32(0.5), s_w, spec=replace(spec, bias_bits=12))
    saturating = replace(spec, bias_overflow="saturate")
    assert rq.quantize_bias(bias * 100, np.float32(0.5), s_w, spec=saturating).tolist() == [127, -128, 127]
    assert rq.quantize_bias([0.5], 1.0, 1.0, spec=replace(spec, bias_rounding="half_away")).tolist() == [1]
    assert rq.quantize_bias(np.empty(0), 1.0, 1.0, spec=spec).shape == (0,)


@pytest.mark.guarantee(
    "Sums of products over a divisor are rounded exactly, on and next to ties", kind="sampled", clauses="N3 N4 N5"
)
@pytest.mark.parametrize("mode", MODES)
def test_combinations_near_ties(mode: str) -> None:
    rng = np.random.default_rng(7)
    a, c = rng.integers(-999, 999, (2, 400)).astype(float)
    b, d = rng.uniform(0.001, 2, 400), rng.uniform(0.001, 2, 400)
    d[:200] = 2.0 ** -rng.integers(0, 4, 200)
    b[:100] = 2.0 ** -rng.integers(0, 4, 100)
    count = rng.integers(1, 10, 400).astype(float)
    c[200:] = 1.0  # the second term moves the sum next to a tie
    d[200:] = [
        float((k + Fraction(1, 2)) * int(n) - Fraction(x) * Fraction(y))
        for k, x, y, n in zip(rng.integers(-9, 9, 200).tolist(), a[200:], b[200:], count[200:], strict=True)
    ]
    got = round_combination([(a, b), (c, d)], mode, count)
    expected = [
        round_combination_exact([(p, q), (r, s)], mode, n) for p, q, r, s, n in zip(a, b, c, d, count, strict=True)
    ]
    assert got.tolist() == expected
    assert round_combination([(a, b)], mode).tolist() == [
        round_combination_exact([(p, q)], mode) for p, q in zip(a, b, strict=True)
    ]


# ---- the value and the door -----------------------------------------------------------------------------------


def test_results_are_the_same_bytes_for_any_workers() -> None:
    graph, images = load_network("cnn"), load_data("fashion-mnist")
    plan = rq.quantize_network(graph, images.calibration.x[:8], bits=(4, 8), integer=rq.IntegerSpec())
    one, two = (rq.forward(graph, images.test.x[:130], plan, mode="integer", workers=n) for n in (1, 2))
    assert one.tobytes() == two.tobytes()
    assert rq.forward(graph, images.test.x[:0], plan, mode="integer").shape == (0, 10)


def test_plans_go_through_json() -> None:
    graph = load_network("mlp")
    spec = rq.IntegerSpec(requantize="double-round", pool="half_away")
    plan = rq.quantize_network(graph, load_data("fashion-mnist").calibration.x[:8], bits=(8, 8), integer=spec)
    again = plan_from_json(plan_to_json(plan))
    assert again.integer == spec
    assert plan_to_json(again) == plan_to_json(plan)
    with pytest.raises(rq.FileError):
        plan_from_json(plan_to_json(plan).replace('"pool": "half_away"', '"pool": "halfway"'))


def test_integer_specs_are_values() -> None:
    spec = rq.IntegerSpec(add="float32")
    assert rq.IntegerSpec.from_json(spec.to_json()) == spec
    assert spec.digest != rq.IntegerSpec().digest
    for bad in ({"pool": "none"}, {"accumulator_bits": 64}, {"bias_bits": 7}, {"requantize": "nearest"}):
        with pytest.raises(rq.ArgumentError, match=next(iter(bad))):
            rq.IntegerSpec(**bad)
    with pytest.raises(rq.ArgumentError, match="exactly"):
        rq.IntegerSpec.from_json("{}")


def _without(plan: QuantPlan, tensor: str) -> QuantPlan:
    return replace(plan, activations={t: q for t, q in plan.activations.items() if t != tensor})


def test_refusals() -> None:
    rng = np.random.default_rng(0)
    graph = everything(rng)
    plan = random_plan(graph, rng, rq.IntegerSpec(bias_overflow="saturate"), True, "half_even")
    x = rng.integers(0, 64, (1, 2, 5, 5))

    def refuse(text: str, bad: QuantPlan, g: Graph = graph) -> None:
        with pytest.raises(rq.ArgumentError, match=text):
            rq.forward(g, x, bad, mode="integer")

    refuse("without an IntegerSpec", replace(plan, integer=None))
    refuse("tensor v1", _without(plan, "v1"))
    refuse("tensor y", _without(plan, "y"))
    refuse("no quantized weight", replace(plan, weights={n: w for n, w in plan.weights.items() if n != "c2"}))
    w = plan.weights["y"]
    wide = MultiTerm(w.codes.repeat(2, 0), w.scales.repeat(2, 0), w.specs * 2, w.counts + 1)
    refuse("2 terms", replace(plan, weights={**plan.weights, "y": wide}))
    for change in ({"overflow": "wrap"}, {"rounding": "stochastic"}, {"bits": 17}, {"zero_point_order": "before"}):
        q = plan.activations["v1"]
        refuse(
            "tensor v1",
            replace(plan, activations={**plan.activations, "v1": replace(q, spec=replace(q.spec, **change))}),
        )
    soft = replace(graph, nodes=(*graph.nodes, Node("p", "Softmax", ("y",))), output="p")
    refuse("Softmax", plan, soft)
    narrow = replace(plan, integer=rq.IntegerSpec(accumulator_bits=8, bias_overflow="saturate"))
    with pytest.raises(rq.CodeOverflowError, match="node"):
        rq.forward(graph, x, narrow, mode="integer")
    for mode in ("fake", "integer"):
        for field, stranger in (("weights", plan.weights["y"]), ("activations", plan.activations["v1"])):
            named: Any = {field: {**getattr(plan, field), "elsewhere": stranger}}
            bad = replace(plan, **named)
            with pytest.raises(rq.ArgumentError, match=f"{field} of elsewhere.*plan for everything"):
                rq.forward(graph, x, bad, mode=mode)
    data = load_data("fashion-mnist").calibration.x[:4]
    for keywords in ({"budget": 1.5}, {"bits": (8, None)}):
        with pytest.raises(rq.ArgumentError, match="integer="):
            rq.quantize_network(load_network("mlp"), data, integer=rq.IntegerSpec(), **keywords)


# ---- what a plan may hold -------------------------------------------------------------------------------------


def gemm(
    codes: Any, scales: Any, read: Any, made: Any, spec: rq.IntegerSpec, bits: int = 16, inputs: int = 1
) -> tuple[Graph, QuantPlan]:
    """A Gemm whose inputs weigh alike: codes and scales of its weights (outputs,), scales of its input and output."""
    W = np.repeat(np.asarray(codes)[:, None], inputs, axis=1)
    attrs = {"in_features": inputs, "out_features": len(W)}
    node = Node("y", "Gemm", ("x",), attrs, {"weight": "w", "bias": "b"})
    arrays = {"w": np.ones(W.shape, np.float32), "b": np.zeros(len(W), np.float32)}
    graph = Graph("small", InputSpec("x", (inputs,)), "y", (node,), arrays)
    grid = QuantSpec(bits, granularity=rq.PerChannel(0))
    weights = {"y": MultiTerm(W[None], np.asarray(scales)[None], (grid,), np.ones(len(W), np.int64))}
    edges = {"x": (QuantSpec(bits, False), read), "y": (QuantSpec(bits), made)}
    activations = {t: ActivationQuantizer(q, np.asarray(s), np.array(0)) for t, (q, s) in edges.items()}
    return graph, QuantPlan(weights, activations, spec)


@pytest.mark.parametrize("mode", ["fake", "integer"])
@pytest.mark.parametrize(
    ("codes", "scales", "text"),
    [
        ([1, 2], [1.0, math.nan], "scale=nan, but should be finite and > 0 .weight of y"),
        ([1, 2], [1.0, math.inf], "scale=inf"),
        ([1, 2], [1.0, -1.0], "scale=-1.0"),
        ([1, 2], [1.0, 0.0], "scale=0.0"),
        ([1, 128], [1.0, 1.0], r"codes of term 1 from 1 to 128.*in \[-128, 127\].*weight of y"),
        ([1.5, 2.0], [1.0, 1.0], "codes of type float64.*weight of y"),
        ([1, 2], [1e300, 1e300], "input scale times weight scale=inf.*node y"),
        ([1, 2], [1e-300, 1e-300], "input scale times weight scale=0.0.*node y"),
    ],
)
def test_weights_that_are_no_weights_are_refused(mode: str, codes: Any, scales: Any, text: str) -> None:
    graph, plan = gemm(
        codes, scales, 1e300 if scales[0] > 1 else 1e-300 if scales[0] < 1 else 1.0, 1.0, rq.IntegerSpec(), 8
    )
    with pytest.raises(rq.ArgumentError, match=text):
        rq.forward(graph, [[1]], plan, mode=mode)


@pytest.mark.parametrize("factor", ["float64", "float32"])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("read", "made"), [(1e38, 1e-30), (1e-38, 1e30), (1e39, 1.0), (1e-46, 1.0), (1.0, 1e-320)])
def test_factors_that_no_rule_can_use_name_their_node(factor: str, how: str, read: float, made: float) -> None:
    graph, plan = gemm([1, 2], [1.0, 1.0], read, made, rq.IntegerSpec(factor=factor, requantize=how))
    with pytest.raises(rq.ArgumentError, match=r"factor=.*node y of small"):
        rq.forward(graph, [[1]], plan, mode="integer")


@pytest.mark.parametrize("how", ["single-round", "double-round"])
def test_accumulators_beyond_fixed_point_name_their_node(how: str) -> None:
    graph, plan = gemm([-32768], [1.0], 0.5, 1.0, rq.IntegerSpec(accumulator_bits=48, requantize=how), inputs=2)
    assert rq.forward(graph, [[15000, 15000]], plan, mode="integer").tolist() == [[-32768]]  # these fit
    with pytest.raises(rq.ArgumentError, match=r"x from -42.* 32 bits .node y of small.: requantize exactly"):
        rq.forward(graph, [[32767, 32767]], plan, mode="integer")


def test_a_factor_of_1_passes_what_its_neighbours_shift_would_not() -> None:
    spec = rq.IntegerSpec(requantize="double-round")
    graph, plan = gemm([32767, 1], [1.0, 0.5], 1.0, 1.0, spec)
    assert rq.forward(graph, [[65535]], plan, mode="integer").tolist() == [[32767, 32767]]
    alone = gemm([32767], [1.0], 1.0, 1.0, spec)
    assert rq.forward(alone[0], [[65535]], alone[1], mode="integer").tolist() == [[32767]]


def test_overflow_of_a_shift_names_its_node() -> None:
    graph, plan = gemm([32767], [1.0], 1.0, 0.5, rq.IntegerSpec(requantize="double-round"))
    with pytest.raises(rq.ArgumentError, match=r"beyond 32 bits.*node y of small"):
        rq.forward(graph, [[65535]], plan, mode="integer")


def add(bits: int, scales: tuple[float, float, float], spec: rq.IntegerSpec) -> tuple[Graph, QuantPlan]:
    """Relu(x) + x on codes of so many bits."""
    nodes = (Node("r", "Relu", ("x",)), Node("y", "Add", ("r", "x")))
    graph = Graph("sum", InputSpec("x", (1,)), "y", nodes, {})
    grid = QuantSpec(bits)
    named = zip(("r", "x", "y"), scales, strict=True)
    return graph, QuantPlan({}, {t: ActivationQuantizer(grid, np.array(s), np.array(0)) for t, s in named}, spec)


def test_the_fixed_point_add_has_room_for_11_bits_from_zero() -> None:
    spec = rq.IntegerSpec(add="fixed-point", requantize="single-round")
    graph, plan = add(16, (1.0, 0.5, 2.0), spec)
    with pytest.raises(rq.ArgumentError, match=r"add='fixed-point' of r.*16-bit.*node y of sum.: take add='exact'"):
        rq.forward(graph, [[100]], plan, mode="integer")
    for bits in (8, 11):
        graph, plan = add(bits, (1.0, 1.0, 2.0), spec)
        assert rq.forward(graph, [[100], [-2000]], plan, mode="integer").tolist() == [
            [100],
            [-(2 ** (bits - 2)) if bits == 8 else -512],
        ]


@pytest.mark.parametrize("how", ["exact", "float32", "fixed-point"])
@pytest.mark.parametrize("scales", [(1e-300, 1.0, 1.0), (1.0, 1.0, 1e-300), (1e300, 1e300, 1.0)])
def test_scales_that_no_add_can_use_name_their_node(how: str, scales: tuple[float, float, float]) -> None:
    graph, plan = add(8, scales, rq.IntegerSpec(add=how))
    with pytest.raises(rq.ArgumentError, match=r"node [ry] of sum"):
        rq.forward(graph, [[1]], plan, mode="integer")


@pytest.mark.parametrize(
    ("scale", "zero_point", "text"),
    [
        (1.0, 0.5, "zero_point=0.5, but should be an integer"),
        (1.0, math.nan, "zero_point=nan"),
        (1.0, 70000, "zero_point=70000"),
        (math.inf, 0, "scale=inf"),
        (-1.0, 0, "scale=-1.0"),
        ([1.0], 0, r"scale of shape \(1,\)"),
        ("a", 0, "scale of type <U1"),
    ],
)
def test_quantizers_that_are_none_name_their_tensor(scale: Any, zero_point: Any, text: str) -> None:
    graph, plan = gemm([1], [1.0], 1.0, 1.0, rq.IntegerSpec())
    bad = replace(plan.activations["x"], scale=np.array(scale), zero_point=np.array(zero_point))
    with pytest.raises(rq.ArgumentError, match=text) as caught:
        edges_of(graph, replace(plan, activations={**plan.activations, "x": bad}))
    assert "shape" in text or "tensor x of small" in str(caught.value)


def test_plans_of_deep_json_are_refused() -> None:
    with pytest.raises(rq.FileError, match="plan of schema"):
        plan_from_json("[" * 100_000)
