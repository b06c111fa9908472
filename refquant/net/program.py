"""What a mode of `forward` makes of a graph and a plan: a program, run batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from .graph import Graph, InputSpec, Node
from .op import Array
from .plan import QuantPlan

__all__ = ["Prepare", "Program", "interpret", "transform"]

Value = TypeVar("Value")


class Program(NamedTuple):
    """What a mode makes of a graph and a plan: the graph it runs, the type of its tensors, how it runs a batch.

    run: from a batch of raw images to the network's tensors, in order, as (name, array).
    """

    graph: Graph
    dtype: type[np.float32] | type[np.int32]
    run: Callable[[NDArray[Any]], Iterator[tuple[str, NDArray[Any]]]]


Prepare: TypeAlias = Callable[[Graph, QuantPlan | None], Program]


def transform(spec: InputSpec, x: NDArray[Any]) -> Array:
    """What the network sees of raw images: (x scale - mean) / std, in float32.

    >>> transform(InputSpec("x", (1,), mean=1.0, std=2.0), np.array([[5]])).tolist()
    [[2.0]]
    """
    scale, mean, std = np.float32(spec.scale), np.float32(spec.mean), np.float32(spec.std)
    y: Array = (x.astype(np.float32) * scale - mean) / std
    return y


def _last_reads(graph: Graph) -> dict[str, list[str]]:
    """From the name of a node to the tensors that nobody reads after it."""
    last = {tensor: node.name for node in graph.nodes for tensor in (node.name, *node.inputs)}
    return {node.name: [tensor for tensor, reader in last.items() if reader == node.name] for node in graph.nodes}


def interpret(
    graph: Graph,
    dtype: type[np.float32] | type[np.int32],
    enter: Callable[[Array], Value],
    step: Callable[[Node, Sequence[Value]], Value],
    show: Callable[[str, Value], NDArray[Any]],
) -> Program:
    """The program that turns the transformed images into a value, each node's inputs into its value.

    show: the array that a named tensor's value stands for.  Values live until their last reader is done.
    """
    no_longer_read = _last_reads(graph)

    def run(x: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
        values = {graph.input.name: enter(transform(graph.input, x))}
        yield graph.input.name, show(graph.input.name, values[graph.input.name])
        for node in graph.nodes:
            values[node.name] = step(node, [values[t] for t in node.inputs])
            yield node.name, show(node.name, values[node.name])
            for tensor in no_longer_read[node.name]:
                del values[tensor]

    return Program(graph, dtype, run)
