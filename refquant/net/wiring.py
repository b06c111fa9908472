"""A part of a network as lines: each names a value and says of which values, by which op, it is made.

Tensors and arrays are values alike, by their names in the graph.  Where a value is read through a quantizer (or any
other op of one input), that is a line too, and its value is called `NAME:read`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import ArgumentError, complaint
from .edges import check_names
from .graph import Graph, Node
from .op import Array, Attrs, Misfit, Op, Slot
from .ops import OPS
from .ops_quantize import FAKE_QUANTIZE
from .plan import QuantPlan

__all__ = ["Line", "Through", "lines_of", "through_plan"]


@dataclass(frozen=True)
class Through:
    """What a tensor or an array is read through: an op of one input, its attributes, the names of its params.

    params: from the op's name of a param to the name of a value that is given with the run.
    everywhere: a tensor is replaced for all who read it and for the output; else only where a Conv or Gemm reads
    it, as in `QuantPlan.activations`.  An array is replaced for all its readers.
    """

    op: Op
    attrs: Attrs = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    everywhere: bool = False


class Line(NamedTuple):
    """The value `name`: the op of the values `sources`, by slot, inputs (0, 1, ...) in order before params."""

    name: str
    op: Op
    attrs: Attrs
    sources: Mapping[Slot, str]


def _check(fits: bool, got: str, should: str, graph: Graph) -> None:
    if not fits:
        raise ArgumentError(complaint(got, should, f"a part of {graph.name}"))


def _needed(graph: Graph, inputs: Collection[str], output: str) -> list[Node]:
    """The nodes between the input tensors and the output, in order."""
    wanted, nodes = {output}, []
    for node in reversed(graph.nodes):
        if node.name in wanted and node.name not in inputs:
            nodes.append(node)
            wanted |= set(node.inputs)
    start = graph.input.name
    got = f"input tensors {', '.join(inputs) or 'none'}"
    _check(start not in wanted or start in inputs, got, f"enough for {output}, which also depends on {start}", graph)
    return nodes[::-1]


def lines_of(
    graph: Graph,
    inputs: Collection[str],
    output: str,
    *,
    ops: Mapping[str, Op] = OPS,
    through: Mapping[str, Through] | None = None,
) -> tuple[tuple[Line, ...], str]:
    """The lines that make the output from the input tensors, in order, and the name of the output's value.

    inputs, output: names of tensors.  ops: from the name of an op to its rules (`OPS`, or `TRAINING`).
    through: by the name of a tensor or an array; what the part does not read is left out.

    Raises ArgumentError for a name that the graph has not, or has for a tensor and for an array; where the output
    depends on the network's input by a way that avoids the inputs; and for what `through` says that does not fit.

    >>> from .graph import InputSpec
    >>> import numpy as np
    >>> y = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> graph = Graph("twice", InputSpec("x", (1,)), "z", (y, Node("z", "Relu", ("y",))), {"w": np.float32([[2]])})
    >>> [(line.name, dict(line.sources)) for line in lines_of(graph, ["x"], "z")[0]]
    [('y', {0: 'x', 'weight': 'w'}), ('z', {0: 'y'})]
    """
    through = through or {}
    both, known = set(graph.shapes) & set(graph.arrays), {*graph.shapes, *graph.arrays}
    _check(not both, f"{', '.join(sorted(both))} for a tensor and for an array", "one name for one thing", graph)
    unknown = [name for name in [*inputs, output] if name not in graph.shapes]
    unknown += [name for name in through if name not in known]
    _check(not unknown, f"{', '.join(unknown)}", f"among {', '.join(graph.shapes)} (or an array, if through)", graph)
    named = [name for way in through.values() for name in way.params.values() if name in graph.shapes]
    _check(not named, f"params {', '.join(named)}", "called otherwise than a tensor", graph)
    lines: dict[str, Line] = {}

    def read(name: str, linear: bool) -> str:
        """The name of the value that a reader of a value sees."""
        if name not in through or not (linear or name in graph.arrays or through[name].everywhere):
            return name
        seen = f"{name}:read"
        _check(seen not in known, f"a value of the name {seen}", f"no such name beside {name}", graph)
        if seen not in lines:
            lines[seen] = _through(seen, name, through[name])
        return seen

    for node in _needed(graph, inputs, output):
        op = ops[node.op]
        sources: dict[Slot, str] = {i: read(tensor, op.linear) for i, tensor in enumerate(node.inputs)}
        sources |= {role: read(array, op.linear) for role, array in node.params.items()}
        lines[node.name] = Line(node.name, op, node.attrs, sources)
    result = read(output, False)
    return tuple(lines.values()), result


def _through(seen: str, name: str, way: Through) -> Line:
    try:
        attrs = way.op.read_attrs(way.attrs)
    except Misfit as misfit:
        raise ArgumentError(complaint(misfit.got, misfit.should, f"what {name} is read through")) from None
    got, should = f"params {', '.join(way.params) or 'none'}", ", ".join(way.op.params) or "none"
    if set(way.params) != set(way.op.params):
        raise ArgumentError(complaint(got, should, f"what {name} is read through"))
    if way.op.arity[0] != 1:
        raise ArgumentError(complaint(f"an op of {way.op.arity[0]} inputs", "of one", f"what {name} is read through"))
    sources: dict[Slot, str] = {0: name}
    sources.update(way.params.items())
    return Line(seen, way.op, attrs, sources)


def _own(graph: Graph, name: str, role: str) -> str:
    """The name of an array that this node has in this role and no other slot has."""
    array = graph.node(name).params.get(role, "")
    uses = sum(other == array for node in graph.nodes for other in node.params.values())
    _check(uses == 1, f"{uses} slots with the array of {role} of {name}", "one, in a plan's run", graph)
    return array


def through_plan(graph: Graph, plan: QuantPlan) -> tuple[dict[str, Through], dict[str, Array]]:
    """What a plan's tensors are read through, and the params: then a run is `forward` with mode "fake".

    That is up to rounding, which may move a value next to a tie over it.  graph: batch norms folded.  Params are the
    plan's weights, decoded, and biases, by the names of the graph's arrays, and scales and zero points of tensors as
    `TENSOR.scale` and `TENSOR.zero_point`.  To move a weight's own scale, read it through `FAKE_QUANTIZE`, or its
    codes through `DEQUANTIZE`.

    Raises ArgumentError for a plan of another network, for one that is for an integer-only network, and for a weight
    or a bias whose node has no array of its own for it (`with_biases` gives it one).

    >>> import numpy as np
    >>> from ..quant.spec import QuantSpec
    >>> from .graph import InputSpec
    >>> from .plan import ActivationQuantizer
    >>> y = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> graph = Graph("twice", InputSpec("x", (1,)), "y", (y,), {"w": np.float32([[2]])})
    >>> plan = QuantPlan(activations={"x": ActivationQuantizer(QuantSpec(2), np.array(0.5), np.array(0))})
    >>> through, params = through_plan(graph, plan)
    >>> dict(through["x"].params), {name: value.tolist() for name, value in params.items()}
    ({'scale': 'x.scale', 'zero_point': 'x.zero_point'}, {'x.scale': 0.5, 'x.zero_point': 0})
    """
    check_names(graph, plan)
    _check(plan.integer is None, "a plan for an integer-only network", "one whose biases and sums stay real", graph)
    params = {_own(graph, name, "weight"): terms.decode() for name, terms in plan.weights.items()}
    params |= {_own(graph, name, "bias"): bias for name, bias in plan.biases.items()}
    through = {}
    for tensor, q in plan.activations.items():
        names = {"scale": f"{tensor}.scale", "zero_point": f"{tensor}.zero_point"}
        through[tensor] = Through(FAKE_QUANTIZE, {"spec": q.spec}, names)
        params |= {names["scale"]: q.scale, names["zero_point"]: q.zero_point}
    clash = [name for way in through.values() for name in way.params.values() if name in graph.arrays]
    _check(not clash, f"arrays {', '.join(clash)}", "none called like a tensor's scale or zero point", graph)
    return through, params
