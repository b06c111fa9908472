"""A network divided into parts that are reconstructed one after another: layers, blocks, stages, or all at once.

A tensor is a cut if every way from the network's input to its output leads through it.  Between two neighbouring cuts
lies a chain of one node, or what branches and meets again, such as a residual block with its skip path.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

from ..errors import one_of
from ..net.graph import Graph, Node
from ..net.ops import OPS

__all__ = ["GRANULARITIES", "Part", "parts_of"]


class Part(NamedTuple):
    """What lies between two tensors: `layers` are the names of its Conv and Gemm nodes, in order."""

    input: str
    output: str
    layers: tuple[str, ...]


def _leading(graph: Graph) -> list[Node]:
    """The nodes that the output depends on, in order."""
    wanted, nodes = {graph.output}, []
    for node in reversed(graph.nodes):
        if node.name in wanted:
            nodes.append(node)
            wanted |= set(node.inputs)
    return nodes[::-1]


def _linear(nodes: Sequence[Node]) -> tuple[str, ...]:
    return tuple(node.name for node in nodes if OPS[node.op].linear)


def _segments(graph: Graph) -> list[list[Node]]:
    """The nodes between neighbouring cuts."""
    nodes = _leading(graph)
    last = {tensor: k for k, node in enumerate(nodes) for tensor in node.inputs} | {graph.output: len(nodes)}
    segments: list[list[Node]] = [[]]
    for k, node in enumerate(nodes):
        segments[-1].append(node)
        made = [graph.input.name, *(other.name for other in nodes[: k + 1])]
        if [tensor for tensor in made if last[tensor] > k] == [node.name]:
            segments.append([])
    return [segment for segment in segments if segment]


def _blocks(graph: Graph) -> list[Part]:
    """One segment with layers each, and the segments without any that follow it (the first has those before, too)."""
    found: list[list[Node]] = []
    for segment in _segments(graph):
        if found and not (_linear(segment) and _linear(found[-1])):
            found[-1] += segment
        else:
            found.append(segment)
    starts = [graph.input.name, *(block[-1].name for block in found)]
    return [Part(start, block[-1].name, _linear(block)) for start, block in zip(starts, found, strict=False)]


def _layers(graph: Graph) -> list[Part]:
    """One Conv or Gemm each, with the Relu or the like that alone reads it."""
    parts = []
    for node in _leading(graph):
        if OPS[node.op].linear:
            readers = graph.readers(node.name)
            closed = len(readers) == 1 and readers[0].op in ACTIVATIONS and node.name != graph.output
            parts.append(Part(node.inputs[0], readers[0].name if closed else node.name, (node.name,)))
    return parts


ACTIVATIONS = ("Relu", "Relu6")


def _joined(blocks: Sequence[Part]) -> Part:
    return Part(blocks[0].input, blocks[-1].output, sum((block.layers for block in blocks), ()))


def _stages(graph: Graph) -> list[Part]:
    """Neighbouring blocks whose outputs have one height and width."""
    return [
        _joined(list(some)) for _, some in groupby(_blocks(graph), key=lambda block: graph.shapes[block.output][1:])
    ]


GRANULARITIES: dict[str, Callable[[Graph], list[Part]]] = {
    "layer": _layers,
    "block": _blocks,
    "stage": _stages,
    "network": lambda graph: [_joined(_blocks(graph))],
}
"""name -> the parts of a network, from its input to its output."""


def parts_of(graph: Graph, granularity: str) -> list[Part]:
    """The parts, in order; each Conv and Gemm that the output depends on is in one of them.

    Those of "block", "stage" and "network" follow each other: each begins where the one before ends.

    Raises ArgumentError for an unknown name.  Source: Li et al. 2021 (BRECQ), section 3.2.

    >>> from ..zoo import load_network
    >>> [part.layers for part in parts_of(load_network("resnet"), "block")][1:4]
    [('conv2', 'conv3'), ('conv4', 'conv5', 'conv6'), ('conv7', 'conv8', 'conv9')]
    """
    return GRANULARITIES[one_of(granularity, GRANULARITIES, "granularity", "parts_of")](graph)
