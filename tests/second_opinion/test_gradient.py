"""PyTorch's gradients of the embedded networks, in float64, against ours: equal up to what rounding can do.

Each graph is written once more in torch.nn.functional and left to autograd.  Gradients are compared along random
directions: one of all arrays together, and one of each array alone.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own name for it)

import refquant as rq
from refquant.net.fold import fold_batch_norm
from refquant.net.gradient import Tape, pullback, run, running_moments, trained
from refquant.net.graph import Graph, Node
from refquant.net.loss import cross_entropy
from refquant.net.op import images_last
from refquant.net.ops_quantize import FAKE_QUANTIZE
from refquant.net.wiring import Through

_place = importlib.util.spec_from_file_location("bounds", Path(__file__).parents[1] / "test_gradient_bounds.py")
assert _place is not None
assert _place.loader is not None
bounds = importlib.util.module_from_spec(_place)
_place.loader.exec_module(bounds)

LABELS = [0, 3, 7, 9]
MOMENTUM = 0.1

Params = dict[str, Any]


def apply(node: Node, x: list[Any], p: Mapping[str, Any], training: bool) -> Any:
    """A node by PyTorch; a batch norm in training moves its mean and var in place."""
    a = node.attrs
    if node.op in ("Conv", "MaxPool"):
        (top, left, bottom, right), fill = a["padding"], 0.0 if node.op == "Conv" else -np.inf
        image, window = F.pad(x[0], (left, right, top, bottom), value=fill), (a["stride"], 0, a["dilation"])
        if node.op == "Conv":
            return F.conv2d(image, p["weight"], p.get("bias"), *window, a["groups"])
        return F.max_pool2d(image, a["kernel"], *window)
    if node.op == "BatchNorm":
        return F.batch_norm(x[0], p["mean"], p["var"], p["gamma"], p["beta"], training, MOMENTUM, a["eps"])
    return {
        "Gemm": lambda: F.linear(x[0], p["weight"], p.get("bias")),
        "Relu": lambda: F.relu(x[0]),
        "Add": lambda: x[0] + x[1],
        "GlobalAvgPool": lambda: F.adaptive_avg_pool2d(x[0], 1),
        "Flatten": lambda: x[0].flatten(1),
    }[node.op]()


def fake(x: Any, s: Any, z: Any, spec: rq.QuantSpec) -> Any:
    """A quantizer of torch operations, its rounding straight through: autograd makes LSQ's rule of it."""
    wide = [-1] + [1] * (x.ndim - 1) if spec.granularity == rq.PerChannel(0) else []
    s, z = s.reshape(wide), z.reshape(wide)
    u = x / s + z
    k = torch.round(u).detach() + (u - u.detach())  # an integer; u + (round(u) - u).detach() need not be one
    return (torch.clamp(k, spec.qmin, spec.qmax) - z) * s


def torch_loss(graph: Graph, x: Any, params: Params, training: bool, through: Mapping[str, Through]) -> Any:
    """Cross entropy by PyTorch; tensors are read through quantizers by Conv and Gemm, arrays by all."""

    def read(name: str, value: Any, linear: bool) -> Any:
        if name not in through or not linear:
            return value
        way = through[name]
        return fake(value, params[way.params["scale"]], params[way.params["zero_point"]], way.attrs["spec"])

    values = {graph.input.name: torch.tensor(x)}
    for node in graph.nodes:
        linear = node.op in ("Conv", "Gemm")
        inputs = [read(name, values[name], linear) for name in node.inputs]
        arrays = {role: read(name, params[name], linear) for role, name in node.params.items()}
        values[node.name] = apply(node, inputs, arrays, training)
    return F.cross_entropy(values[graph.output], torch.tensor(LABELS))


def torch_gradients(
    graph: Graph, x: Any, values: Params, names: tuple[str, ...], training: bool, through: Mapping[str, Through]
) -> tuple[Params, Params]:
    """The gradients by name, and all params afterwards."""
    params = {name: torch.tensor(np.asarray(value, np.float64)) for name, value in values.items()}
    for name in names:
        params[name].requires_grad_()
    torch_loss(graph, x, params, training, through).backward()
    return {name: params[name].grad.numpy() for name in names}, params


