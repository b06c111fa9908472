"""A network as a value: nodes in order, their arrays, and what follows from them (shapes, costs).

Every node gives one tensor, which carries the node's name.  Shapes are per image, without the batch axis.
Whatever is wrong with a network is said when its `Graph` is made, so that a graph at hand is sound.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import ArgumentError, complaint
from .op import Array, Misfit, Op, Shape, fit
from .ops import ALIASES, OPS

__all__ = ["Graph", "InputSpec", "Node", "macs"]

LARGEST = 2**31
"""Elements per image that a tensor may have: more is a mistake in a file, not a small network."""


@dataclass(frozen=True)
class Node:
    """One step: the op `op` of the tensors `inputs`; params goes from the op's name of an array to the graph's."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class InputSpec:
    """The tensor that comes in, `shape` per image; the network sees (x scale - mean) / std, in float32."""

    name: str
    shape: Shape
    scale: float = 1.0
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, eq=False)
class Graph:
    """A network: its input, its nodes (each after those it reads), the name of its output, its float32 arrays.

    reference_logits: the outputs for the first images of the test set in the framework that trained it,
    shape (images, classes), or None.  notes: facts about the training, as text and numbers.

    Node attributes come in as in a file and are held in normal form (see `Op.read_attrs`); arrays are held
    as read-only float32, converted where that changes no value's type class (float16 and small integers).

    Raises ArgumentError for a network that is not sound: names that clash or are unknown, attributes or
    shapes that do not fit, arrays that are missing, unused, of another type or not finite.

    >>> double = Node("double", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> graph = Graph("twice", InputSpec("x", (1,)), "double", (double,), {"w": np.float32([[2]])})
    >>> graph.shapes
    {'x': (1,), 'double': (1,)}
    """

    name: str
    input: InputSpec
    output: str
    nodes: tuple[Node, ...]
    arrays: Mapping[str, Array]
    reference_logits: Array | None = None
    notes: Mapping[str, str | int | float] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(init=False)

    def __post_init__(self) -> None:
        _check_input(self.input, self.name)
        nodes, arrays = tuple(map(_normal_node, self.nodes)), _normal_arrays(self.arrays)
        set_field = object.__setattr__  # frozen for everyone else
        set_field(self, "nodes", nodes)
        set_field(self, "arrays", arrays)
        set_field(self, "notes", dict(self.notes))
        set_field(self, "shapes", _infer_shapes(self.input, nodes))
        _check_arrays(nodes, arrays)
        _check(self.output in self.shapes, f"output={self.output!r}", "the name of a tensor", self.name)
        if self.reference_logits is not None:
            logits = _normal_array(self.reference_logits, "reference_logits")
            set_field(self, "reference_logits", logits)
            fits = logits.shape == (len(logits), *self.shapes[self.output])
            got, should = f"reference logits of shape {logits.shape}", f"(images, *{self.shapes[self.output]})"
            _check(fits, got, should, self.name)

    def node(self, name: str) -> Node:
        """The node of this name.

        Raises ArgumentError if there is none.
        """
        found = [node for node in self.nodes if node.name == name]
        _check(bool(found), f"node {name!r}", f"one of {', '.join(node.name for node in self.nodes)}", self.name)
        return found[0]

    def params(self, node: Node) -> dict[str, Array]:
        """The node's arrays by the names that its op gives them."""
        return {role: self.arrays[array] for role, array in node.params.items()}

    def param(self, node: Node, role: str) -> Array:
        """One of the node's arrays, by the name that its op gives it, such as "weight".

        Raises ArgumentError if the node has none of that name.
        """
        _check(
            role in node.params, f"param {role!r}", f"one of {', '.join(node.params) or 'none'}", f"node {node.name}"
        )
        return self.arrays[node.params[role]]

    @property
    def linear_nodes(self) -> tuple[Node, ...]:
        """The Conv and Gemm nodes, in order: those whose weights a quantization plan speaks of."""
        return tuple(node for node in self.nodes if OPS[node.op].linear)

    def readers(self, tensor: str) -> tuple[Node, ...]:
        """The nodes that read a tensor, in order."""
        return tuple(node for node in self.nodes if tensor in node.inputs)

    def replace_arrays(self, arrays: Mapping[str, Array]) -> "Graph":
        """The same network with some of its arrays replaced; what was measured with the old ones is left out.

        Raises ArgumentError for a name that the network does not have, and as `Graph` does.
        """
        unknown = sorted(set(arrays) - set(self.arrays))
        _check(not unknown, f"array {', '.join(unknown)}", f"one of {', '.join(self.arrays)}", self.name)
        notes = {key: value for key, value in self.notes.items() if key != "test_accuracy"}
        return replace(self, arrays={**self.arrays, **arrays}, reference_logits=None, notes=notes)


