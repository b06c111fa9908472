"""Bounds on errors of quantized networks: never violated, by any input or codes, and faults are noticed."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import refquant as rq
from refquant import QuantPlan
from refquant.net.fold import fold_batch_norm
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.plan import ActivationQuantizer
from refquant.quant.quantizer import fake_quantize
from refquant.theory.affine import refine_up_to
from refquant.theory.box import Box, point
from refquant.theory.difference import Enclosure, enclose, float_network, quantized_network
from refquant.theory.quantizer_error import ROUNDING, on_grid, quantizer_error, quantizer_image

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
    seen, run = traced(graph, x[:4]), traced(graph, x[:4], plan)
    for specified in (False, True):
        assert not outside(enclosed(graph, plan, x[:4], 128, specified), seen, run)


@pytest.mark.guarantee(
    "No bound on random networks of all ops is violated, at 1 to 3 terms of 2 to 8 bits", kind="sampled"
)
@settings(max_examples=40)
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


# ---- quantizers -----------------------------------------------------------------------------------------------

QUOTIENTS = ("exact", "float64", "float32", "float16", "bfloat16", "reciprocal-float32")


@pytest.mark.guarantee(
    "The error of a quantizer and its image are enclosed for all modes and quotients", kind="sampled"
)
@settings(max_examples=300)
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
