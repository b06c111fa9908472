"""TFLite's reference kernels, run by the LiteRT runtime: single ops next to ties, and an int8 network."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

import refquant as rq
from refquant.net.edges import Edge
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.integer import RULES, Setting
from refquant.net.plan import ActivationQuantizer, QuantPlan
from refquant.quant.multiterm import MultiTerm

_place = importlib.util.spec_from_file_location("litert_model", Path(__file__).with_name("litert_model.py"))
assert _place is not None
assert _place.loader is not None
litert = importlib.util.module_from_spec(_place)
_place.loader.exec_module(litert)
Step, Tensor = litert.Step, litert.Tensor

VALID = {"padding": schema.Padding.VALID, "strideH": 1, "strideW": 1}
SCALES = [
    (0.05296124517917633, 0.024093778803944588, 0.11484327912330627, -126),  # tensorflow#102943
    (0.003, 0.002, 0.15, 0),
    (0.25, 0.125, 0.5, 7),
    (0.9, 0.8, 0.013, -5),
]


@pytest.mark.guarantee("TFLite QUANTIZE next to ties", kind="second opinion", clauses="Q2 Q4")
def test_quantize(near_ties: Callable[..., Any], agree: Callable[..., None]) -> None:
    for scale, z in ((0.1234567, 3), (0.0371, -128), (1 / 3, 1)):
        x = near_ties(np.float32(scale))
        tensors = {"x": Tensor((1, x.size), "float32"), "y": Tensor((1, x.size), "int8", np.float32(scale), z)}
        model = litert.build(tensors, [Step("QUANTIZE", ("x",), "y")], ["x"], ["y"])
        ours = rq.quantize(x, np.float32(scale), z, spec=rq.profile("tflite-double@1"))
        agree(f"tflite/QUANTIZE {scale}", ours, litert.run(model, [x[None]])[0][0])


def accumulators_near_ties(factor: float) -> Any:
    """Every int32 next to (k + 1/2) / factor, and the public report's 585."""
    ties = (np.arange(-300, 300) + 0.5) / factor
    near = np.rint(ties[:, None]).astype(np.int64) + np.arange(-2, 3)
    return np.unique(np.append(near, 585)).astype(np.int32)


def layer(op: str, acc: Any, sx: Any, sw: Any, sy: Any, zy: int) -> Any:
    """The codes that a layer gives to accumulators: its bias, while its input stands at the zero point."""
    flat = op == "FULLY_CONNECTED"
    O = len(acc)
    x_shape, w_shape, y_shape = ((1, 1), (O, 1), (1, O)) if flat else ((1, 1, 1, 1), (O, 1, 1, 1), (1, 1, 1, O))
    tensors = {
        "x": Tensor(x_shape, "int8", sx, -5),
        "w": Tensor(w_shape, "int8", sw if flat else np.full(O, sw), 0, np.ones(w_shape)),
        "b": Tensor((O,), "int32", sx * sw, 0, acc),
        "y": Tensor(y_shape, "int8", sy, zy),
    }
    model = litert.build(tensors, [Step(op, ("x", "w", "b"), "y", {} if flat else VALID)], ["x"], ["y"])
    return litert.run(model, [np.full(x_shape, -5, np.int8)])[0].ravel()


@pytest.mark.guarantee(
    "TFLite CONV_2D and FULLY_CONNECTED on accumulators next to ties", kind="second opinion", clauses="N3"
)
@pytest.mark.parametrize(("op", "profile"), [("CONV_2D", "tflite-double@1"), ("FULLY_CONNECTED", "tflite-float@1")])
@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_requantization(op: str, profile: str, scales: Any, agree: Callable[..., None]) -> None:
    from refquant.quant.profiles import PROFILES

    sx, sw, sy = map(np.float32, scales[:3])
    factor = float(sx) * float(sw) / float(sy)
    acc = accumulators_near_ties(factor)
    ours = rq.requantize(acc, factor, scales[3], spec=rq.profile(profile), how=PROFILES[profile].requantize)
    agree(f"tflite/{op} {scales}", ours, layer(op, acc, sx, sw, sy, scales[3]))


@pytest.mark.guarantee("TFLite ADD on every pair of int8 codes", kind="second opinion", clauses="N4")
def test_add_of_every_pair_of_codes(agree: Callable[..., None]) -> None:
    codes = np.arange(-128, 128)
    a, b = (v.ravel() for v in np.meshgrid(codes, codes))
    grid = rq.QuantSpec(8)
    for s, t, u in ((0.031, 0.0172, 0.04), (0.5, 0.5, 0.25), (0.9, 0.001, 0.7)):
        s, t, u = (float(np.float32(v)) for v in (s, t, u))
        tensors = {n: Tensor((1, a.size), "int8", v, z) for n, v, z in (("a", s, 3), ("b", t, -7), ("y", u, 5))}
        model = litert.build(tensors, [Step("ADD", ("a", "b"), "y")], ["a", "b"], ["y"])
        edges = {"a": Edge(grid, s, 3.0), "b": Edge(grid, t, -7.0), "y": Edge(grid, u, 5.0)}
        spec = rq.IntegerSpec(requantize="double-round", add="fixed-point")
        add = RULES["Add"](Setting(rq.load_network("mlp"), rq.QuantPlan(), edges, spec), Node("y", "Add", ("a", "b")))
        ours = np.clip(add([np.asarray(a - 3.0), np.asarray(b + 7.0)]) + 5, -128, 127)
        theirs = litert.run(model, [a[None].astype(np.int8), b[None].astype(np.int8)])[0][0]
        agree(f"tflite/ADD {s}", ours, theirs)


