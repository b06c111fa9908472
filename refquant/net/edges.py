"""The quantizers and weights of an integer-only network, checked: what its plan puts on every edge."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arith.rounding import MODES
from ..errors import ArgumentError, complaint
from ..quant.arguments import parameters, positive
from ..quant.granularity import PerChannel, PerTensor
from ..quant.integer_spec import IntegerSpec, bias_codes
from ..quant.multiterm import sound
from ..quant.spec import QuantSpec
from .fold import fold_batch_norm, with_biases
from .graph import Graph, Node
from .plan import ActivationQuantizer, QuantPlan

__all__ = ["MONOTONE", "Edge", "Layer", "check_names", "edges_of", "layer_of", "planned"]

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


def check_names(graph: Graph, plan: QuantPlan) -> None:
    """Nothing is returned; raises ArgumentError where the plan names a layer or a tensor that the graph has not.

    graph: batch norms folded.  Weights and biases are those of Conv and Gemm; activations are read by these, or are
    any tensor's if the network is integer-only.
    """
    linear = [node.name for node in graph.linear_nodes]
    read = [tensor for node in graph.linear_nodes for tensor in node.inputs]
    known: Mapping[str, tuple[Iterable[str], Iterable[str]]] = {
        "weights": (plan.weights, linear),
        "biases": (plan.biases, linear),
        "activations": (plan.activations, dict.fromkeys(read) if plan.integer is None else graph.shapes),
    }
    for field, (names, allowed) in known.items():
        unknown = [str(name) for name in names if name not in allowed]
        got, should = f"{field} of {', '.join(unknown)}", f"among {', '.join(allowed)}"
        _check(not unknown, got, should, f"plan for {graph.name}")


def planned(graph: Graph, plan: QuantPlan) -> Graph:
    """The graph that a plan speaks of: batch norms folded, biases the plan's.

    Raises ArgumentError for a plan that names what the graph has not, and for a bias that is not a layer's.
    """
    folded = fold_batch_norm(graph)
    check_names(folded, plan)
    for name, bias in plan.biases.items():
        wanted, b = folded.shapes[name][:1], np.asarray(bias)
        fits = b.shape == wanted and b.dtype == np.float32 and bool(np.isfinite(b).all())
        _check(fits, f"{b.dtype} of shape {b.shape}", f"finite float32 of shape {wanted}", f"bias of {name}")
    return with_biases(folded, plan.biases)


def _edge(quantizer: ActivationQuantizer, where: str) -> Edge:
    spec = quantizer.spec
    got = f"a quantizer of {spec.granularity}, overflow={spec.overflow}, rounding={spec.rounding}, {spec.bits} bits"
    got += f", zero point added {spec.zero_point_order} rounding"
    plain = spec.granularity == PerTensor() and spec.overflow == "saturate" and spec.rounding in MODES
    plain = plain and spec.zero_point_order == "after" and spec.bits <= MOST_BITS
    _check(plain, got, f"per tensor, saturating, deterministic, after, at most {MOST_BITS} bits", where)
    s, z = parameters(quantizer.scale, quantizer.zero_point, (), spec, where)
    return Edge(spec, float(s), float(z))


def edges_of(graph: Graph, plan: QuantPlan) -> Mapping[str, Edge]:
    """The quantizer of every tensor: the plan's, or that of its only reader if the reader's op is in `MONOTONE`.

    graph: batch norms folded.  Such a reader changes nothing in the order: Relu after rounding and saturating
    gives the codes of rounding and saturating after Relu.

    Raises ArgumentError for a tensor without a quantizer and one whose quantizer is not per tensor, saturating,
    deterministic, at most 16 bits, with one scale, finite and > 0, and one integer zero point on the grid.
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

    Raises ArgumentError for a weight that is missing, not `sound`, of more than one term, more than 16 bits, or
    of a granularity other than per tensor or per output channel, and where the accumulators' scale s_a s_w is
    not finite and > 0; CodeOverflowError as `quantize_bias`.
    """
    where = f"weight of {node.name}"
    _check(node.name in plan.weights, "no quantized weight", "one", where)
    terms = sound(plan.weights[node.name], where)
    grid, shape = terms.specs[0], graph.param(node, "weight").shape
    got = f"{terms.terms} terms of {grid.bits} bits, {grid.granularity}, shape {terms.shape}"
    fits = terms.terms == 1 and grid.bits <= MOST_BITS and terms.shape == shape
    fits = fits and grid.granularity in (PerTensor(), PerChannel(0))
    _check(fits, got, f"one term of at most {MOST_BITS} bits, PerTensor() or PerChannel(0), shape {shape}", where)
    scale = terms.scales[0].astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        positive(read.scale * scale, "input scale times weight scale", f"node {node.name}")
    bias = np.zeros(shape[0])
    if "bias" in node.params:
        bias = bias_codes(graph.param(node, "bias"), read.scale, scale, spec, f"bias of {node.name}").astype(np.float64)
    return Layer(terms.codes[0].astype(np.float64), grid, scale, bias)
