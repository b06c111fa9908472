"""A network run in floating point: as it is, or with the quantizers of a plan (`fake`).

Letters: s_x the scale of what a layer reads, s_w of its weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, complaint
from ..quant.integer_spec import IntegerSpec
from ..quant.multiterm import sound
from ..quant.quantizer import fake_quantize
from .edges import Edge, edges_of, layer_of, planned
from .graph import Graph, Node
from .op import Array, Params
from .ops import OPS
from .plan import QuantPlan
from .products import per_output
from .program import Program, interpret

__all__ = ["fake_program", "float_program"]


def float_program(graph: Graph) -> Program:
    """The program of `forward(mode="float")`: the graph as it is, in float32."""
    return _read_quantized(graph, {node.name: graph.params(node) for node in graph.nodes}, QuantPlan())


def fake_program(graph: Graph, plan: QuantPlan) -> Program:
    """The program of `forward(mode="fake")`.

    Raises ArgumentError for a plan of another network.
    """
    graph = planned(graph, plan)
    if plan.integer is not None:
        return _all_quantized(graph, plan, plan.integer)
    params = {node.name: {**graph.params(node), **_weight(graph, node, plan)} for node in graph.nodes}
    return _read_quantized(graph, params, plan)


def _weight(graph: Graph, node: Node, plan: QuantPlan) -> Params:
    """{"weight": the plan's weight of a node}, decoded; {} where the node keeps its own."""
    if node.name not in plan.weights:
        return {}
    W, wanted = sound(plan.weights[node.name], f"weight of {node.name}").decode(), graph.param(node, "weight").shape
    if W.shape != wanted:
        raise ArgumentError(complaint(f"a weight of shape {W.shape}", f"{wanted}", f"plan for node {node.name}"))
    return {"weight": W}


class _Seen(NamedTuple):
    """A tensor, and the tensor as linear nodes read it: quantized once, however many they are."""

    tensor: Array
    by_linear: Array


def _read_quantized(graph: Graph, params: Mapping[str, Params], plan: QuantPlan) -> Program:
    """The float32 interpreter: params by node name; quantizers where a Conv or Gemm reads a tensor."""

    def seen(name: str, x: Array) -> _Seen:
        return _Seen(x, plan.activation(name, x))

    def step(node: Node, inputs: Sequence[_Seen]) -> _Seen:
        op = OPS[node.op]
        return seen(node.name, op.forward(node.attrs, params[node.name], [v[int(op.linear)] for v in inputs]))

    return interpret(graph, np.float32, lambda x: seen(graph.input.name, x), step, lambda name, v: v.tensor)


def _all_quantized(graph: Graph, plan: QuantPlan, spec: IntegerSpec) -> Program:
    """The float64 interpreter of an integer-only network: every tensor is what its codes stand for."""
    edges = edges_of(graph, plan)
    params: dict[str, Any] = {node.name: graph.params(node) for node in graph.nodes}
    for node in graph.linear_nodes:
        read = edges[node.inputs[0]]
        layer = layer_of(graph, node, plan, read, spec)
        step_of_weights = per_output(layer.scale, layer.codes.ndim + 1)
        bias = layer.bias * (read.scale * layer.scale)
        params[node.name] = {"weight": layer.codes * step_of_weights, "bias": bias}

    def quantized(edge: Edge, x: NDArray[Any]) -> NDArray[np.float64]:
        return fake_quantize(x.astype(np.float64), edge.scale, int(edge.zero_point), spec=edge.spec)

    def step(node: Node, inputs: Sequence[Any]) -> NDArray[np.float64]:
        return quantized(edges[node.name], OPS[node.op].forward(node.attrs, params[node.name], inputs))

    entry = edges[graph.input.name]
    return interpret(graph, np.float32, lambda x: quantized(entry, x), step, lambda name, x: x)
