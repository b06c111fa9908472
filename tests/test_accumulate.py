"""Attribution: contributions add up to the error, each is what it says by other ways too, and faults are noticed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
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
from refquant.net.gradient import Tape, pullback, pushforward
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.op import Point, Rule
from refquant.net.ops import OPS
from refquant.net.plan import ActivationQuantizer
from refquant.quant.multiterm import MultiTerm
from refquant.theory import accumulate, secants
from refquant.theory.accumulate import ROUTES, Attribution, attribute_error, injections, mean_square
from refquant.theory.pair import Pair, Source, images_of, pair_of
from refquant.theory.secants import LINEAR, ORDERS, SECANTS, secant_tape

Reals = NDArray[np.float64]
UNIT = 2.0**-53


def f32(values: Any) -> Any:
    return np.asarray(values, np.float32)


def gamma(n: int) -> float:
    return n * UNIT / (1 - n * UNIT)


# ---- networks -------------------------------------------------------------------------------------------------


def conv(I: int, O: int, kernel: int, padding: int, groups: int = 1) -> dict[str, Any]:
    return {
        "in_channels": I,
        "out_channels": O,
        "kernel": [kernel, kernel],
        "stride": [1, 1],
        "padding": [padding, padding],
        "groups": groups,
    }


def window(size: int, stride: int, padding: int) -> dict[str, Any]:
    return {"kernel": [size, size], "stride": [stride, stride], "padding": [padding, padding]}


def every_op(rng: np.random.Generator, last: str = "gemm") -> Graph:
    """A network with all ops, two branches, and a batch norm that does not fold; its output is the node `last`."""
    norm = {role: f"norm.{role}" for role in ("gamma", "beta", "mean", "var")}
    nodes = (
        Node("conv", "Conv", ("x",), conv(2, 4, 3, 1), {"weight": "W", "bias": "b"}),
        Node("relu", "Relu", ("conv",)),
        Node("pool", "MaxPool", ("relu",), window(3, 2, 1)),
        Node("deep", "Conv", ("pool",), conv(4, 4, 3, 1, 4), {"weight": "D"}),
        Node("norm", "BatchNorm", ("pool",), {"channels": 4, "eps": 0.1}, norm),
        Node("add", "Add", ("deep", "norm")),
        Node("six", "Relu6", ("add",)),
        Node("mean", "AveragePool", ("six",), {**window(3, 1, 1), "count_include_pad": False}),
        Node("both", "Concat", ("mean", "pool"), {"axis": 1}),
        Node("one", "Conv", ("both",), conv(8, 6, 1, 0), {"weight": "O", "bias": "o"}),
        Node("global", "GlobalAvgPool", ("one",)),
        Node("flat", "Flatten", ("global",)),
        Node("gemm", "Gemm", ("flat",), {"in_features": 6, "out_features": 5}, {"weight": "G", "bias": "g"}),
        Node("soft", "Softmax", ("gemm",), {"axis": 1}),
    )
    shapes = {"W": (4, 2, 3, 3), "b": (4,), "D": (4, 1, 3, 3), "O": (6, 8, 1, 1), "o": (6,), "G": (5, 6), "g": (5,)}
    gains = {name: 1 / np.prod(shape[1:]) ** 0.5 for name, shape in shapes.items()}  # so that no tensor grows
    arrays = {name: rng.normal(0, gains[name], shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {name: rng.uniform(0.5, 2, 4).astype(np.float32) for name in norm.values()}
    stop = [node.name for node in nodes].index(last) + 1
    used = {array for node in nodes[:stop] for array in node.params.values()}
    return Graph(
        "every op", InputSpec("x", (2, 6, 6)), last, nodes[:stop], {n: a for n, a in arrays.items() if n in used}
    )


def some_plan(graph: Graph, x: Any, bits: int, terms: int = 1, biases: bool = False) -> QuantPlan:
    """Every weight and every tensor that a Conv or Gemm reads on its own grid; biases moved."""
    graph = fold_batch_norm(graph)
    _, trace = rq.forward(graph, x, trace=True)
    spec, weights, activations = rq.QuantSpec(bits, signed=False), {}, {}
    for node in graph.linear_nodes:
        weights[node.name] = rq.encode_terms(graph.param(node, "weight"), spec=rq.QuantSpec(bits), terms=terms)
        seen = trace[node.inputs[0]]
        parameters = rq.range_parameters(float(seen.min()), float(seen.max()), spec=spec, rule="affine")
        activations[node.inputs[0]] = ActivationQuantizer(spec, *parameters)
    moved = {}
    for node in graph.linear_nodes if biases else ():
        own = graph.param(node, "bias") if "bias" in node.params else np.float32(0)
        moved[node.name] = (own + np.linspace(-0.1, 0.2, graph.shapes[node.name][0])).astype(np.float32)
    return QuantPlan(weights, activations, biases=moved)


@cache
def zoo(name: str, bits: int) -> tuple[Graph, QuantPlan, Any]:
    """A network of the zoo, quantized on few calibration images; test images."""
    data = rq.load_data("fashion-mnist")
    graph = rq.load_network(name)
    return graph, rq.quantize_network(graph, data.calibration.x[:8], bits=(bits, bits), method="absmax"), data.test.x


# ---- the identity ---------------------------------------------------------------------------------------------


@pytest.mark.guarantee(
    "Contributions add up to the error within 1e-12 on all networks of the zoo at 2 to 8 bits, in both orders, and "
    "shares to 1",
    kind="checked",
)
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_contributions_add_up_on_the_zoo(name: str, bits: int) -> None:
    graph, plan, x = zoo(name, bits)
    errors = []
    for order in ORDERS:
        found = attribute_error(graph, plan, x[:2], order=order)
        assert found.mse > 0
        assert found.residual <= 1e-12
        assert abs(sum(found.shares.values()) - 1) <= 1e-12
        assert abs(found.gram.sum() - found.mse) <= 1e-12 * found.mse
        assert abs(np.trace(found.gram) + found.interaction - found.mse) <= 1e-12 * found.mse
        errors.append(found.error)
        kinds = {source.kind for source in found.contributions}
        assert kinds == {"weight", "activation"}
        assert len(found.contributions) == len(plan.weights) + len(plan.activations)
    assert np.array_equal(errors[0], errors[1])


def majorant(pair: Pair, tape: Tape, moved: Tape) -> float:
    """At least every magnitude at the output: the network of all magnitudes, slopes 1, quantizers' errors added.

    In a pool a maximum is at most the sum, so that each line adds up nonnegative numbers.
    """
    bounds: dict[str, Reals] = {}
    for line in tape.lines:
        here, there = tape.points[line.name], moved.points[line.name]
        inputs = []
        for i, (a, b) in enumerate(zip(here.inputs, there.inputs, strict=False)):
            bounds.setdefault(line.sources[i], np.maximum(np.abs(a), np.abs(b)))
            inputs.append(bounds[line.sources[i]])
        params = {role: np.maximum(np.abs(a), np.abs(there.params[role])) for role, a in here.params.items()}
        if "mean" in params:
            params["mean"] = -params["mean"]
        kind = next((node.op for node in pair.graph.nodes if node.name == line.name), "read")
        if kind == "read":
            bounds[line.name] = inputs[0] + np.abs(there.output - there.inputs[0])
        elif kind in ("Relu", "Relu6"):
            bounds[line.name] = inputs[0]
        else:
            bounds[line.name] = line.op.forward(here.attrs, params, inputs)
            if kind == "MaxPool":
                bounds[line.name] = bounds[line.name] * np.prod(here.attrs["kernel"])
    return float(np.abs(bounds[tape.result]).max())


def tolerance(pair: Pair, feeds: Mapping[str, Reals], at: str) -> float:
    """How far roundings can take the sum of contributions from the error, elementwise.

    Values, errors, slopes and contributions are sums of products, one product a path through the network, each with
    at most K roundings: a line adds its longest sum and 16 more (secants: 8), and all sources' parts are added at the
    end.  Of each of 2 runs and of at most 3 parts a source, magnitudes add up to at most twice the majorant.
    """
    tape, moved = pair.run(feeds, at, ()), pair.run(feeds, at, pair.sources)
    longest = [max([64, *(int(a[0].size) for a in tape.points[line.name].params.values())]) for line in tape.lines]
    K = sum(longest) + 16 * len(tape.lines) + 3 * len(pair.sources)
    return (2 + 3 * len(pair.sources)) * 2 * gamma(K) * majorant(pair, tape, moved)


@pytest.mark.guarantee(
    "Contributions add up to the error within derived rounding for every op, through biases and sums of terms, in "
    "both orders",
    kind="sampled",
)
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 6), terms=st.integers(1, 3), order=st.sampled_from(list(ORDERS)))
def test_contributions_add_up_for_every_op(seed: int, bits: int, terms: int, order: str) -> None:
    rng = np.random.default_rng(seed)
    graph, x = every_op(rng), rng.normal(size=(3, 2, 6, 6))
    plan = some_plan(graph, x, bits, terms, biases=True)
    found = attribute_error(graph, plan, x, order=order)
    rest = np.abs(sum(found.contributions.values()) - found.error).max()
    allowed = tolerance(pair_of(graph, plan), images_of(graph, x), graph.output)
    assert rest <= allowed
    assert allowed <= 1e-6 * np.abs(found.error).max()  # so that a missing contribution would show
    assert {source.kind for source in found.contributions} == {"weight", "bias", "activation"}


@pytest.mark.parametrize("at", ["soft", "pool", "both", "deep"])
def test_the_error_at_any_tensor_is_attributed(at: str) -> None:
    rng = np.random.default_rng(1)
    graph, x = every_op(rng, "soft"), rng.normal(size=(3, 2, 6, 6))
    plan = some_plan(graph, x, 3)
    found = attribute_error(graph, plan, x, at=at)
    assert found.residual <= 1e-13
    assert found.error.shape == (3, *graph.shapes[at])
    before = {"pool": {"x", "conv"}, "deep": {"x", "conv", "pool", "deep"}}
    if at in before:
        assert {source.name for source in found.contributions} == before[at]


@pytest.mark.guarantee("The error attributed is that of the fake-quantized network", kind="checked")
def test_the_error_is_that_of_forward() -> None:
    """Small integers and powers of two, so that float32 and float64 agree bit for bit."""
    rng = np.random.default_rng(2)
    nodes = (
        Node("conv", "Conv", ("x",), conv(1, 2, 3, 1), {"weight": "W", "bias": "b"}),
        Node("relu", "Relu", ("conv",)),
        Node("flat", "Flatten", ("relu",)),
        Node("gemm", "Gemm", ("flat",), {"in_features": 32, "out_features": 3}, {"weight": "G"}),
    )
    arrays = {"W": rng.integers(-5, 6, (2, 1, 3, 3)), "b": rng.integers(-3, 4, 2), "G": rng.integers(-5, 6, (3, 32))}
    graph = Graph("exact", InputSpec("x", (1, 4, 4)), "gemm", nodes, {n: f32(a) for n, a in arrays.items()})
    coarse = {name: np.round(arrays[name] / 2).astype(int) for name in ("W", "G")}
    plan = QuantPlan(
        {
            node: MultiTerm(coarse[name][None], np.array([2.0]), (rq.QuantSpec(3),), np.array(1))
            for node, name in (("conv", "W"), ("gemm", "G"))
        },
        {
            "x": ActivationQuantizer(rq.QuantSpec(3), np.array(2.0), np.array(0)),
            "flat": ActivationQuantizer(rq.QuantSpec(4, signed=False), np.array(4.0), np.array(0)),
        },
        biases={"gemm": f32([1, -2, 0.5])},
    )
    x = rng.integers(-9, 10, (5, 1, 4, 4))
    found = attribute_error(graph, plan, x)
    assert np.array_equal(found.error, rq.forward(graph, x, plan, mode="fake").astype(float) - rq.forward(graph, x))
    assert [str(source) for source in found.contributions] == [
        "activation x",
        "weight conv",
        "activation flat",
        "weight gemm",
        "bias gemm",
    ]
    assert found.residual <= gamma(64)
    assert found.contributions[Source("gemm", "bias")].tolist() == [[1, -2, 0.5]] * 5


@pytest.mark.guarantee(
    "Integer-only networks are attributed too: every tensor, weight and bias", kind="checked", clauses="N2"
)
@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_integer_only_networks(name: str) -> None:
    data, graph = rq.load_data("fashion-mnist"), rq.load_network(name)
    plan = rq.quantize_network(graph, data.calibration.x[:8], integer=rq.IntegerSpec(), method="absmax")
    for order in ORDERS:
        found = attribute_error(graph, plan, data.test.x[:4], order=order)
        assert found.residual <= 1e-12
    pair = pair_of(graph, plan)
    assert {s.kind for s in found.contributions} == {"weight", "bias", "activation"}
    assert {s.name for s in found.contributions if s.kind == "activation"} == set(pair.graph.shapes)
    logits = rq.forward(graph, data.test.x[:4], plan, mode="fake")
    moved = pair.run(images_of(graph, data.test.x[:4]), pair.graph.output, pair.sources)
    assert np.array_equal(moved.output.astype(np.float32), logits)


# ---- each contribution by other ways --------------------------------------------------------------------------


@pytest.mark.guarantee("Contributions carried forward and those found backward are the same", kind="checked")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("last", ["gemm", "soft"])
def test_both_routes_give_the_same_contributions(last: str, order: str) -> None:
    rng = np.random.default_rng(3)
    graph, x = every_op(rng, last), rng.normal(size=(3, 2, 6, 6))
    pair, feeds = pair_of(graph, some_plan(graph, x, 3, 2, biases=True)), images_of(graph, x)
    tape, moved = pair.run(feeds, last, ()), pair.run(feeds, last, pair.sources)
    tape_of_secants = secant_tape(pair.graph, tape, moved, order)
    injected = injections(pair, tape_of_secants, moved)
    forward, backward = (route(tape_of_secants, injected) for route in ROUTES.values())
    assert forward.keys() == backward.keys()
    allowed = tolerance(pair, feeds, "gemm")  # softmax's slopes are at most 1
    for key, u in forward.items():
        assert np.abs(u - backward[key]).max() <= allowed, key
        assert np.abs(u).max() > 1e4 * allowed


@pytest.mark.guarantee(
    "On an MLP each contribution is the injected error times the product of matrices and slopes", kind="checked"
)
@pytest.mark.parametrize("order", ORDERS)
def test_contributions_are_products_of_matrices(order: str) -> None:
    graph, plan, x = zoo("mlp", 3)
    found = attribute_error(graph, plan, x[:3], order=order)
    names = ["gemm1", "gemm2", "gemm3"]
    W = {n: graph.param(graph.node(n), "weight").astype(float) for n in names}
    b = {n: graph.param(graph.node(n), "bias").astype(float) for n in names}
    V = {n: plan.weights[n].decode().astype(float) for n in names}
    a = v = images_of(graph, x[:3])[graph.input.name].reshape(3, -1)
    parts: dict[Source, Reals] = {}
    for n in names:
        read = next(node for node in graph.nodes if node.name == n).inputs[0]
        q = plan.activations[read]
        quantized = rq.fake_quantize(v, q.scale.astype(float), q.zero_point, spec=q.spec)
        parts[Source(read, "activation")] = quantized - v
        carry, inner = (W[n], quantized) if order == "perturbed" else (V[n], a)
        parts = {source: u @ carry.T for source, u in parts.items()}
        parts[Source(n, "weight")] = inner @ (V[n] - W[n]).T
        z, z_ = a @ W[n].T + b[n], quantized @ V[n].T + b[n]
        a, v = (np.maximum(z, 0), np.maximum(z_, 0)) if n != "gemm3" else (z, z_)
        slope = np.divide(v - a, z_ - z, out=np.zeros_like(z), where=z != z_)
        parts = {source: slope * u for source, u in parts.items()}
    assert parts.keys() == found.contributions.keys()
    for source, u in parts.items():  # 4 matrices, 1,168 products: gamma of that, times the growth by magnitudes
        scale = np.abs(u).max() + np.abs(found.error).max()
        assert np.abs(u - found.contributions[source]).max() <= 1e-11 * scale, source


def linear_network(rng: np.random.Generator) -> Graph:
    """Two branches, pools and norms, nothing that bends."""
    whole = every_op(rng)
    out = {"relu": "conv", "six": "add"}
    nodes = []
    for node in whole.nodes:
        if node.name not in out:
            op = "AveragePool" if node.op == "MaxPool" else node.op
            inputs = tuple(out.get(t, t) for t in node.inputs)
            nodes.append(replace(node, op=op, inputs=inputs, attrs=dict(node.attrs)))
    return replace(whole, nodes=tuple(nodes))


@pytest.mark.guarantee(
    "On a network without bends, contributions are the steps of quantizing it source by source: from the input on if "
    "perturbed, from the output back if mirrored",
    kind="checked",
)
@pytest.mark.parametrize("order", ORDERS)
def test_contributions_are_the_steps_between_half_quantized_networks(order: str) -> None:
    rng = np.random.default_rng(4)
    graph, x = linear_network(rng), rng.normal(size=(3, 2, 6, 6))
    plan = some_plan(graph, x, 3, biases=True)
    if order == "mirrored":  # a quantizer's error is that at its quantized value in both orders: leave them out
        plan = replace(plan, activations={})
    pair, feeds = pair_of(graph, plan), images_of(graph, x)
    found = attribute_error(graph, plan, x, order=order)
    sources = list(pair.sources)[:: 1 if order == "perturbed" else -1]
    before = pair.run(feeds, "gemm", ()).output
    for i, source in enumerate(sources):
        after = pair.run(feeds, "gemm", sources[: i + 1]).output
        step = after - before
        before = after
        assert np.abs(step).max() > 1e-3
        assert np.abs(step - found.contributions[source]).max() <= tolerance(pair, feeds, "gemm"), source


def test_alone_and_all_but_are_runs_with_other_plans() -> None:
    rng = np.random.default_rng(5)
    graph, x = every_op(rng), rng.normal(size=(70, 2, 6, 6))  # more than a batch
    plan = some_plan(graph, x, 3, biases=True)
    found = attribute_error(graph, plan, x)
    reference = rq.forward(fold_batch_norm(graph), x).astype(float)
    assert found.alone.keys() == found.all_but.keys() == found.contributions.keys()
    assert len(found.error) == 70

    def only(chosen: Callable[[Source], bool]) -> QuantPlan:
        def some(parts: Mapping[str, Any], kind: str) -> dict[str, Any]:
            return {name: part for name, part in parts.items() if chosen(Source(name, kind))}

        weights, activations = some(plan.weights, "weight"), some(plan.activations, "activation")
        return QuantPlan(weights, activations, biases=some(plan.biases, "bias"))

    for source in found.contributions:
        alone, all_but = only(lambda s, j=source: s == j), only(lambda s, j=source: s != j)  # type: ignore[misc]
        for measured, other in ((found.alone, alone), (found.all_but, all_but)):
            e = rq.forward(graph, x, other, mode="fake").astype(float) - reference
            assert abs(measured[source] - mean_square(e)) <= 1e-4 * mean_square(e), source  # float32, and ties


@pytest.mark.guarantee(
    "The parts of a weight's first t terms are what its error cut after t terms becomes by the plan's own secants",
    kind="checked",
)
def test_terms_of_a_sum() -> None:
    rng = np.random.default_rng(6)
    graph, x = every_op(rng), rng.normal(size=(3, 2, 6, 6))
    plan = some_plan(graph, x, 2, 3)
    counts = rng.integers(1, 4, plan.weights["one"].counts.shape)
    plan = replace(plan, weights={**plan.weights, "one": plan.weights["one"].truncated(counts)})
    found = attribute_error(graph, plan, x)
    pair, feeds = pair_of(graph, plan), images_of(graph, x)
    tape, moved = pair.run(feeds, "gemm", ()), pair.run(feeds, "gemm", pair.sources)
    tape_of_secants = secant_tape(pair.graph, tape, moved, "perturbed")
    allowed = tolerance(pair, feeds, "gemm")
    for name, parts in found.terms.items():
        whole = plan.weights[name]
        assert parts.shape == (whole.terms, *found.error.shape)
        assert np.abs(parts.sum(axis=0) - found.contributions[Source(name, "weight")]).max() <= allowed
        W = pair.graph.arrays[f"{name}:weight"].astype(float)
        for t in range(1, whole.terms + 1):
            cut: MultiTerm = whole.truncated(t)
            dW = (cut.decode() if t == whole.terms else cut.decode(np.float64)) - W
            expected = pushforward(tape_of_secants, {f"{name}:weight": dW})["gemm"]
            assert np.abs(parts[:t].sum(axis=0) - expected).max() <= allowed, (name, t)
    assert found.terms.keys() == set(plan.weights)


# ---- secants --------------------------------------------------------------------------------------------------

SECANT_CASES = {
    "Relu": ({}, (2, 5)),
    "Relu6": ({}, (2, 5)),
    "Softmax": ({"axis": 1}, (4,)),
    "MaxPool": (OPS["MaxPool"].read_attrs(window(3, 2, 1)), (2, 5, 5)),
}


def secant(op: str, x: Reals, x_: Reals) -> tuple[Point, Point, Rule]:
    """The points of two inputs, and the secant between them."""
    at, moved = (OPS[op].at(SECANT_CASES[op][0], {}, [v]) for v in (x, x_))
    return at, moved, SECANTS[op](at, moved, OPS[op].derivative)


def samples(op: str, seed: int, far: float) -> tuple[Reals, Reals]:
    """Inputs with ties and equal places; magnitudes around the kinks."""
    rng = np.random.default_rng(seed)
    shape = (3, *SECANT_CASES[op][1])
    x = rng.integers(-4, 9, shape) + rng.choice([0.0, 1.0], shape) * rng.normal(size=shape)
    return x, x + far * rng.normal(size=shape) * rng.choice([0.0, 1.0], shape)


@pytest.mark.guarantee(
    "A secant takes a difference of inputs to the difference of outputs, of any size", kind="sampled"
)
@pytest.mark.parametrize("op", SECANTS)
@given(seed=st.integers(0, 10**6), far=st.sampled_from([1e-9, 1e-3, 1.0, 100.0]))
def test_secants_are_exact(op: str, seed: int, far: float) -> None:
    x, x_ = samples(op, seed, far)
    at, moved, rule = secant(op, x, x_)
    step = rule.jvp(at, {0: x_ - x})
    magnitude = np.abs(x).max() + np.abs(x_).max()
    n = 16 if op != "Softmax" else 16 * 4
    assert np.abs(step - (moved.output - at.output)).max() <= gamma(n) * magnitude
    u, v = (
        np.random.default_rng(seed + 1).normal(size=(2, *step.shape)),
        np.random.default_rng(seed).normal(size=x.shape),
    )
    left, right = np.sum(u[0] * rule.jvp(at, {0: v})), np.sum(rule.vjp(at, u[0], [0])[0] * v)
    terms = (
        np.sum(np.abs(u[0]) * rule.jvp(at, {0: np.abs(v)}))
        if op != "Softmax"
        else np.sum(np.abs(u[0])) * np.abs(v).max()
    )
    assert abs(left - right) <= gamma(4 * x.size) * 4 * abs(terms)


@pytest.mark.parametrize("op", SECANTS)
def test_secants_of_one_point_are_derivatives(op: str) -> None:
    x, _ = samples(op, 7, 0.0)
    if op == "MaxPool":
        x += np.random.default_rng(7).normal(size=x.shape)  # no ties
    at, _, rule = secant(op, x, x)
    v = np.random.default_rng(8).normal(size=x.shape)
    step, derivative = rule.jvp(at, {0: v}), OPS[op].derivative.jvp(at, {0: v})
    if op.startswith("Relu"):
        assert not step.any()  # 0/0 is 0: nothing moves
        near = secant(op, x, x + 1e-7)[2].jvp(at, {0: v})
        inside = np.abs(x) > 1e-6
        inside &= np.abs(x - 6) > 1e-6
        assert np.abs(near - derivative)[inside].max() <= 1e-7
    else:
        assert np.abs(step - derivative).max() <= gamma(40) * np.abs(v).max()


def test_slopes_lie_between_0_and_1() -> None:
    for op in ("Relu", "Relu6", "MaxPool"):
        at, _, rule = secant(op, *samples(op, 9, 1.0))
        ones = np.ones_like(at.inputs[0])
        assert (rule.jvp(at, {0: ones}) <= 1).all()
        assert (rule.jvp(at, {0: ones}) >= 0).all()
    at, _, rule = secant("MaxPool", *samples("MaxPool", 9, 1.0))
    assert (rule.jvp(at, {0: np.ones_like(at.inputs[0])}) == 1).all()  # (1 - lambda) + lambda


def test_softmax_far_away() -> None:
    """Two corners of the simplex: logarithmic means are (1 - 0) / 1000, and 0 for the third class."""
    x, x_ = np.array([[1000.0, 0.0, 0.0]]), np.array([[0.0, 1000.0, 0.0]])
    at, _, rule = secant("Softmax", x, x_)
    assert np.abs(rule.jvp(at, {0: x_ - x}) - [[-1, 1, 0]]).max() <= 1e-14
    assert np.abs(rule.jvp(at, {0: np.array([[1.0, 0, 0]])}) - [[5e-4, -5e-4, 0]]).max() <= 1e-17


def test_every_op_has_a_secant() -> None:
    assert {*SECANTS, *LINEAR} == set(OPS)
    assert not {*SECANTS} & {*LINEAR}


# ---- nothing, and what is refused -----------------------------------------------------------------------------


def test_no_error_has_no_shares() -> None:
    graph = rq.load_network("mlp")
    x = rq.load_data("fashion-mnist").test.x[:2]
    found = attribute_error(graph, QuantPlan(), x)
    assert (found.contributions, found.shares, found.mse, found.residual) == ({}, {}, 0.0, 0.0)
    assert found.gram.shape == (0, 0)
    assert found.interaction == 0
    wide = ActivationQuantizer(rq.QuantSpec(8), np.array(1.0), np.array(0))
    nodes = (Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"}),)
    exact = Graph("line", InputSpec("x", (1,)), "y", nodes, {"w": f32([[2]])})
    found = attribute_error(exact, QuantPlan(activations={"x": wide}), [[3.0]])
    assert found.mse == found.residual == 0
    assert np.isnan(found.shares[Source("x", "activation")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"order": "sideways"}, "order='sideways'"),
        ({"at": "nowhere"}, "nowhere"),
        ({"x": np.zeros((0, 1, 28, 28))}, "at least 1"),
        ({"x": np.zeros((2, 28, 28))}, "shape"),
        ({"x": np.full((1, 1, 28, 28), np.inf)}, "infinity"),
        ({"plan": None}, "plan=None"),
        ({"graph": "mlp"}, "graph='mlp', but should be of type Graph"),
        ({"plan": QuantPlan(biases={"nobody": f32([0])})}, "nobody"),
    ],
    ids=["order", "tensor", "no images", "shape", "infinity", "no plan", "no graph", "another's plan"],
)
def test_bad_arguments_are_refused(change: dict[str, Any], words: str) -> None:
    graph = rq.load_network("mlp")
    good: dict[str, Any] = {"graph": graph, "plan": QuantPlan(), "x": np.zeros((1, 1, 28, 28)), "order": "perturbed"}
    with pytest.raises(ArgumentError, match=words):
        attribute_error(**{**good, **change})
    with pytest.raises(NotANumberError, match="NaN"):
        attribute_error(graph, QuantPlan(), np.full((1, 1, 28, 28), np.nan))


def test_an_op_without_a_secant_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, plan, x = zoo("cnn", 4)
    monkeypatch.delitem(SECANTS, "MaxPool")
    with pytest.raises(ArgumentError, match="pool1 of op MaxPool"):
        attribute_error(graph, plan, x[:1])


def test_weights_that_are_shared_have_a_contribution_each() -> None:
    gemm = {"in_features": 2, "out_features": 2}
    nodes = tuple(Node(n, "Gemm", (t,), gemm, {"weight": "S"}) for n, t in (("a", "x"), ("b", "a")))
    graph = Graph("shared", InputSpec("x", (2,)), "b", nodes, {"S": f32([[1, 0.3], [0.2, 1]])})
    W = rq.encode_terms(graph.arrays["S"], spec=rq.QuantSpec(2), terms=1)
    found = attribute_error(graph, QuantPlan({"b": W}), [[1.0, 2.0]])
    assert list(found.contributions) == [Source("b", "weight")]
    expected = (W.decode().astype(float) - graph.arrays["S"]) @ (graph.arrays["S"].astype(float) @ [1.0, 2.0])
    assert np.abs(found.error - expected).max() <= 1e-14


# ---- the checks notice ----------------------------------------------------------------------------------------


def first_place_only(at: Point, moved: Point, derivative: Rule) -> Rule:
    """A wrong secant of MaxPool: the place of the old maximum alone."""
    return Rule(lambda _, u, wanted: derivative.vjp(at, u, wanted), lambda _, v: derivative.jvp(at, v))


def derivative_only(at: Point, moved: Point, derivative: Rule) -> Rule:
    """A wrong secant: the derivative at the float point."""
    return Rule(lambda _, u, wanted: derivative.vjp(at, u, wanted), lambda _, v: derivative.jvp(at, v))


@pytest.mark.parametrize(
    ("op", "wrong"),
    [
        ("MaxPool", first_place_only),
        ("Relu", derivative_only),
        ("Relu6", derivative_only),
        ("Softmax", derivative_only),
    ],
)
def test_a_wrong_secant_is_noticed(op: str, wrong: secants.Secant, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    graph, x = every_op(rng, "soft"), rng.normal(size=(8, 2, 6, 6))
    plan = some_plan(graph, x, 3)
    assert attribute_error(graph, plan, x).residual <= 1e-13
    monkeypatch.setitem(SECANTS, op, wrong)
    assert attribute_error(graph, plan, x).residual > 1e-4


def test_a_missing_contribution_is_noticed() -> None:
    graph, plan, x = zoo("cnn", 8)
    found = attribute_error(graph, plan, x[:2])
    for source in found.contributions:
        rest = {other: u for other, u in found.contributions.items() if other != source}
        assert replace(found, contributions=rest).residual > 1e-4
    mixed = dict(found.contributions)
    mixed[Source("conv1", "weight")] = 1.001 * mixed[Source("conv1", "weight")]
    assert replace(found, contributions=mixed).residual > 1e-5


def test_contributions_to_the_wrong_source_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would still add up: only the other ways to each of them tell."""
    right = accumulate.injections

    def swapped(pair: Pair, tape: Tape, moved: Tape) -> Any:
        found = right(pair, tape, moved)
        first, second = (Source("gemm1", "weight"), 0), (Source("gemm2", "weight"), 0)
        return {**found, first: found[second], second: found[first]}

    monkeypatch.setattr(accumulate, "injections", swapped)
    graph, plan, x = zoo("mlp", 3)
    assert attribute_error(graph, plan, x[:3]).residual <= 1e-12
    with pytest.raises(AssertionError):
        test_contributions_are_products_of_matrices("perturbed")


