"""A network and its quantized self as two runs of the same lines, and where they differ: the sources of error.

Letters: x a value of the float run, x^ of the quantized one, e = x^ - x its error.

Both runs are float64, from the same real arrays and the same input: what separates them is quantization alone, up to
roundings near 1e-16.  Batch norms are folded, as plans want it, and every slot of a node has an array of its own,
called `NODE:ROLE`.  Where one run reads a tensor through a quantizer, the other reads it through the identity.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, NotANumberError, complaint, instance_of
from ..net.edges import edges_of, layer_of, planned
from ..net.fold import fold_batch_norm, with_biases
from ..net.gradient import Tape, run
from ..net.graph import Graph
from ..net.op import Array, Op, symmetric
from ..net.ops_quantize import FAKE_QUANTIZE
from ..net.plan import QuantPlan
from ..net.products import per_output
from ..net.program import transform
from ..net.wiring import Through, through_plan

__all__ = ["IDENTITY", "Pair", "Source", "images_of", "pair_of", "reached_from"]

IDENTITY = Op(lambda attrs, shapes: shapes[0], lambda attrs, params, inputs: inputs[0], symmetric(lambda at, v: v))
"""What the float run reads a tensor through where the quantized run has a quantizer."""


class Source(NamedTuple):
    """What was quantized: the weight or the bias of the Conv or Gemm `name`, or the activation, the tensor `name`."""

    name: str
    kind: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, eq=False)
class Pair:
    """A network, what a plan makes of it, and from each source of error to the value that it changes, in order."""

    graph: Graph
    plan: QuantPlan
    through: Mapping[str, Through]
    params: Mapping[str, Array]
    sources: Mapping[Source, str]

    def entry(self, source: Source) -> str:
        """The tensor at which the source's error enters: what readers see of an activation, or the node's output."""
        return self.sources[source] if source.kind == "activation" else source.name

    def run(self, feeds: Mapping[str, Array], at: str, quantized: Collection[Source]) -> Tape:
        """The network from the fed tensors to the tensor `at`, with these sources quantized and the others float.

        Whatever they are, the lines have the same names.
        """
        through = {
            tensor: way if Source(tensor, "activation") in quantized else replace(way, op=IDENTITY, attrs={}, params={})
            for tensor, way in self.through.items()
        }
        chosen = [name for way in through.values() for name in way.params.values()]
        chosen += [value for source, value in self.sources.items() if source in quantized and value in self.params]
        return run(self.graph, feeds, {name: self.params[name] for name in chosen}, output=at, through=through)


def images_of(graph: Graph, x: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """What `Pair.run` is fed with: the network's input as `forward` makes it, in float32, then held as float64.

    Raises ArgumentError for no images, another shape or type, and infinities; NotANumberError for a NaN.

    >>> from ..net.graph import InputSpec, Node
    >>> graph = Graph("flat", InputSpec("x", (1,), mean=1.0), "y", (Node("y", "Flatten", ("x",)),), {})
    >>> images_of(graph, [[3]])
    {'x': array([[2.]])}
    """
    images, shape, where = np.asarray(x), graph.input.shape, f"images for {graph.name}"
    got = f"x of type {images.dtype} and shape {images.shape}"
    if images.dtype.kind not in "uif" or images.ndim != len(shape) + 1 or images.shape[1:] != shape or not len(images):
        should = f"integers or floats, shape (N, {', '.join(map(str, shape))}) with N at least 1"
        raise ArgumentError(complaint(got, should, where))
    if not np.isfinite(images).all():
        kind, got = (NotANumberError, "NaN in x") if np.isnan(images).any() else (ArgumentError, "infinity in x")
        raise kind(complaint(got, "finite values", where, "clean the images"))
    return {graph.input.name: transform(graph.input, images).astype(np.float64)}


def pair_of(graph: Graph, plan: QuantPlan) -> Pair:
    """A network beside what `forward(mode="fake")` makes of it with a plan, integer-only or not.

    Raises ArgumentError for a plan of another network, or none, or with a bias that is not a layer's.

    >>> from ..quant.spec import QuantSpec
    >>> from ..net.graph import InputSpec, Node
    >>> from ..net.plan import ActivationQuantizer
    >>> y = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> graph = Graph("twice", InputSpec("x", (1,)), "y", (y,), {"w": np.float32([[2]])})
    >>> plan = QuantPlan(activations={"x": ActivationQuantizer(QuantSpec(2), np.array(0.5), np.array(0))})
    >>> pair = pair_of(graph, plan)
    >>> list(pair.sources), pair.run({"x": np.array([[0.3]])}, "y", pair.sources).output.tolist()
    ([Source(name='x', kind='activation')], [[1.0]])
    """
    instance_of(graph, Graph, "graph", "a network and its plan")
    instance_of(plan, QuantPlan, "plan", "a network and its plan")
    folded, meant = fold_batch_norm(graph), planned(graph, plan)
    own = _separate(with_biases(folded, {name: _bias(folded, name) for name in plan.biases}))
    through, params = through_plan(own, plan) if plan.integer is None else _through_integer(own, meant, plan)
    sources = {}
    for node in own.nodes:
        for tensor in (t for t in (*node.inputs, node.name) if t in through):
            sources[Source(tensor, "activation")] = f"{tensor}:read"
        sources |= {Source(node.name, role): array for role, array in node.params.items() if array in params}
    return Pair(own, plan, through, params, sources)


def reached_from(tape: Tape, tensors: Collection[str]) -> set[str]:
    """The tensors of a run that depend on some of these, and these.

    >>> from ..net.graph import InputSpec, Node
    >>> graph = Graph("two", InputSpec("x", (1,)), "z", (Node("y", "Relu", ("x",)), Node("z", "Relu", ("y",))), {})
    >>> sorted(reached_from(run(graph, {"x": np.ones((1, 1))}), ["y"]))
    ['y', 'z']
    """
    reached = set(tensors)
    for line in tape.lines:
        if reached.intersection(line.sources.values()):
            reached.add(line.name)
    return reached


def _bias(graph: Graph, name: str) -> NDArray[np.float32]:
    """The bias of a Conv or Gemm, 0 where it has none."""
    node = graph.node(name)
    return graph.param(node, "bias") if "bias" in node.params else np.zeros(graph.shapes[name][:1], np.float32)


def _separate(graph: Graph) -> Graph:
    """The same network, with an array of its own, `NODE:ROLE`, in every slot."""
    nodes = [replace(node, params={role: f"{node.name}:{role}" for role in node.params}) for node in graph.nodes]
    arrays = {f"{node.name}:{role}": a for node in graph.nodes for role, a in graph.params(node).items()}
    return replace(graph, nodes=tuple(nodes), arrays=arrays)


def _through_integer(own: Graph, meant: Graph, plan: QuantPlan) -> tuple[dict[str, Through], dict[str, Array]]:
    """`through_plan` for an integer-only network: every tensor, for all its readers, every weight and bias.

    own: the float network, separate; meant: the network with the plan's biases.
    """
    assert plan.integer is not None
    edges = edges_of(meant, plan)
    through: dict[str, Through] = {}
    params: dict[str, Array] = {}
    for tensor, edge in edges.items():
        names = {"scale": f"{tensor}.scale", "zero_point": f"{tensor}.zero_point"}
        through[tensor] = Through(FAKE_QUANTIZE, {"spec": edge.spec}, names, everywhere=True)
        params |= {names["scale"]: np.asarray(edge.scale), names["zero_point"]: np.asarray(edge.zero_point)}
    for node in own.linear_nodes:
        read = edges[node.inputs[0]]
        layer = layer_of(meant, meant.node(node.name), plan, read, plan.integer)
        params[node.params["weight"]] = layer.codes * per_output(layer.scale, layer.codes.ndim + 1)
        if "bias" in node.params:
            params[node.params["bias"]] = layer.bias * (read.scale * layer.scale)
    return through, params
