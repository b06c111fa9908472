"""The quantizers and weights of an integer-only network, checked: what its plan puts on every edge."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arith.rounding import MODES
from ..errors import ArgumentError, complaint
from ..quant.granularity import PerChannel, PerTensor
from ..quant.integer_spec import IntegerSpec, quantize_bias
from ..quant.spec import QuantSpec
from .graph import Graph, Node
from .plan import ActivationQuantizer, QuantPlan

__all__ = ["MONOTONE", "Edge", "Layer", "edges_of", "layer_of"]

MONOTONE = ("Relu", "Relu6", "MaxPool", "Flatten")
"""Ops that commute with rounding, saturating and a positive scale: their input may be quantized as their output is."""

MOST_BITS = 16


class Edge(NamedTuple):
    """The quantizer of a tensor, as plain numbers: scale and zero point in float64."""

    spec: QuantSpec
    scale: float
    zero_point: float


class Layer(NamedTuple):
    """The integers of a Conv or Gemm: weight codes, its grid and scales ((O,) or ()), bias codes (O,)."""

    codes: NDArray[np.float64]
    spec: QuantSpec
    scale: NDArray[np.float64]
    bias: NDArray[np.float64]


def _check(fits: bool, got: str, should: str, where: str) -> None:
    if not fits:
        raise ArgumentError(complaint(got, should, where, "see refquant.QuantPlan"))


def _edge(quantizer: ActivationQuantizer, where: str) -> Edge:
    s, z, spec = np.asarray(quantizer.scale), np.asarray(quantizer.zero_point), quantizer.spec
    got = f"a quantizer of {spec.granularity}, overflow={spec.overflow}, rounding={spec.rounding}, {spec.bits} bits"
    got += f", zero point added {spec.zero_point_order} rounding"
    plain = spec.granularity == PerTensor() and spec.overflow == "saturate" and spec.rounding in MODES
    plain = plain and spec.zero_point_order == "after" and spec.bits <= MOST_BITS and s.shape == z.shape == ()
    _check(plain, got, f"per tensor, saturating, deterministic, after, at most {MOST_BITS} bits", where)
    _check(bool(np.isfinite(s) & (s > 0)), f"scale={s}", "finite and > 0", where)
    _check(spec.qmin <= float(z) <= spec.qmax, f"zero_point={z}", f"in [{spec.qmin}, {spec.qmax}]", where)
    return Edge(spec, float(s), float(z))


def edges_of(graph: Graph, plan: QuantPlan) -> Mapping[str, Edge]:
    """The quantizer of every tensor: the plan's, or that of its only reader if the reader's op is in `MONOTONE`.

    graph: batch norms folded.  Such a reader changes nothing in the order: Relu after rounding and saturating
    gives the codes of rounding and saturating after Relu.

    Raises ArgumentError for a tensor without a quantizer and one whose quantizer is not per tensor, saturating,
    deterministic, with an integer zero point and at most 16 bits.
    """
    edges: dict[str, Edge] = {}
    for tensor in reversed(list(graph.shapes)):
        where, readers = f"tensor {tensor} of {graph.name}", graph.readers(tensor)
        if tensor in plan.activations:
            edges[tensor] = _edge(plan.activations[tensor], where)
        else:
            alone = len(readers) == 1 and readers[0].op in MONOTONE and tensor != graph.output
            should = f"a quantizer (or read by one {', '.join(MONOTONE)} alone)"
            _check(alone, "none", should, where)
            edges[tensor] = edges[readers[0].name]
    return edges


def layer_of(graph: Graph, node: Node, plan: QuantPlan, read: Edge, spec: IntegerSpec) -> Layer:
    """The integers of a Conv or Gemm that reads a tensor quantized so.

    Raises ArgumentError for a weight that is missing, of more than one term, more than 16 bits, or of a
    granularity other than per tensor or per output channel; CodeOverflowError as `quantize_bias`.
    """
    where = f"weight of {node.name}"
    _check(node.name in plan.weights, "no quantized weight", "one", where)
    terms = plan.weights[node.name]
    grid, shape = terms.specs[0], graph.param(node, "weight").shape
    got = f"{terms.terms} terms of {grid.bits} bits, {grid.granularity}, shape {terms.shape}"
    fits = terms.terms == 1 and grid.bits <= MOST_BITS and terms.shape == shape
    fits = fits and grid.granularity in (PerTensor(), PerChannel(0))
    _check(fits, got, f"one term of at most {MOST_BITS} bits, PerTensor() or PerChannel(0), shape {shape}", where)
    scale = terms.scales[0].astype(np.float64)
    bias = np.zeros(shape[0])
    if "bias" in node.params:
        bias = quantize_bias(graph.param(node, "bias"), read.scale, scale, spec=spec).astype(np.float64)
    return Layer(terms.codes[0].astype(np.float64), grid, scale, bias)
