"""A second interpreter of integer networks: int64 loops over taps, and Fractions where a factor is applied.

Letters: d = q - z the difference of a code and its zero point, f a factor s_x / s_y, k steps of the output.

It shares with `net.integer` what a plan puts on the edges, and no arithmetic: products are sums over kernel positions
in int64, every rounding is one of a rational, and biases and inputs are quantized by the definition.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arith.rounding import round_exact
from ..net.edges import Edge, edges_of
from ..net.fold import fold_batch_norm
from ..net.graph import Graph, Node
from ..net.plan import QuantPlan
from ..net.program import transform
from ..quant.integer_spec import IntegerSpec
from ..quant.quantizer import quantize_exact
from ..quant.spec import QuantSpec
from .golden_requantize import HOW, added_exact

__all__ = ["golden_network"]

Codes = NDArray[np.int64]


def _each(d: Codes, rule: Callable[[int], int]) -> Codes:
    """rule of every element; each value is computed once."""
    values, where = np.unique(d, return_inverse=True)
    return np.array([rule(v) for v in values.tolist()], np.int64)[where.ravel()].reshape(d.shape)


def _factor(scale: float, made: Edge, spec: IntegerSpec) -> Fraction:
    """scale / s_y in the named arithmetic."""
    if spec.factor == "float64":
        return Fraction(scale / made.scale)
    return Fraction(float(np.float32(scale) / np.float32(made.scale)))


def _scaled(d: Codes, scale: float, made: Edge, spec: IntegerSpec) -> Codes:
    f = _factor(scale, made, spec)
    return d if f == 1 else _each(d, lambda v: HOW[spec.requantize](v, f, made.spec.rounding))


def _padded(attrs: Mapping[str, Any], d: Codes, fill: int) -> Codes:
    top, left, bottom, right = attrs["padding"]
    return np.pad(d, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)


def _views(attrs: Mapping[str, Any], d: Codes, fill: int) -> list[Codes]:
    """What each kernel position sees, shape (N, C, h, w), row by row."""
    X = _padded(attrs, d, fill)
    (kh, kw), (sh, sw), (dh, dw) = attrs["kernel"], attrs["stride"], attrs["dilation"]
    h, w = (X.shape[2] - dh * (kh - 1) - 1) // sh + 1, (X.shape[3] - dw * (kw - 1) - 1) // sw + 1
    return [
        X[:, :, i * dh : i * dh + sh * (h - 1) + 1 : sh, j * dw : j * dw + sw * (w - 1) + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]


# ---- layers ---------------------------------------------------------------------------------------------------


def _conv(attrs: Mapping[str, Any], W: Codes, d: Codes) -> Codes:
    """Sums over kernel positions and input channels, in int64; padding is a difference of 0."""
    views, G = _views(attrs, d, 0), attrs["groups"]
    each_in, each_out = W.shape[1], len(W) // G
    flat = W.reshape(len(W), each_in, -1)
    acc = np.zeros((len(d), len(W), *views[0].shape[2:]), np.int64)
    for o in range(len(W)):
        first = o // each_out * each_in
        for t, view in enumerate(views):
            for c in range(each_in):
                if flat[o, c, t]:
                    acc[:, o] += flat[o, c, t] * view[:, first + c]
    return acc


def _linear(graph: Graph, node: Node, plan: QuantPlan, edges: Mapping[str, Edge], d: Codes) -> Codes:
    spec, read, made = plan.integer, edges[node.inputs[0]], edges[node.name]
    assert spec is not None  # golden_network has looked
    terms = plan.weights[node.name]
    W = terms.codes[0].astype(np.int64)
    scales = np.broadcast_to(terms.scales[0].astype(np.float64), (len(W),)).tolist()
    acc = _conv(node.attrs, W, d) if node.op == "Conv" else (d[:, None, :] * W[None]).sum(axis=2)
    grid = QuantSpec(spec.bias_bits, rounding=spec.bias_rounding, overflow=spec.bias_overflow)
    half = 1 << (spec.accumulator_bits - 1)
    k = np.empty_like(acc)
    for o, s in enumerate(scales):
        total = acc[:, o]
        if node.name in plan.biases or "bias" in node.params:
            biases = plan.biases[node.name] if node.name in plan.biases else graph.param(node, "bias")
            total = total + quantize_exact(float(biases[o]), read.scale * s, 0, grid)
        total = (total + half) % (2 * half) - half
        k[:, o] = _scaled(total, read.scale * s, made, spec)
    return k


# ---- the others -----------------------------------------------------------------------------------------------


def _max_pool(attrs: Mapping[str, Any], d: Codes) -> Codes:
    return np.asarray(np.max(_views(attrs, d, -(2**40)), axis=0))


def _average(node: Node, read: Edge, made: Edge, spec: IntegerSpec, d: Codes) -> Codes:
    if node.op == "GlobalAvgPool":
        total, count = d.sum(axis=(2, 3), keepdims=True), np.full((1, 1, 1, 1), math.prod(d.shape[2:]))
    else:
        total = np.sum(_views(node.attrs, d, 0), axis=0)
        ones = np.ones((1, 1, *d.shape[2:]), np.int64)
        count = np.sum(_views(node.attrs, ones, int(node.attrs["count_include_pad"])), axis=0)
    k, z, f = np.empty_like(total), int(read.zero_point), Fraction(read.scale / made.scale)

    def exactly(n: int) -> Callable[[int], int]:
        return lambda v: round_exact(v * f / n, made.spec.rounding)

    def raw(n: int) -> Callable[[int], int]:
        return lambda v: round_exact(Fraction(v + z * n, n), spec.pool) - z

    for n in np.unique(count).tolist():
        here = np.broadcast_to(count == n, total.shape)
        if spec.pool == "exact":
            k[here] = _each(total[here], exactly(n))
        else:
            k[here] = _scaled(_each(total[here], raw(n)), read.scale, made, spec)
    return np.asarray(k)


def _add(a: Edge, b: Edge, made: Edge, spec: IntegerSpec, p: Codes, q: Codes) -> Codes:
    rule = added_exact([Fraction(e.scale) for e in (a, b, made)], spec, made.spec.rounding)
    wide = 2**20
    return _each((p + 2**17) * wide + (q + 2**17), lambda v: rule(v // wide - 2**17, v % wide - 2**17))


def _step(graph: Graph, node: Node, plan: QuantPlan, edges: Mapping[str, Edge], ds: Sequence[Codes]) -> Codes:
    """k of a node, in steps of its output."""
    spec, made = plan.integer, edges[node.name]
    assert spec is not None
    read = [edges[t] for t in node.inputs]
    if node.op in ("Conv", "Gemm"):
        return _linear(graph, node, plan, edges, ds[0])
    if node.op == "Add":
        return _add(read[0], read[1], made, spec, ds[0], ds[1])
    if node.op in ("AveragePool", "GlobalAvgPool"):
        return _average(node, read[0], made, spec, ds[0])
    if node.op == "Concat":
        parts = [_scaled(d, e.scale, made, spec) for d, e in zip(ds, read, strict=True)]
        return np.concatenate(parts, axis=node.attrs["axis"])
    if node.op == "MaxPool":
        return _scaled(_max_pool(node.attrs, ds[0]), read[0].scale, made, spec)
    if node.op == "Flatten":
        return _scaled(ds[0].reshape(len(ds[0]), -1), read[0].scale, made, spec)
    k = _scaled(np.maximum(ds[0], 0), read[0].scale, made, spec)
    if node.op == "Relu6":
        z = int(made.zero_point)
        k = np.minimum(k, quantize_exact(6.0, made.scale, z, made.spec) - z)
    return k


def golden_network(graph: Graph, plan: QuantPlan, x: NDArray[Any]) -> dict[str, NDArray[np.int32]]:
    """The codes of every tensor of an integer network, by slow and exact steps; accumulators wrap.

    graph, plan, x: as for `forward(mode="integer")`, whose trace this must equal.  About a second an image.

    >>> from ..net.graph import InputSpec
    >>> from ..net.plan import ActivationQuantizer
    >>> q = ActivationQuantizer(QuantSpec(8), np.array(0.5), np.array(0))
    >>> plan = QuantPlan(activations={"x": q, "y": q}, integer=IntegerSpec())
    >>> graph = Graph("g", InputSpec("x", (2,)), "y", (Node("y", "Relu", ("x",)),), {})
    >>> golden_network(graph, plan, np.array([[-3, 2]]))
    {'x': array([[-6,  4]], dtype=int32), 'y': array([[0, 4]], dtype=int32)}
    """
    graph = fold_batch_norm(graph)
    edges = edges_of(graph, plan)
    entry = edges[graph.input.name]
    seen = transform(graph.input, np.asarray(x)).astype(np.float64)
    values, where = np.unique(seen, return_inverse=True)
    z = int(entry.zero_point)
    codes = np.array([quantize_exact(v, entry.scale, z, entry.spec) - z for v in values.tolist()], np.int64)
    d = {graph.input.name: codes[where.ravel()].reshape(seen.shape)}
    for node in graph.nodes:
        made, z = edges[node.name], int(edges[node.name].zero_point)
        k = _step(graph, node, plan, edges, [d[t] for t in node.inputs])
        d[node.name] = np.clip(k + z, made.spec.qmin, made.spec.qmax) - z
    return {name: (v + int(edges[name].zero_point)).astype(np.int32) for name, v in d.items()}
