"""Bounds on errors of quantized networks: never violated, by any input or codes, and faults are noticed."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import refquant as rq
from refquant import ArgumentError, NotANumberError, QuantPlan
from refquant.net.fold import fold_batch_norm
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.ops import OPS
from refquant.net.plan import ActivationQuantizer
from refquant.quant.quantizer import fake_quantize
from refquant.theory import norms, spectral
from refquant.theory.affine import bound_forms, refine_up_to
from refquant.theory.bounds import ErrorBounds, bound_error, bound_rounding, measured_errors, tightness
from refquant.theory.box import Box, point
from refquant.theory.certificate import certify
from refquant.theory.difference import Enclosure, Network, enclose, float_network, quantized_network
from refquant.theory.pieces import Piece
from refquant.theory.quantizer_error import ROUNDING, noise_radius, on_grid, quantizer_error, quantizer_image
from refquant.theory.rounding_error import UNITS, gamma
from refquant.theory.spectral import conv_norm_bound, norm_bound, overlap

Reals = NDArray[np.float64]


def window(size: int, stride: int, padding: int) -> dict[str, Any]:
    return {"kernel": [size, size], "stride": [stride, stride], "padding": [padding, padding]}


def conv(I: int, O: int, size: int, padding: int, groups: int = 1) -> dict[str, Any]:
    return {"in_channels": I, "out_channels": O, **window(size, 1, padding), "groups": groups}


NORM = {role: role for role in ("gamma", "beta", "mean", "var")}
SHAPES = {"W": (4, 2, 3, 3), "b": (4,), "V": (4, 1, 3, 3), "U": (4, 4, 1, 1), "G": (5, 24), "g": (5,)}


def every_op(rng: np.random.Generator) -> Graph:
    """All ops; one batch norm that folds and one that does not; a tensor read twice; softmax last."""
    nodes = (
        Node("c1", "Conv", ("x",), conv(2, 4, 3, 1), {"weight": "W", "bias": "b"}),
        Node("n1", "BatchNorm", ("c1",), {"channels": 4, "eps": 0.1}, NORM),
        Node("r1", "Relu", ("n1",)),
        Node("p1", "MaxPool", ("r1",), window(3, 2, 1)),
        Node("c2", "Conv", ("p1",), conv(4, 4, 3, 1, 4), {"weight": "V"}),
        Node("n2", "BatchNorm", ("p1",), {"channels": 4, "eps": 0.1}, NORM),
        Node("a", "Add", ("c2", "n2")),
        Node("r2", "Relu6", ("a",)),
        Node("c3", "Conv", ("r2",), conv(4, 4, 1, 0), {"weight": "U"}),
        Node("p2", "AveragePool", ("c3",), {**window(2, 2, 1), "count_include_pad": bool(rng.integers(2))}),
        Node("m", "GlobalAvgPool", ("r2",)),
        Node("m2", "Concat", ("m", "m"), {"axis": 1}),
        Node("f1", "Flatten", ("p2",)),
        Node("f2", "Flatten", ("m2",)),
        Node("k", "Concat", ("f1", "f2"), {"axis": 1}),
        Node("z", "Gemm", ("k",), {"in_features": 24, "out_features": 5}, {"weight": "G", "bias": "g"}),
        Node("y", "Softmax", ("z",), {"axis": 1}),
    )
    gains = {name: 1 / np.prod(shape[1:]) ** 0.5 for name, shape in SHAPES.items()}  # so that no tensor grows
    arrays = {name: rng.normal(0, gains[name], shape).astype(np.float32) for name, shape in SHAPES.items()}
    arrays |= {name: rng.uniform(0.5, 2, 4).astype(np.float32) for name in NORM}
    return Graph("every op", InputSpec("x", (2, 6, 6)), "y", nodes, arrays)


def some_plan(graph: Graph, x: Any, bits: int, terms: int = 1, biases: bool = False) -> QuantPlan:
    """Every weight and every tensor that a Conv or Gemm reads on its own grid; biases moved."""
    graph = fold_batch_norm(graph)
    _, trace = rq.forward(graph, x, trace=True)
    spec, weights, activations, moved = rq.QuantSpec(bits, signed=False), {}, {}, {}
    for node in graph.linear_nodes:
        weights[node.name] = rq.encode_terms(
            graph.param(node, "weight"), spec=rq.QuantSpec(bits), terms=terms, method="greedy"
        )
        seen = trace[node.inputs[0]]
        parameters = rq.range_parameters(float(seen.min()), float(seen.max()), spec=spec, rule="affine")
        activations[node.inputs[0]] = ActivationQuantizer(spec, *parameters)
        if biases:
            moved[node.name] = np.linspace(-0.1, 0.2, graph.shapes[node.name][0]).astype(np.float32)
    return QuantPlan(weights, activations, biases=moved)


@cache
def zoo(name: str, bits: int) -> tuple[Graph, QuantPlan, Any]:
    """A network of the zoo, quantized on few calibration images; test images."""
    data = rq.load_data("fashion-mnist")
    graph = rq.load_network(name)
    return graph, rq.quantize_network(graph, data.calibration.x[:8], bits=(bits, bits), method="absmax"), data.test.x


def traced(graph: Graph, x: Any, plan: QuantPlan | None = None) -> dict[str, Reals]:
    _, trace = rq.forward(graph, x, plan, "float" if plan is None else "fake", trace=True)
    return {name: v.astype(np.float64) for name, v in trace.items()}


def enclosed(graph: Graph, plan: QuantPlan, x: Any, width: int = 0, specified: bool = False) -> Enclosure:
    seen, network = traced(graph, x), quantized_network(graph, plan)
    start = point(np.zeros_like(seen[graph.input.name]))
    return enclose(network, seen, start, specified=specified, refine=refine_up_to(width) if width else None)


def outside(found: Enclosure, seen: Mapping[str, Reals], run: Mapping[str, Reals]) -> list[str]:
    """The tensors with an error beyond its bound."""
    network, left = found.network, []
    for name, value in network.shown.items():
        e, box = run[name] - seen[network.seen[value]], found.errors[value]
        left += [name] * int(not ((box.low <= e) & (e <= box.high)).all())
    return left


# ---- runs of networks -----------------------------------------------------------------------------------------


@pytest.mark.guarantee(
    "No bound on the networks of the zoo is violated, at 2 to 8 bits, on test images", kind="sampled"
)
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_errors_of_the_zoo_lie_within_their_bounds(name: str, bits: int) -> None:
    graph, plan, x = zoo(name, bits)
    x = x[: 20 if name == "mlp" else 2]
    seen, run = traced(graph, x), traced(graph, x, plan)
    for specified in (False, True):
        assert not outside(enclosed(graph, plan, x, 128 if name == "mlp" else 10, specified), seen, run)


@pytest.mark.guarantee(
    "No bound on random networks of all ops is violated, at 1 to 3 terms of 2 to 8 bits", kind="sampled"
)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(2, 8), terms=st.integers(1, 3), specified=st.booleans())
def test_errors_of_networks_of_all_ops_lie_within_their_bounds(
    seed: int, bits: int, terms: int, specified: bool
) -> None:
    rng = np.random.default_rng(seed)
    graph = every_op(rng)
    x = rng.normal(0, 10.0 ** rng.uniform(-2, 2), (3, 2, 6, 6)).astype(np.float32)
    plan = some_plan(graph, x[:1], bits, terms, biases=bool(seed % 2))
    seen, run = traced(graph, x), traced(graph, x, plan)
    assert not outside(enclosed(graph, plan, x, 40, specified), seen, run)


def test_partial_sums_that_cancel_are_paid_for() -> None:
    """2^53 + 1 + ... + 1 - 2^53 in float64: each 1 is lost, and the middle is 0, but the sum of 60 ones is not."""
    rests = [-(2.0**53), *[1.0] * 60, 2.0**53]
    names = [f"r{k}" for k in range(len(rests))]
    nodes = [Node(name, "Relu", (before,)) for before, name in zip(["x", *names], names, strict=False)]
    network = float_network(Graph("chain", InputSpec("x", (1,)), names[-1], tuple(nodes), {}))
    zero = point(np.zeros((1, 1)))
    pieces = {name: Piece(zero, point(np.full((1, 1), v)), lambda u: [u], np.zeros((1, 1)), 0, False)
              for name, v in zip(names, rests, strict=True)}  # fmt: skip
    found = Enclosure(network, dict.fromkeys(["x", *names], zero), pieces)
    box = bound_forms(found, names[-1], np.ones((1, 1, 1)))
    assert box.middle[0, 0] == 0 < 60 <= box.high[0, 0] < 200


# ---- quantizers -----------------------------------------------------------------------------------------------

QUOTIENTS = ("exact", "float64", "float32", "float16", "bfloat16", "reciprocal-float32")


@pytest.mark.guarantee(
    "The error of a quantizer and its image are enclosed for all modes and quotients", kind="sampled"
)
@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_errors_of_quantizers_lie_within_their_bounds(seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    spec = rq.QuantSpec(
        data.draw(st.integers(2, 8)),
        signed=data.draw(st.booleans()),
        rounding=data.draw(st.sampled_from(sorted(ROUNDING))),
        quotient=data.draw(st.sampled_from(QUOTIENTS)),
        zero_point_order=data.draw(st.sampled_from(["after", "before"])),
        dequantize=data.draw(st.sampled_from(["scale-difference", "difference-of-products"])),
    )
    s = np.array(2.0 ** rng.uniform(-8, 8), np.float32)
    z = np.array(rng.integers(spec.qmin, spec.qmax + 1)) + (0.5 if spec.zero_point_order == "before" else 0)
    codes = rng.integers(2 * spec.qmin - 4, 2 * spec.qmax + 4, 60)
    near = np.where(rng.random(60) < 0.5, (codes + rng.choice([-0.5, 0, 0.5], 60)), codes + rng.random(60))
    v = (near * np.float64(s)).astype(np.float32)
    got = fake_quantize(v, s, z, spec=spec).astype(np.float64)
    wide = Box(v - s * rng.random(60) * rng.integers(0, 3, 60), v + s * rng.random(60) * rng.integers(0, 3, 60))
    for box in (point(v), wide):
        d = quantizer_error(spec, s, z, box, "float32")
        assert ((d.low <= got - v) & (got - v <= d.high)).all()
        image = quantizer_image(spec, s, z, box, "float32")
        assert ((image.low <= got) & (got <= image.high)).all()
    low, high = ROUNDING[spec.rounding]
    inside, d = on_grid(spec, s, z, point(v)), quantizer_error(spec, s, z, point(v), "float32")
    if spec.quotient == "exact":  # else the quotient's rounding adds to it; products of codes are below 2^11 s
        assert ((d.high - d.low)[inside] <= s * (high - low + 2.0**-11)).all()


def test_float_networks_are_enclosed_by_their_roundings_alone() -> None:
    rng = np.random.default_rng(5)
    graph, x = every_op(rng), rng.normal(0, 1, (4, 2, 6, 6)).astype(np.float32)
    seen, network = traced(graph, x), float_network(graph)
    found = enclose(network, seen, point(np.zeros_like(seen["x"])))
    assert not outside(found, seen, seen)
    assert max(float(box.magnitude.max()) for box in found.errors.values()) < 1e-3


# ---- bound_error: three ways, regions, integer-only networks --------------------------------------------------


def violated(bounds: ErrorBounds, errors: Mapping[str, Reals]) -> list[str]:
    """Which bounds an error breaks: way and tensor."""
    found = []
    for name, e in errors.items():
        for way, box in (("interval", bounds.interval[name]), ("affine", bounds.affine[name])):
            found += [f"{way} {name}"] * int(not ((box.low <= e) & (e <= box.high)).all())
        norms = np.sqrt(np.sum(e.reshape(len(e), -1) ** 2, axis=1)) * (1 - 2.0**-40)
        found += [f"norm {name}"] * int(not (norms <= bounds.norm[name]).all())
    return found


@pytest.mark.guarantee("Interval, norm and affine bounds hold, on random networks of all ops", kind="sampled")
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(2, 8), specified=st.booleans())
def test_three_ways_hold_on_networks_of_all_ops(seed: int, bits: int, specified: bool) -> None:
    rng = np.random.default_rng(seed)
    graph, x = every_op(rng), rng.normal(0, 1, (3, 2, 6, 6)).astype(np.float32)
    plan = some_plan(graph, x[:1], bits)
    bounds, errors = bound_error(graph, plan, x, specified=specified), measured_errors(graph, plan, x)
    assert violated(bounds, errors) == []
    assert set(errors) == set(bounds.norm)
    for row in tightness(bounds, errors):
        assert row.measured <= row.affine * (1 + 2.0**-40)
        assert row.affine <= row.interval * (1 + 2.0**-40)


@pytest.mark.guarantee("Bounds of a region hold for every image in it that was tried", kind="sampled")
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), radius=st.floats(0, 0.5), specified=st.booleans())
def test_bounds_of_a_region_hold_for_its_images(seed: int, radius: float, specified: bool) -> None:
    rng = np.random.default_rng(seed)
    graph, x = every_op(rng), rng.normal(0, 1, (3, 2, 6, 6)).astype(np.float32)
    plan = some_plan(graph, x, 6)
    bounds = bound_error(graph, plan, x, radius=radius, specified=specified)
    network = bounds.enclosure.network
    for scale in (1.0, 0.3):
        near = np.clip(x + radius * scale * rng.choice([-1, 1], x.shape), x - radius, x + radius).astype(np.float32)
        near = np.where(np.abs(near.astype(np.float64) - x) <= radius, near, x)
        run = traced(graph, near, plan)
        errors = {name: run[name] - bounds.reference[network.seen[v]] for name, v in network.shown.items()}
        assert violated(bounds, errors) == []


@pytest.mark.guarantee("Bounds hold for integer-only networks of the zoo, against float32", kind="sampled")
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_bounds_hold_for_integer_only_networks(name: str) -> None:
    graph, data = rq.load_network(name), rq.load_data("fashion-mnist")
    plan = rq.quantize_network(graph, data.calibration.x[:8], bits=(8, 8), method="absmax", integer=rq.IntegerSpec())
    x = data.test.x[:3]
    for specified in (False, True):
        bounds = bound_error(graph, plan, x, specified=specified, width=10)
        assert violated(bounds, measured_errors(graph, plan, x)) == []


@pytest.mark.guarantee(
    "On the mlp with 8-bit absmax weights and activations the affine bound of the logits is below 10 times the error "
    "of 32 test images, below the interval bound and a fifth of the norm bound",
    kind="checked",
)
def test_the_affine_bound_of_the_mlp_is_close() -> None:
    graph, plan, x = zoo("mlp", 8)
    rows = {r.tensor: r for r in tightness(bound_error(graph, plan, x[:32]), measured_errors(graph, plan, x[:32]))}
    logits = rows["gemm3"]
    assert logits.affine < 10 * logits.measured
    assert logits.affine < min(logits.interval, logits.norm / 5)


@pytest.mark.parametrize("fault", ["weights left out", "half a step", "roundings left out", "gain of the kernel"])
def test_faults_of_bounds_are_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(11)
    graph, x = every_op(rng), rng.normal(0, 1, (4, 2, 6, 6)).astype(np.float32)
    plan = some_plan(graph, x, 3)
    if fault == "weights left out":
        bounds = bound_error(graph, replace(plan, weights={}), x)
    elif fault == "half a step":
        halves = {name: replace(q, scale=q.scale / 2) for name, q in plan.activations.items()}
        bounds = bound_error(graph, replace(plan, activations=halves), x)
    elif fault == "roundings left out":
        plan = QuantPlan()
        monkeypatch.setitem(UNITS, "float32", 0.0)
        bounds = bound_error(graph, plan, x)
    else:
        monkeypatch.setattr(spectral, "norm_bound", lambda A: np.zeros(A.shape[:-2]))
        monkeypatch.setitem(norms.GAINS, "Conv", lambda L, weight: 0.0)
        bounds = bound_error(graph, plan, x)
    assert violated(bounds, measured_errors(graph, plan, x)) != []


# ---- norms ----------------------------------------------------------------------------------------------------


@pytest.mark.guarantee("Upper bounds of norms of matrices are above singular values, and within 1e-5", kind="sampled")
@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), m=st.integers(1, 12), n=st.integers(1, 12), power=st.integers(-500, 500))
def test_norm_bounds_of_matrices_are_above_and_close(seed: int, m: int, n: int, power: int) -> None:
    rng = np.random.default_rng(seed)
    A = np.ldexp(rng.normal(0, 1, (m, n)) @ np.diag(10.0 ** rng.uniform(-6, 0, n)), power)
    if seed % 3 == 0:
        A = np.ldexp(rng.integers(-2, 3, (m, n)).astype(float), power)
    top = np.linalg.norm(A, 2)
    bound = float(norm_bound(A))
    assert top * (1 - 2.0**-40) <= bound <= top * (1 + 1e-5)
    v = np.linalg.svd(A)[2][0]
    assert np.linalg.norm(A @ v) <= bound * (1 + 2.0**-40)
    assert float(norm_bound(np.zeros((m, n)))) == 0


def test_a_norm_that_is_subnormal_is_rounded_up() -> None:
    for A in (np.array([[5e-324, 5e-324]]), np.full((3, 1), 2.0**-1060)):  # sqrt(2) and sqrt(3) times a power of two
        square = sum((Fraction(float(a)) ** 2 for a in A.ravel()), Fraction(0))
        assert square <= Fraction(float(norm_bound(A))) ** 2


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.99])
def test_a_wrong_guess_of_a_norm_does_no_harm(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    A, honest = np.diag([3.0, 2.0, 1.0]) + 0.1, np.linalg.eigvalsh
    monkeypatch.setattr(np.linalg, "eigvalsh", lambda G: factor * honest(G))
    assert float(norm_bound(A)) >= np.linalg.norm(A, 2)


def matrix_of(attrs: Mapping[str, Any], weight: Reals, shape: tuple[int, ...]) -> Reals:
    """A convolution as a matrix, column by column."""
    unit = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    return np.asarray(OPS["Conv"].forward(attrs, {"weight": weight}, [unit]).reshape(len(unit), -1).T)


@pytest.mark.guarantee("Bounds on norms of convolutions are above those of their matrices", kind="sampled")
@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_norm_bounds_of_convolutions_are_above(seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    k, s, d = (data.draw(st.tuples(st.integers(1, n), st.integers(1, n))) for n in (3, 3, 2))
    G, O = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([2, 4]))
    H, W = (int(d[i] * (k[i] - 1) + 1 + rng.integers(0, 4)) for i in (0, 1))
    attrs = {
        "in_channels": 2,
        "out_channels": O,
        "kernel": k,
        "stride": s,
        "dilation": d,
        "padding": tuple(map(int, rng.integers(0, 3, 4))),
        "groups": G,
    }
    weight = rng.normal(0, 1, (O, 2 // G, *k)) if seed % 2 else np.ones((O, 2 // G, *k))
    top, bound = np.linalg.norm(matrix_of(attrs, weight, (2, H, W)), 2), conv_norm_bound(weight, attrs, (2, H, W))
    assert top <= bound * (1 + 2.0**-40)
    kernel = float(norm_bound(weight.reshape(G, O // G, -1)).max())
    assert bound <= kernel * np.sqrt(overlap(attrs)) * (1 + 2.0**-40)


def test_the_norm_of_a_kernel_is_not_that_of_its_convolution() -> None:
    attrs = {**conv(1, 1, 3, 1), "dilation": (1, 1), "padding": (1, 1, 1, 1)}
    ones = np.ones((1, 1, 3, 3))
    top, kernel = np.linalg.norm(matrix_of(attrs, ones, (1, 12, 12)), 2), float(norm_bound(ones.reshape(1, 9)))
    assert kernel < 3.001
    assert 8 < top <= conv_norm_bound(ones, attrs, (1, 12, 12)) < 9.001


# ---- roundings ------------------------------------------------------------------------------------------------


@pytest.mark.guarantee("Float32 runs that sum in other orders stay within the bound on rounding", kind="sampled")
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_other_orders_of_summation_stay_within_the_bound_on_rounding(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wide = {"in_features": 300, "out_features": 8}
    nodes = (
        Node("h", "Gemm", ("x",), wide, {"weight": "A", "bias": "b"}),
        Node("r", "Relu", ("h",)),
        Node("z", "Gemm", ("r",), {"in_features": 8, "out_features": 4}, {"weight": "B"}),
    )
    shapes = {"A": (8, 300), "b": (8,), "B": (4, 8)}
    arrays = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    graph, x = Graph("sums", InputSpec("x", (300,)), "z", nodes, arrays), rng.normal(0, 1, (4, 300)).astype(np.float32)
    order = rng.permutation(300)
    terms = (x[:, None, order] * arrays["A"][:, order]).astype(np.float32)
    h = np.cumsum(terms, axis=2, dtype=np.float32)[:, :, -1] + arrays["b"]  # one after the other
    z = np.cumsum(np.maximum(h, 0)[:, None] * arrays["B"], axis=2, dtype=np.float32)[:, :, -1]
    seen, certain, likely = traced(graph, x), bound_rounding(graph, x), bound_rounding(graph, x, confidence=0.99)
    for name, other in (("h", h), ("z", z)):
        e = other.astype(np.float64) - seen[name]
        assert e.any()
        assert ((certain[name].low <= e) & (e <= certain[name].high)).all()
        assert likely[name].magnitude.max() < certain[name].magnitude.max()
        assert ((likely[name].low <= e) & (e <= likely[name].high)).all()


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_the_bound_on_roundings_is_reached_and_one_less_is_too_little(n: int) -> None:
    u = Fraction(1, 2**24)
    most = max(abs((1 - u) ** n - 1), abs(1 / (1 - u) ** n - 1))
    assert most <= Fraction(gamma(n, float(u)))
    assert most > Fraction(gamma(n - 1, float(u))) if n > 1 else most > 0


# ---- bounds with a confidence ---------------------------------------------------------------------------------


def dithered(network: Network, x: Reals, rng: np.random.Generator) -> dict[str, Reals]:
    """The quantized run with subtractive dither: every code errs by uniform noise, but where it is known beforehand."""
    values, known = {network.start: x}, {network.start}
    for step in network.steps:
        v, sure = [values[name] for name in step.inputs], known.issuperset(step.inputs)
        if step.linear is not None:
            out, sure = step.linear.forward(v) + step.linear.constant, sure and not step.linear.roundings
        elif step.quantizer is None:
            out = OPS[step.kind].forward(step.attrs, {}, v)
        else:
            spec, s, z = step.quantizer
            noise = s * rng.uniform(-0.5, 0.5, v[0].shape)
            exact = fake_quantize(v[0].astype(np.float32), s, z, spec=spec).astype(np.float64)
            wide = fake_quantize(v[0] + noise, s, z, spec=spec) - noise
            out = exact if sure else np.where(v[0] == 0, exact, wide)
        values[step.name] = out
        known |= {step.name} if sure else set()
    return values


def two_layers(rng: np.random.Generator) -> tuple[Graph, QuantPlan, NDArray[np.float32]]:
    """Two Gemm of many inputs; the codes in between are fine enough not to clip."""
    nodes = (
        Node("h", "Gemm", ("x",), {"in_features": 4, "out_features": 200}, {"weight": "A"}),
        Node("z", "Gemm", ("h",), {"in_features": 200, "out_features": 5}, {"weight": "B"}),
    )
    arrays = {name: rng.normal(0, 0.5, s).astype(np.float32) for name, s in {"A": (200, 4), "B": (5, 200)}.items()}
    spec = rq.QuantSpec(8)
    q = ActivationQuantizer(spec, np.array(0.1, np.float32), np.array(0))
    return (
        Graph("two", InputSpec("x", (4,)), "z", nodes, arrays),
        QuantPlan(activations={"h": q}),
        rng.normal(0, 1, (2, 4)).astype(np.float32),
    )


@pytest.mark.guarantee(
    "With subtractive dither, bounds with a confidence fail no more often than they say", kind="sampled"
)
def test_bounds_with_a_confidence_hold_for_dither_as_often_as_they_say() -> None:
    graph, plan, x = two_layers(np.random.default_rng(3))
    bounds, sure = bound_error(graph, plan, x, confidence=0.9), bound_error(graph, plan, x)
    network, rng, runs, failed, tight = bounds.enclosure.network, np.random.default_rng(4), 1000, 0, 0
    box, feed = bounds.affine["z"], traced(graph, x)
    for _ in range(runs):
        e = dithered(network, feed["x"], rng)["z"] - feed["z"]
        failed += not ((box.low <= e) & (e <= box.high)).all()
        tight += not ((box.low / 3 <= e) & (e <= box.high / 3)).all()
        assert ((sure.affine["z"].low <= e) & (e <= sure.affine["z"].high)).all()
    assert failed <= 0.2 * runs  # two images, each with 1 - confidence
    assert tight > 0.2 * runs  # a third of the width would not do
    assert bounds.failure == pytest.approx(0.1)
    assert box.magnitude.max() < sure.affine["z"].magnitude.max() / 2


SIDES = {"floor": (0.0, 1.0), "toward_zero": (0.0, 1.0), "ceil": (-1.0, 0.0), "away_from_zero": (-1.0, 0.0)}
"""Where dither lies, in steps, for errors of positive numbers to be uniform; else half a step to both sides."""


@pytest.mark.guarantee(
    "Bounds with a confidence hold for dither in every rounding mode and with every quotient", kind="sampled"
)
@pytest.mark.parametrize("spec", [
    *(rq.QuantSpec(8, rounding=mode) for mode in ROUNDING), *(rq.QuantSpec(8, quotient=name) for name in QUOTIENTS)
])  # fmt: skip
def test_bounds_with_a_confidence_hold_for_every_spec(spec: rq.QuantSpec) -> None:
    """Of 200 positive numbers: toward zero all become less, and with a scale in bfloat16 all are off to one side."""
    rng, step = np.random.default_rng(8), 2.0**-4 * (1 + 0.45 * 2.0**-8)
    attrs = [{"in_features": n, "out_features": m} for n, m in ((1, 200), (200, 1))]
    nodes = Node("h", "Gemm", ("x",), attrs[0], {"weight": "A"}), Node("z", "Gemm", ("h",), attrs[1], {"weight": "B"})
    arrays = {"A": rng.uniform(4, 6, (200, 1)).astype(np.float32), "B": np.ones((1, 200), np.float32)}
    plan = QuantPlan(activations={"h": ActivationQuantizer(spec, np.array(step), np.array(0))})
    graph, failed, h = Graph("sum", InputSpec("x", (1,)), "z", nodes, arrays), 0, arrays["A"][:, 0].astype(np.float64)
    box = bound_error(graph, plan, np.ones((1, 1), np.float32), confidence=0.9).affine["z"]
    for _ in range(200):
        low, high = SIDES.get(spec.rounding, (-0.5, 0.5))
        dither = step * rng.uniform(low, high, h.shape)
        e = (fake_quantize(h + dither, step, 0, spec=spec) - dither - h).sum()
        failed += not box.low[0, 0] <= e <= box.high[0, 0]
    assert failed <= 0.1 * 200


def test_noise_is_claimed_only_where_the_box_is_about_a_step() -> None:
    q = rq.QuantSpec(3), np.array(1.0), np.array(0)
    v = Box(np.array([0.2, 3.0, 2.0, -4.4, -3.0]), np.array([0.2, 3.0, 3.0, -3.9, 2.0]))
    assert noise_radius(*q, v, quantizer_error(*q, v, "float64")).tolist() == [0.5, 0, 0.5, 0, 0.5]
    for spec in (rq.QuantSpec(3, rounding="toward_zero"), rq.QuantSpec(20, quotient="bfloat16")):
        assert not noise_radius(spec, *q[1:], v, quantizer_error(spec, *q[1:], v, "float64")).any()


def test_what_does_not_fit_is_refused() -> None:
    graph, plan, x = two_layers(np.random.default_rng(0))
    for confidence in (0.0, 1.0, 2.0):
        with pytest.raises(ArgumentError, match="between 0 and 1"):
            bound_error(graph, plan, x, confidence=confidence)
        with pytest.raises(ArgumentError, match="between 0 and 1"):
            bound_rounding(graph, x, confidence=confidence)
    with pytest.raises(ArgumentError, match="radius"):
        bound_error(graph, plan, x, radius=np.inf)
    with pytest.raises(ArgumentError, match="QuantPlan"):
        bound_error(graph, "plan", x)  # type: ignore[arg-type]  # that is the fault
    with pytest.raises(NotANumberError):
        bound_error(graph, plan, x * np.nan)
    random = {"h": ActivationQuantizer(rq.QuantSpec(8, rounding="stochastic"), np.array(0.1), np.array(0))}
    with pytest.raises(ArgumentError, match="deterministic"):
        bound_error(graph, QuantPlan(activations=random), x)


def test_where_a_run_may_overflow_nothing_is_said() -> None:
    """1.5 2^127 - 1.5 2^127 is 0, but with fused sums, or in another order with more terms, infinite."""
    dense = {"in_features": 2, "out_features": 1}
    weight = np.array([[2.0**127, -(2.0**127)]], np.float32)
    graph = Graph(
        "large", InputSpec("x", (2,)), "z", (Node("z", "Gemm", ("x",), dense, {"weight": "w"}),), {"w": weight}
    )
    for x, finite in (([[1.5, 1.5]], False), ([[0.25, 0.25]], True)):
        bounds = bound_error(graph, QuantPlan(), x)
        for r in (bounds.affine["z"].magnitude[0, 0], bounds.interval["z"].magnitude[0, 0], bounds.norm["z"][0]):
            assert np.isfinite(r) == finite
        assert np.isfinite(bound_rounding(graph, x)["z"].magnitude[0, 0]) == finite
    d = quantizer_error(rq.QuantSpec(8), np.array(2.0**120), np.array(0), point(np.zeros(1)), "float32")
    assert np.isinf(d.high).all()


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("kind", [{}, {"specified": True}, {"radius": 1.0}])
def test_where_the_reference_has_overflowed_nothing_is_said(kind: dict[str, Any]) -> None:
    """1.5 2^128 - 1.5 2^128 is not a number in float32, and is read by a quantizer."""
    attrs = [{"in_features": n, "out_features": m} for n, m in ((2, 1), (1, 2))]
    nodes = Node("z", "Gemm", ("x",), attrs[0], {"weight": "w"}), Node("y", "Gemm", ("z",), attrs[1], {"weight": "v"})
    arrays = {"w": np.array([[2.0**127, -(2.0**127)]], np.float32), "v": np.ones((2, 1), np.float32)}
    graph, x = Graph("large", InputSpec("x", (2,)), "y", nodes, arrays), np.array([[3.0, 3.0]])
    plan = QuantPlan(activations={"z": ActivationQuantizer(rq.QuantSpec(8), np.array(0.5), np.array(0))})
    bounds = bound_error(graph, plan, x, **kind)
    assert np.isinf([bounds.affine["y"].high, bounds.interval["y"].high, -bounds.affine["y"].low]).all()
    assert np.isinf(bounds.norm["y"]).all()
    assert certify(graph, plan, x, **kind).gaps.min() == -np.inf