def macs(graph: Graph) -> dict[str, int]:
    """The multiply-accumulates per image of every Conv and Gemm, by node name; padding counts as if it were image.

    >>> wide = Node("wide", "Gemm", ("x",), {"in_features": 2, "out_features": 3}, {"weight": "w"})
    >>> macs(Graph("wide", InputSpec("x", (2,)), "wide", (wide,), {"w": np.ones((3, 2), np.float32)}))
    {'wide': 6}
    """
    return {node.name: OPS[node.op].macs(node.attrs, graph.shapes[node.name]) for node in graph.linear_nodes}


# ---- checks ---------------------------------------------------------------------------------------------------


def _check(fits: bool, got: str, should: str, where: str) -> None:
    if not fits:
        raise ArgumentError(complaint(got, should, where))


def _check_input(spec: InputSpec, where: str) -> None:
    whole = all(type(size) is int and size >= 1 for size in spec.shape) and math.prod(spec.shape) <= LARGEST
    _check(whole, f"input shape {spec.shape}", "integers of at least 1 for each image", where)
    finite = all(math.isfinite(v) for v in (spec.scale, spec.mean, spec.std))
    got = f"scale={spec.scale}, mean={spec.mean}, std={spec.std}"
    _check(finite and spec.scale > 0 and spec.std > 0, got, "finite, scale and std above 0", f"input of {where}")


def _rules(node: Node) -> Op:
    _check(node.op in OPS, f"op {node.op!r}", f"one of {', '.join(OPS)}", f"node {node.name}")
    return OPS[node.op]


def _normal_node(node: Node) -> Node:
    """The node with its op's first spelling and its attributes in normal form."""
    node = replace(node, op=ALIASES.get(node.op, node.op), inputs=tuple(node.inputs), params=dict(node.params))
    try:
        return replace(node, attrs=_rules(node).read_attrs(node.attrs))
    except Misfit as misfit:
        raise ArgumentError(complaint(misfit.got, misfit.should, f"node {node.name}, {node.op}")) from None


def _normal_array(array: Array, name: str) -> Array:
    a = np.asarray(array)
    safe = a.dtype.kind in "fiu" and np.can_cast(a.dtype, np.float32, "safe")
    _check(safe, f"type {a.dtype}", "float32, or a type whose values float32 can hold", f"array {name}")
    held = np.ascontiguousarray(a, np.float32).view()
    _check(bool(np.isfinite(held).all()), "NaN or infinity", "finite values", f"array {name}")
    held.flags.writeable = False
    return held


def _normal_arrays(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: _normal_array(array, name) for name, array in arrays.items()}


def _infer_shapes(spec: InputSpec, nodes: tuple[Node, ...]) -> dict[str, Shape]:
    """The shape of every tensor, in order; also says that names are new and that inputs come first."""
    shapes = {spec.name: spec.shape}
    for node in nodes:
        where = f"node {node.name}, {node.op}"
        _check(node.name not in shapes, f"name {node.name!r} a second time", "a new name", where)
        for tensor in node.inputs:
            _check(tensor in shapes, f"input {tensor!r}", "the network's input or an earlier node", where)
        try:
            shapes[node.name] = _shape_of(node, [shapes[tensor] for tensor in node.inputs])
        except Misfit as misfit:
            raise ArgumentError(complaint(misfit.got, misfit.should, where)) from None
    return shapes


def _shape_of(node: Node, inputs: list[Shape]) -> Shape:
    op = OPS[node.op]
    least, most = op.arity
    should = f"{least}" if least == most else f"at least {least}"
    fit(least <= len(inputs) <= (most or len(inputs)), f"{len(inputs)} inputs", should)
    shape = op.shape(node.attrs, inputs)
    fit(math.prod(shape) <= LARGEST, f"an output of shape {shape} per image", f"of at most {LARGEST} elements")
    return shape


def _check_arrays(nodes: tuple[Node, ...], arrays: Mapping[str, Array]) -> None:
    """Every array that a node names is there and fits, and every array is named by some node."""
    for node in nodes:
        for got, should in _array_faults(node, arrays):
            raise ArgumentError(complaint(got, should, f"node {node.name}, {node.op}"))
    used = Counter(array for node in nodes for array in node.params.values())
    unused = [name for name in arrays if not used[name]]
    _check(not unused, f"array {', '.join(unused)}", "used by a node", "arrays")


def _array_faults(node: Node, arrays: Mapping[str, Array]) -> Iterator[tuple[str, str]]:
    wanted = OPS[node.op].params
    for role in [role for role in node.params if role not in wanted]:
        yield f"param {role!r}", f"one of {', '.join(wanted) or 'none'}"
    for role, param in wanted.items():
        if role not in node.params:
            if not param.optional:
                yield f"no param {role!r}", "given"
            continue
        name = node.params[role]
        if name not in arrays:
            yield f"array {name!r}, which is missing", f"one of {', '.join(arrays) or 'none'}"
            continue
        if arrays[name].shape != param.shape(node.attrs):
            yield f"{role} of shape {arrays[name].shape}", f"of shape {param.shape(node.attrs)}"
        if not param.signed and (arrays[name] < 0).any():
            yield f"{role} with values below 0", "at least 0"
