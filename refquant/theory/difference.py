"""The difference network: a reference run beside a quantized one, step by step, and the errors between them enclosed.

Letters: a a value of the reference, x^ = a + e of the quantized run.

The reference is a run of `forward` as the network stands, its batch norms unfolded, that was recorded: its tensors
are known numbers.  The quantized run is `forward` with mode "fake", in which batch norms are folded, or any other
evaluation of the same network, of the same type, whatever the order of its sums, with the same folded arrays, and the
same line k x + c for a batch norm that does not fold; roundings and all.  That two networks
are bounded by their difference, not one by one, is the idea of Paulsen, Wang and Wang 2020 (ReluDiff).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, complaint
from ..net.fold import fold_batch_norm
from ..net.graph import Graph, Node
from ..net.op import Params, Shape
from ..net.plan import QuantPlan
from ..net.wiring import lines_of
from .box import Box, certain, meet
from .linear_maps import LINEAR, linear_map
from .pair import pair_of
from .pieces import Piece, Place, Quantizer, Rate, Step
from .relax import PIECES
from .rounding_error import gamma

__all__ = ["Enclosure", "Network", "enclose", "float_network", "quantized_network"]

Reals = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Network:
    """One run as steps.

    to: its type.  start: the name of its input.  shapes: of its values, an image.  shown: from the name of a tensor
    to that of the value which `forward` shows for it, for all tensors that the output depends on; seen: from the name
    of a value to the tensor of the reference that it is compared with.
    """

    steps: tuple[Step, ...]
    to: str
    start: str
    output: str
    shapes: Mapping[str, Shape]
    shown: Mapping[str, str]
    seen: Mapping[str, str]

    @property
    def linear(self) -> frozenset[str]:
        """The values of linear steps."""
        return frozenset(step.name for step in self.steps if step.linear is not None)


# ---- making them ----------------------------------------------------------------------------------------------


def _step(graph: Graph, node: Node, inputs: tuple[str, ...], params: Params, to: str) -> Step:
    if node.op not in PIECES:
        raise ArgumentError(complaint(f"node {node.name} of op {node.op}", f"one of {', '.join(PIECES)}", "bounds"))
    L = None
    if node.op in LINEAR:
        shapes = [graph.shapes[t] for t in node.inputs]
        L = linear_map(node.op, node.attrs, params, shapes, graph.shapes[node.name], to)
    return Step(node.name, node.op, node.attrs, inputs, L)


def float_network(graph: Graph, to: str = "float32") -> Network:
    """The float network as it stands, in a run of type `to`.

    Raises ArgumentError for an op that is not in `PIECES`.
    """
    steps = tuple(_step(graph, node, node.inputs, graph.params(node), to) for node in graph.nodes)
    names = {name: name for name in graph.shapes}
    return Network(steps, to, graph.input.name, graph.output, graph.shapes, names, names)


def quantized_network(graph: Graph, plan: QuantPlan) -> Network:
    """What `forward(mode="fake")` makes of a network with a plan: in float32, or, where it is integer-only, in float64.

    Raises ArgumentError for a plan of another network, and an op that is not in `PIECES`.
    """
    pair = pair_of(graph, plan)
    to = "float64" if plan.integer is not None else "float32"
    lines, output = lines_of(pair.graph, [graph.input.name], pair.graph.output, through=pair.through)
    norms, arrays = _folded_norms(graph), {**pair.graph.arrays, **pair.params}
    shapes, seen = dict(pair.graph.shapes), {name: norms.get(name, name) for name in graph.shapes}
    steps = []
    for line in lines:
        inputs = tuple(name for slot, name in line.sources.items() if isinstance(slot, int))
        if line.name in pair.graph.shapes:
            params = {str(slot): arrays[name] for slot, name in line.sources.items() if isinstance(slot, str)}
            step = _step(pair.graph, pair.graph.node(line.name), inputs, params, to)
        else:
            way = pair.through[inputs[0]]
            scale, zero_point = (pair.params[way.params[role]] for role in ("scale", "zero_point"))
            step = Step(line.name, "Quantize", {}, inputs, quantizer=Quantizer(way.attrs["spec"], scale, zero_point))
            shapes[line.name], seen[line.name] = shapes[inputs[0]], seen[inputs[0]]
        steps.append(step)
    made = {graph.input.name, *(step.name for step in steps)}
    read = {name: f"{name}:read" if plan.integer is not None else name for name in pair.graph.shapes if name in made}
    return Network(tuple(steps), to, graph.input.name, output, shapes, read, seen)


def _folded_norms(graph: Graph) -> dict[str, str]:
    """From the name of a linear node to that of the batch norm which is folded into it."""
    left = fold_batch_norm(graph).shapes
    return {node.inputs[0]: node.name for node in graph.nodes if node.name not in left}


# ---- enclosing errors -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Enclosure:
    """The errors of all values of a quantized run, enclosed: a box each, and the pieces they came by."""

    network: Network
    errors: Mapping[str, Box]
    pieces: Mapping[str, Piece]


Refine = Callable[[Enclosure, str], Box | None]


def enclose(
    network: Network,
    seen: Mapping[str, Reals],
    start: Box,
    *,
    specified: bool = False,
    refine: Refine | None = None,
    rate: Rate = gamma,
) -> Enclosure:
    """All errors x^ - a of a run, step by step by interval arithmetic; infinite where nothing is known.

    seen: the reference's tensors, as recorded.  start: the error of the input.  specified: whether quantizers give
    the codes that their rules say; else any code within the error of their rounding mode.
    refine: from what is enclosed so far and the name of its last value to another box of that value, or None.
    rate: what roundings are worth; but for `gamma` the boxes are no certain bounds.

    >>> from ..net.graph import InputSpec
    >>> net = float_network(Graph("flat", InputSpec("x", (1,)), "y", (Node("y", "Relu", ("x",)),), {}))
    >>> seen = {"x": np.array([[-1.0]]), "y": np.array([[0.0]])}
    >>> enclose(net, seen, Box(np.array([[-2.0]]), np.array([[3.0]]))).errors["y"].high.round(9).tolist()
    [[2.0]]
    """
    errors: dict[str, Box] = {network.start: start}
    pieces: dict[str, Piece] = {}
    found = Enclosure(network, errors, pieces)
    with np.errstate(invalid="ignore", over="ignore"):
        for step in network.steps:
            e, a = [errors[name] for name in step.inputs], [seen[network.seen[name]] for name in step.inputs]
            place = Place(e, a, seen[network.seen[step.name]], network.to, specified, rate)
            pieces[step.name] = PIECES[step.kind](step, place)
            errors[step.name] = certain(pieces[step.name].range)
            finer = None if refine is None else refine(found, step.name)
            if finer is not None:
                errors[step.name] = meet(errors[step.name], certain(finer))
    return found
