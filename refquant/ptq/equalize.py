"""Cross-layer equalization: channels between two layers scaled so that both layers' ranges agree.

Letters: W1, W2 the weights before and after a channel i, r1_i and r2_i the largest magnitudes of its weights in each,
s_i > 0 its scale.

Max(x, 0), pooling and flattening commute with positive factors, so dividing row i of W1 (and its bias) by s_i and
multiplying what W2 reads of channel i by s_i leaves the network as it is.  s_i = sqrt(r1_i r2_i) / r2_i makes both
ranges sqrt(r1_i r2_i).  Pairs are taken in turn until nothing moves.
With powers of two for s, every product is exact, and the network's outputs stay the same bit for bit (while nothing
leaves the normal numbers).

Source: Nagel et al. 2019 (Data-Free Quantization, arXiv 1906.04721), section 4.1.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..net.graph import Graph, Node
from ..net.ops import OPS
from ..net.plan import QuantPlan
from .task import Task

__all__ = ["HOMOGENEOUS", "Pair", "equalize", "on_equalized", "pairs_of"]

HOMOGENEOUS = ("Relu", "MaxPool", "AveragePool", "GlobalAvgPool", "Flatten")
"""Ops f with f(s x) = s f(x) for s > 0, channel by channel."""

ROUNDS = 50


class Pair(NamedTuple):
    """Two layers of which the second alone reads, through ops of `HOMOGENEOUS`, what the first makes."""

    first: str
    second: str


def pairs_of(graph: Graph) -> list[Pair]:
    """The pairs of a network whose batch norms are folded, in order.

    >>> from ..zoo import load_network
    >>> pairs_of(load_network("mlp"))
    [Pair(first='gemm1', second='gemm2'), Pair(first='gemm2', second='gemm3')]
    """
    found = []
    for node in graph.linear_nodes:
        tensor = node.name
        while tensor != graph.output and len(graph.readers(tensor)) == 1:
            reader = graph.readers(tensor)[0]
            if OPS[reader.op].linear:
                found.append(Pair(node.name, reader.name))
            if reader.op not in HOMOGENEOUS:
                break
            tensor = reader.name
    return found


def _by_input(node: Node, W: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """The weight as (channels, groups of outputs, elements): a view by the channel that the elements read."""
    if node.op == "Gemm":  # behind a flattening, a channel is a run of features
        return W.reshape(len(W), channels, -1).transpose(1, 0, 2)
    G = node.attrs["groups"]
    grouped = W.reshape(G, len(W) // G, channels // G, -1)
    return grouped.transpose(0, 2, 1, 3).reshape(channels, len(W) // G, -1)


def _times(node: Node, W: NDArray[np.float32], s: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weight with what reads channel i multiplied by s_i."""
    if node.op == "Gemm":
        return (W.reshape(len(W), len(s), -1) * s[:, None]).reshape(W.shape)
    G = node.attrs["groups"]
    return (W.reshape(G, len(W) // G, len(s) // G, -1) * s.reshape(G, 1, -1, 1)).reshape(W.shape)


def equalize(graph: Graph, powers_of_two: bool = True) -> Graph:
    """The same function with equalized channels; up to float32 rounding, or bit for bit with powers of two.

    graph: batch norms folded, every Conv and Gemm with arrays of its own.  A channel that is all zeros in one of both
    layers is left alone.

    >>> from ..zoo import load_network
    >>> before = load_network("mlp")
    >>> after = equalize(before)
    >>> from ..net.forward import forward
    >>> x = np.arange(784, dtype=np.float32).reshape(1, 1, 28, 28) % 255
    >>> bool(np.array_equal(forward(before, x), forward(after, x)))
    True
    """
    pairs = pairs_of(graph)
    for _ in range(ROUNDS):
        moved = False
        for pair in pairs:
            first, second = graph.node(pair.first), graph.node(pair.second)
            W1, W2 = graph.param(first, "weight"), graph.param(second, "weight")
            r1 = np.abs(W1).reshape(len(W1), -1).max(axis=1).astype(np.float64)
            r2 = np.abs(_by_input(second, W2, len(W1))).max(axis=(1, 2)).astype(np.float64)
            live = (r1 > 0) & (r2 > 0)
            s = np.sqrt(np.where(live, r1, 1.0) / np.where(live, r2, 1.0))
            s = (2.0 ** np.rint(np.log2(s)) if powers_of_two else s).astype(np.float32)
            if np.all(np.abs(s - 1) < 1e-3):
                continue
            moved = True
            arrays: dict[str, NDArray[np.float32]] = {
                first.params["weight"]: (W1 / s.reshape(-1, *(1,) * (W1.ndim - 1))).astype(np.float32),
                second.params["weight"]: _times(second, W2, s),
            }
            if "bias" in first.params:
                arrays[first.params["bias"]] = (graph.param(first, "bias") / s).astype(np.float32)
            graph = graph.replace_arrays(arrays)
        if not moved:
            break
    return graph


def on_equalized(task: Task, method: Callable[[Task], QuantPlan], powers_of_two: bool = True) -> QuantPlan:
    """The plan that a method makes for the equalized network, with every bias, so that it serves the original too."""
    other = task.changed(graph=equalize(task.graph, powers_of_two))
    plan = method(other)
    return replace(plan, biases={**{n.name: other.bias(n) for n in other.graph.linear_nodes}, **plan.biases})