def test_a_wrong_transpose_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def lame(at: Point, moved: Point, derivative: Rule) -> Rule:
        good = SECANT_OF_RELU(at, moved, derivative)
        return Rule(lambda _, u, wanted: {0: 1.0001 * good.vjp(at, u, [0])[0]}, good.jvp)

    SECANT_OF_RELU = SECANTS["Relu"]
    monkeypatch.setitem(SECANTS, "Relu", lame)
    with pytest.raises(AssertionError):
        test_both_routes_give_the_same_contributions("gemm", "perturbed")


def test_the_route_is_the_cheaper_one() -> None:
    graph, plan, x = zoo("mlp", 4)
    pair, feeds = pair_of(graph, plan), images_of(graph, x[:1])
    tape, moved = pair.run(feeds, "gemm3", ()), pair.run(feeds, "gemm3", pair.sources)
    injected = injections(pair, tape, moved)
    assert accumulate.cheaper_route(pair, tape, injected) == "forward"  # six sources, ten outputs
    many = {(Source("gemm1", "weight"), t): injected[Source("gemm1", "weight"), 0] for t in range(50)}
    assert accumulate.cheaper_route(pair, tape, many) == "backward"


def test_residual_and_gram_by_hand() -> None:
    u = {
        Source("a", "weight"): np.array([[1.0, 0.0], [2.0, 0.0]]),
        Source("b", "weight"): np.array([[0.0, 1.0], [-1.0, 0.0]]),
    }
    found = Attribution(np.array([[1.0, 1.0], [1.0, 0.0]]), u, {}, {}, {})
    assert found.gram.tolist() == [[2.5, -1.0], [-1.0, 1.0]]
    assert (found.mse, found.interaction, found.residual) == (1.5, -2.0, 0.0)
    assert list(found.shares.values()) == [1.0, 0.0]


def test_pullback_and_pushforward_run_on_secants() -> None:
    """The interpreters of derivatives carry secants: <u, S v> = <S^T u, v> on the whole network."""
    graph, plan, x = zoo("resnet", 3)
    pair, feeds = pair_of(graph, plan), images_of(graph, x[:2])
    at = pair.graph.output
    tape_of_secants = secant_tape(pair.graph, pair.run(feeds, at, ()), pair.run(feeds, at, pair.sources), "perturbed")
    rng = np.random.default_rng(11)
    first = f"{graph.input.name}:read"
    v = {first: rng.normal(size=tape_of_secants.values[first].shape)}
    u = rng.normal(size=tape_of_secants.output.shape)
    left = np.sum(u * pushforward(tape_of_secants, v)[at])
    right = np.sum(pullback(tape_of_secants, u, [first])[first] * v[first])
    assert abs(left - right) <= 1e-11 * abs(left)