def check_gradients(
    graph: Graph,
    names: tuple[str, ...],
    training: bool = False,
    extra: Params | None = None,
    through: Mapping[str, Through] | None = None,
    fault: float = 1.0,
) -> None:
    """Nothing is returned; asserts that gradients by these values agree along directions, twice the bound apart."""
    x, rng, extra, through = bounds.zoo_images(graph, len(LABELS)), np.random.default_rng(0), extra or {}, through or {}

    def again(moved: Params) -> Tape:
        return run(graph, {graph.input.name: x}, {**extra, **moved}, through=through, training=training)

    tape = again({})
    theirs, _ = torch_gradients(graph, x, {**graph.arrays, **extra}, names, training, through)
    ours = pullback(tape, cross_entropy(tape.output, LABELS).cotangent, names)
    for some in (names, *((name,) for name in names)):
        v = bounds.directions(tape, some, rng)
        slope = bounds.slope(tape, LABELS, v, again)
        products = np.concatenate([(theirs[name] * t).ravel() for name, t in v.items()])
        sums = 2 * bounds.gamma(products.size) * np.abs(products).sum()
        distance = abs(fault * slope.value - products.sum())
        assert distance <= 2 * slope.error + sums, f"{some}: {distance:.3g} > {2 * slope.error + sums:.3g}"
        # so the comparison says something; a shift that a batch norm takes away again has gradient 0
        size = max(np.linalg.norm(ours[name]) for name in names) * max(np.linalg.norm(t) for t in v.values())
        assert 2 * slope.error + sums < 1e-6 * size