def network(rng: np.random.Generator) -> tuple[Graph, QuantPlan]:
    """conv + relu, conv, add, average pool, conv to 5 outputs: the ops that TFLite requantizes in fixed point."""

    def conv(name: str, source: str, I: int, O: int, k: int) -> Node:
        pad = [k // 2, k // 2]
        attrs = {"in_channels": I, "out_channels": O, "kernel": [k, k], "stride": [1, 1], "padding": pad}
        return Node(name, "Conv", (source,), attrs, {"weight": f"{name}.w", "bias": f"{name}.b"})

    pool = {"kernel": [2, 2], "stride": [2, 2]}
    nodes = (
        conv("c1", "x", 3, 4, 3),
        Node("r1", "Relu", ("c1",)),
        conv("c2", "r1", 4, 4, 3),
        Node("a", "Add", ("r1", "c2")),
        Node("p", "AveragePool", ("a",), pool),
        conv("c3", "p", 4, 5, 1),
    )
    arrays = {}
    for name, I, O, k in (("c1", 3, 4, 3), ("c2", 4, 4, 3), ("c3", 4, 5, 1)):
        arrays[f"{name}.w"] = rng.normal(0, 1 / np.sqrt(I * k * k), (O, I, k, k)).astype(np.float32)
        arrays[f"{name}.b"] = rng.normal(0, 0.1, O).astype(np.float32)
    graph = Graph("tflite", InputSpec("x", (3, 8, 8)), "c3", nodes, arrays)
    spec = rq.IntegerSpec(requantize="double-round", add="fixed-point", pool="half_away", bias_rounding="half_away")
    weights = {}
    for node in graph.linear_nodes:
        W = graph.param(node, "weight")
        s = np.abs(W).reshape(len(W), -1).max(axis=1) / np.float32(127)
        grid = rq.QuantSpec(8, narrow=True, granularity=rq.PerChannel(0))
        weights[node.name] = MultiTerm(rq.quantize(W, s, spec=grid)[None], s[None], (grid,), np.ones(len(W), np.int64))
    grid = rq.profile("tflite-double@1")
    scales = {
        "x": (0.03, -3),
        "r1": (0.02, -128),
        "c2": (0.017, 4),
        "a": (0.041, -20),
        "p": (0.041, -20),
        "c3": (0.02, 9),
    }
    activations = {t: ActivationQuantizer(grid, np.array(np.float32(s)), np.array(z)) for t, (s, z) in scales.items()}
    return graph, QuantPlan(weights, activations, spec)


@pytest.mark.guarantee("An int8 TFLite network, every tensor", kind="second opinion", clauses="N1 N2 N3 N4 N5")
def test_an_int8_network(agree: Callable[..., None]) -> None:
    rng = np.random.default_rng(11)
    graph, plan = network(rng)
    x = rng.normal(0, 1.5, (40, 3, 8, 8)).astype(np.float32)
    _, ours = rq.forward(graph, x, plan, mode="integer", trace=True)
    shapes = {"x": (40, 8, 8, 3), "r1": (40, 8, 8, 4), "c2": (40, 8, 8, 4), "a": (40, 8, 8, 4), "p": (40, 4, 4, 4)}
    shapes["c3"] = (40, 4, 4, 5)
    tensors = {"raw": Tensor(shapes["x"], "float32")}
    for t, q in plan.activations.items():
        tensors[t] = Tensor(shapes[t], "int8", q.scale, int(q.zero_point))
    for node in graph.linear_nodes:
        w, read = plan.weights[node.name], plan.activations[node.inputs[0]]
        codes = w.codes[0].transpose(0, 2, 3, 1)
        assert plan.integer is not None
        bias = rq.quantize_bias(graph.param(node, "bias"), read.scale, w.scales[0], spec=plan.integer)
        tensors[f"{node.name}.w"] = Tensor(codes.shape, "int8", w.scales[0], 0, codes)
        tensors[f"{node.name}.b"] = Tensor(bias.shape, "int32", read.scale * w.scales[0], 0, bias)
    same = {"padding": schema.Padding.SAME, "strideH": 1, "strideW": 1}
    relu = {"fusedActivationFunction": schema.ActivationFunctionType.RELU}
    half = {"padding": schema.Padding.VALID, "strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2}
    steps = [
        Step("QUANTIZE", ("raw",), "x"),
        Step("CONV_2D", ("x", "c1.w", "c1.b"), "r1", {**same, **relu}),
        Step("CONV_2D", ("r1", "c2.w", "c2.b"), "c2", same),
        Step("ADD", ("r1", "c2"), "a"),
        Step("AVERAGE_POOL_2D", ("a",), "p", half),
        Step("CONV_2D", ("p", "c3.w", "c3.b"), "c3", same),
    ]
    names = ["x", "r1", "c2", "a", "p", "c3"]
    theirs = litert.run(litert.build(tensors, steps, ["raw"], names), [x.transpose(0, 2, 3, 1)])
    for name, value in zip(names, theirs, strict=True):
        agree(f"tflite/network {name}", ours[name].transpose(0, 2, 3, 1), value)
    exact = replace(plan, integer=rq.IntegerSpec())  # a planted fault: another rule is seen
    wrong = rq.forward(graph, x, exact, mode="integer").transpose(0, 2, 3, 1)
    assert np.count_nonzero(wrong != theirs[-1])
