"""Batch normalization folded into the Conv or Gemm before it.

Letters: the normalization is k y + c a channel, the linear op y = W x + b: together (k W) x + (k b + c).
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from .graph import Graph, Node
from .op import Array
from .ops_norm import batch_norm_line

__all__ = ["fold_batch_norm", "with_biases"]


def fold_batch_norm(graph: Graph) -> Graph:
    """The same function with fewer nodes: every BatchNorm that alone reads a Conv or Gemm is folded into it.

    The linear node keeps its name and gets a bias, its weight and bias become the arrays `NODE.weight` and
    `NODE.bias`; who read the BatchNorm reads the linear node.  Other BatchNorms stay.  Folded arrays are
    computed in float64 and rounded once to float32, so outputs agree up to float32 rounding, not bit for bit.
    The same graph comes back if there is nothing to fold.

    Raises ArgumentError where a folded array would overflow float32.

    >>> from .graph import InputSpec
    >>> y = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> names = {n: n for n in ("gamma", "beta", "mean", "var")}
    >>> z = Node("z", "BatchNorm", ("y",), {"channels": 1, "eps": 1.0}, names)
    >>> arrays = {n: np.float32([v]) for n, v in {"w": [5], "gamma": 4, "beta": 1, "mean": 2, "var": 3}.items()}
    >>> folded = fold_batch_norm(Graph("line", InputSpec("x", (1,)), "z", (y, z), arrays))
    >>> folded.output, {name: array.tolist() for name, array in folded.arrays.items()}
    ('y', {'y.weight': [[10.0]], 'y.bias': [-3.0]})
    """
    pairs = _pairs(graph)
    if not pairs:
        return graph
    renamed = {norm.name: linear.name for linear, norm in pairs.values()}
    nodes: list[Node] = []
    fresh: dict[str, Array] = {}
    for node in graph.nodes:
        if node.name in renamed:
            continue
        params = dict(node.params)
        if node.name in pairs:
            others = {array for other in graph.nodes if other.name != node.name for array in other.params.values()}
            params = {role: _unused_name(f"{node.name}.{role}", others) for role in ("weight", "bias")}
            W, b = _folded(graph, *pairs[node.name])
            fresh |= {params["weight"]: W, params["bias"]: b}
        nodes.append(replace(node, inputs=tuple(renamed.get(t, t) for t in node.inputs), params=params))
    used = dict.fromkeys(array for node in nodes for array in node.params.values())
    arrays = {name: fresh[name] if name in fresh else graph.arrays[name] for name in used}
    return replace(graph, nodes=tuple(nodes), arrays=arrays, output=renamed.get(graph.output, graph.output))


def with_biases(graph: Graph, biases: Mapping[str, Array]) -> Graph:
    """The network with these biases, float32 of shape (outputs,), by the name of a Conv or Gemm.

    The array of each is its own, `NODE.bias`, also where the node had none or shared it with another.

    Raises ArgumentError as `Graph` does: for another shape or type, values that are not finite, an unknown name.

    >>> from .graph import InputSpec
    >>> y = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> graph = Graph("line", InputSpec("x", (1,)), "y", (y,), {"w": np.float32([[1]])})
    >>> {name: array.tolist() for name, array in with_biases(graph, {"y": np.float32([3])}).arrays.items()}
    {'w': [[1.0]], 'y.bias': [3.0]}
    """
    if not biases:
        return graph
    own = {}
    for name in biases:
        slots = [(node.name, role, array) for node in graph.nodes for role, array in node.params.items()]
        taken = {array for *slot, array in slots if slot != [graph.node(name).name, "bias"]}
        own[name] = _unused_name(f"{name}.bias", taken)
    nodes = [replace(n, params={**n.params, "bias": own[n.name]}) if n.name in own else n for n in graph.nodes]
    used = dict.fromkeys(array for node in nodes for array in node.params.values())
    fresh = {own[name]: np.asarray(b) for name, b in biases.items()}
    arrays = {name: fresh[name] if name in fresh else graph.arrays[name] for name in used}
    notes = {key: value for key, value in graph.notes.items() if key != "test_accuracy"}
    return replace(graph, nodes=tuple(nodes), arrays=arrays, reference_logits=None, notes=notes)


def _pairs(graph: Graph) -> Mapping[str, tuple[Node, Node]]:
    """From the name of a linear node to itself and the BatchNorm that alone reads it."""
    found = {}
    for linear in graph.linear_nodes:
        readers = graph.readers(linear.name)
        if len(readers) == 1 and readers[0].op == "BatchNorm" and linear.name != graph.output:
            found[linear.name] = (linear, readers[0])
    return found


def _folded(graph: Graph, linear: Node, norm: Node) -> tuple[Array, Array]:
    k, c = batch_norm_line(norm.attrs, graph.params(norm))
    W = graph.param(linear, "weight").astype(np.float64)
    b = graph.param(linear, "bias").astype(np.float64) if "bias" in linear.params else np.zeros(len(W))
    with np.errstate(over="ignore"):  # to infinity, which Graph refuses
        return (k.reshape(-1, *(1,) * (W.ndim - 1)) * W).astype(np.float32), (k * b + c).astype(np.float32)


def _unused_name(name: str, taken: Collection[str]) -> str:
    """The name, lengthened while it is taken."""
    while name in taken:
        name += "_"
    return name