@pytest.mark.guarantee(
    "PyTorch's gradients of the embedded networks in float64, to rounding; batch norms in training too",
    kind="second opinion",
)
@pytest.mark.parametrize("training", [False, True], ids=["as it runs", "in training"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_gradients_of_networks(name: str, training: bool) -> None:
    graph = rq.load_network(name)
    check_gradients(graph, trained(graph), training)


def test_a_planted_factor_is_caught() -> None:
    graph = rq.load_network("resnet")
    with pytest.raises(AssertionError):
        check_gradients(graph, trained(graph), training=True, fault=1 + 1e-4)


def test_running_moments() -> None:
    """Along random signs: a mean of x moves by 1/L, a variance by 2 d / (L - 1); their own sums err as well."""
    graph, rng = rq.load_network("resnet"), np.random.default_rng(0)
    x = bounds.zoo_images(graph, len(LABELS))
    tape = run(graph, {graph.input.name: x}, training=True)
    ours = running_moments(tape, MOMENTUM)
    _, after = torch_gradients(graph, x, dict(graph.arrays), trained(graph), True, {})
    for node in [node for node in graph.nodes if node.op == "BatchNorm"]:
        seen = tape.values[node.inputs[0]]
        L, axes = seen.size // seen.shape[1], (0, 2, 3)
        d, D = seen - seen.mean(axis=axes, keepdims=True), np.abs(seen).mean(axis=axes, keepdims=True) + np.abs(seen)
        rows = {
            "mean": (np.full_like(seen, 1 / L), np.abs(seen).mean(axis=axes)),
            "var": (2 * d / (L - 1), (2 * np.abs(d) * D + d * d).sum(axis=axes) / (L - 1)),
        }
        for role, (moves, magnitude) in rows.items():
            name = node.params[role]
            signs, theirs = rng.choice([-1.0, 1.0], seen.shape[1]), after[name].detach().numpy()
            w = pullback(tape, {node.inputs[0]: moves * signs[:, None, None]}, list(tape.values))
            own = bounds.gamma(L + 16) * (magnitude + np.abs(theirs) + np.abs(graph.arrays[name])).sum()
            tolerance = 2 * float(MOMENTUM * bounds.value_errors(tape, w) + own)
            assert abs(float(signs @ (ours[name] - theirs))) <= tolerance
            assert tolerance < 1e-6 * np.abs(theirs - graph.arrays[name]).sum()


# ---- quantizers -----------------------------------------------------------------------------------------------


def quantized(graph: Graph) -> tuple[dict[str, Through], Params]:
    """From the second layer on, tensors that a Conv or Gemm reads in 3 bits and weights in 2 a channel, some beyond.

    The first layer stays real: its sums of pixels times a few levels would tie in a max pool behind it, where a last
    bit would decide which tap moves.  Zero points are added before rounding, so that they may be any reals, as they
    are along a direction.
    """
    trace = run(graph, {graph.input.name: bounds.zoo_images(graph, len(LABELS))}).values
    tensor = rq.QuantSpec(3, signed=False, zero_point_order="before")
    weight = rq.QuantSpec(2, zero_point_order="before", granularity=rq.PerChannel(0))
    through: dict[str, Through] = {}
    params: Params = {}
    for node in graph.linear_nodes[1:]:
        for name, spec in ((node.inputs[0], tensor), (node.params["weight"], weight)):
            rows = spec.granularity.rows(trace[name])
            low, high = 0.7 * rows.min(axis=1), 0.7 * rows.max(axis=1)
            s = (high - low) / (spec.qmax - spec.qmin)
            shape = spec.granularity.parameter_shape(trace[name].shape)
            params |= {f"{name}/s": s.reshape(shape), f"{name}/z": (spec.qmin - low / s).reshape(shape)}
            names = {"scale": f"{name}/s", "zero_point": f"{name}/z"}
            through[name] = Through(FAKE_QUANTIZE, {"spec": spec}, names)
    return through, params


@pytest.mark.guarantee(
    "PyTorch's gradients through quantizers of tensors and weights: straight through, LSQ's by scales, by zero points",
    kind="second opinion",
    clauses="Q4 Q5 Q6 D2",
)
@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_gradients_through_quantizers(name: str) -> None:
    graph = fold_batch_norm(rq.load_network(name))
    through, params = quantized(graph)
    check_gradients(graph, (*trained(graph), *params), extra=params, through=through)


@pytest.mark.guarantee(
    "PyTorch's learnable fake quantizer, values and derivatives", kind="second opinion", clauses="Q4 Q5 Q6 D2"
)
@pytest.mark.parametrize("zero_point", [0, 3, 7])
def test_learnable_fake_quantize(zero_point: int) -> None:
    """In float32, away from ties, where its x times the reciprocal of s rounds otherwise; sums of n terms."""
    rng, s = np.random.default_rng(0), np.float32(0.3)
    k = rng.integers(-12, 13, (8, 4, 5, 5)) + rng.uniform(-0.45, 0.45, (8, 4, 5, 5))
    x, u = (k * s).astype(np.float32), rng.normal(size=k.shape).astype(np.float32)
    spec = rq.QuantSpec(3, signed=False)
    tensors = [torch.tensor(v, requires_grad=True) for v in (x, np.array([s]), np.array([zero_point], np.float32))]
    y = torch._fake_quantize_learnable_per_tensor_affine(*tensors, spec.qmin, spec.qmax, 1.0)
    y.backward(torch.tensor(u))
    params = {"scale": np.array(s), "zero_point": np.array(zero_point, np.float32)}
    at = FAKE_QUANTIZE.at({"spec": spec}, params, [images_last(x)])
    ours = FAKE_QUANTIZE.derivative.vjp(at, u, [0, "scale", "zero_point"])
    assert np.array_equal(at.output, y.detach().numpy())
    assert np.array_equal(ours[0], tensors[0].grad.numpy())
    sizes = np.abs(u) * (np.abs(at.output) + np.abs(x)) / s  # each term is a difference of these, or one of them
    tolerance = 2 * (x.size + 8) * 2.0**-24 * float(sizes.sum())
    for slot, tensor in zip(("scale", "zero_point"), tensors[1:], strict=True):
        assert abs(float(ours[slot]) - float(tensor.grad)) <= tolerance
        assert abs(float(ours[slot])) > 0
