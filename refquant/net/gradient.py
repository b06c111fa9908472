"""Derivatives of a network, or of a part of it: one interpreter forward, one back, one along tangents.

Letters: J the Jacobian of values by values; u a cotangent, v a tangent: J^T u (`pullback`) and J v (`pushforward`).

`run` evaluates the lines between some tensors and an output and keeps what their derivatives need.  All values,
tensors, arrays and the params of quantizers, have names, and derivatives are asked for and given by name.  A tensor
inside counts as a place where something may be added: its cotangent is the derivative by what is added there, its
tangent is added to what comes from before.  Rows of tensors are images, which do not mix, except in a batch norm in
training; cotangents of arrays are sums over images.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArgumentError, complaint
from .graph import Graph
from .op import Array, Params, Point, images_last
from .ops import OPS, TRAINING
from .ops_norm import Moments
from .wiring import Line, Through, lines_of

__all__ = ["Tape", "pullback", "pushforward", "run", "running_moments", "trained"]


class Tape(NamedTuple):
    """A run: its lines, the point at which each was evaluated, all values by name, and the name of the output's."""

    lines: tuple[Line, ...]
    points: Mapping[str, Point]
    values: Mapping[str, Array]
    result: str

    @property
    def output(self) -> Array:
        """The output, shape (N, ...)."""
        return self.values[self.result]


def trained(graph: Graph) -> tuple[str, ...]:
    """The names of the arrays that gradients train: all but the measured moments of batch norms.

    >>> from .graph import InputSpec, Node
    >>> names = {n: n for n in ("gamma", "beta", "mean", "var")}
    >>> node = Node("y", "BatchNorm", ("x",), {"channels": 1, "eps": 1.0}, names)
    >>> trained(Graph("norm", InputSpec("x", (1,)), "y", (node,), {n: np.ones(1, np.float32) for n in names}))
    ('gamma', 'beta')
    """
    pairs = (pair for node in graph.nodes for pair in node.params.items() if OPS[node.op].params[pair[0]].trained)
    return tuple(dict.fromkeys(array for _, array in pairs))


# ---- forward --------------------------------------------------------------------------------------------------


def run(
    graph: Graph,
    feeds: Mapping[str, ArrayLike],
    params: Params | None = None,
    *,
    output: str | None = None,
    through: Mapping[str, Through] | None = None,
    training: bool = False,
) -> Tape:
    """The part of a network from the fed tensors to the output, evaluated, with what derivatives need.

    feeds: by tensor name, float32 or float64, shape (N, *its shape); for the network's input, what `transform` makes
    of images.  Everything is computed in their type, from the same real weights.
    params: values in place of the graph's arrays, by name, and those that `through` names.  output: the name of a
    tensor, by default the network's output.
    through: what tensors and arrays are read through, by name (see `Through`), such as
    `Through(FAKE_QUANTIZE, {"spec": spec}, {"scale": "a", "zero_point": "b"})` with params "a" and "b".
    training: batch norms take the moments of the batch, and what they measured is left alone.

    Equal to `forward` up to rounding: a batch is computed together, so the last bits may depend on its size, as on
    BLAS and its threads (`arith.blas.one_blas_thread`).  64 to 128 images at a time are about the quickest.

    Raises ArgumentError for names, shapes and types that do not fit; what a quantizer raises.

    >>> from .graph import InputSpec, Node
    >>> y = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> graph = Graph("twice", InputSpec("x", (1,)), "z", (y, Node("z", "Relu", ("y",))), {"w": np.float32([[2]])})
    >>> tape = run(graph, {"x": np.array([[3.0], [-1.0]])})
    >>> tape.output.tolist()
    [[6.0], [0.0]]
    >>> pullback(tape, np.ones((2, 1)), ["w", "x"])
    {'w': array([[3.]]), 'x': array([[2.], [0.]])}
    >>> pushforward(tape, {"x": np.ones((2, 1))})
    {'z': array([[2.], [0.]])}
    """
    _keep_freed_memory()
    through = through or {}
    lines, result = lines_of(
        graph, list(feeds), output or graph.output, ops=TRAINING if training else OPS, through=through
    )
    values = _fed(graph, feeds)
    dtype = next(iter(values.values())).dtype
    given = _given(graph, params or {}, through)
    points = {}
    for line in lines:
        for name in line.sources.values():
            if name not in values:
                values[name] = _value(given, name, line, dtype)
        inputs = [values[name] for slot, name in line.sources.items() if isinstance(slot, int)]
        roles = {slot: values[name] for slot, name in line.sources.items() if isinstance(slot, str)}
        points[line.name] = line.op.at(line.attrs, roles, inputs)
        values[line.name] = points[line.name].output
    return Tape(lines, points, values, result)


def _keep_freed_memory() -> None:
    """Nothing, but glibc, having seen a block of 32 MiB freed, keeps up to 64 MiB for later (mallopt(3): dynamic).

    Else every run would get its memory from the system anew, page by page: steps of training took 1.4 times as long.
    """
    np.empty(2**25 - 2**13, np.uint8)


def _check(fits: bool, got: str, should: str, where: str) -> None:
    if not fits:
        raise ArgumentError(complaint(got, should, where))


def _fed(graph: Graph, feeds: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """The fed tensors, of one type, images last in memory."""
    arrays = {name: np.asarray(x) for name, x in feeds.items()}
    _check(bool(arrays), "no tensor", "at least one", f"run({graph.name}, feeds)")
    N = max(len(x) if x.ndim else 0 for x in arrays.values())
    for name, x in arrays.items():
        where, wanted = f"run({graph.name}), tensor {name}", (N, *graph.shapes[name])
        _check(x.shape == wanted, f"shape {x.shape}", f"{wanted}", where)
        _check(x.dtype.kind in "fc" and x.dtype.itemsize >= 4, f"type {x.dtype}", "float32 or float64", where)
    dtype = np.result_type(*arrays.values())
    return {name: images_last(x.astype(dtype, copy=False)) for name, x in arrays.items()}


def _given(graph: Graph, params: Params, through: Mapping[str, Through]) -> dict[str, Array]:
    """The graph's arrays, with params in their places, and the params that belong to what values are read through."""
    named = {name for way in through.values() for name in way.params.values()}
    unknown = [name for name in params if name not in graph.arrays and name not in named]
    got, should, where = (
        f"params {', '.join(unknown)}",
        "the graph's arrays, or named by `through`",
        f"run({graph.name})",
    )
    _check(not unknown, got, should, where)
    given = {name: np.asarray(v) for name, v in params.items()}
    for name, v in given.items():
        wanted = graph.arrays[name].shape if name in graph.arrays else v.shape
        _check(v.shape == wanted, f"shape {v.shape}", f"{wanted}", f"{where}, params of {name}")
    return {**graph.arrays, **given}


def _value(given: Params, name: str, line: Line, dtype: np.dtype[Any]) -> Array:
    _check(name in given, f"no value {name}", "given in params", f"line {line.name}")
    return given[name].astype(dtype, copy=False)


# ---- back, and along ------------------------------------------------------------------------------------------


def _checked(tape: Tape, moved: Mapping[str, ArrayLike], others: Collection[str], where: str) -> dict[str, Array]:
    """Cotangents or tangents in their values' type and shape; all names are those of values."""
    unknown = [name for name in [*moved, *others] if name not in tape.values]
    _check(not unknown, f"{', '.join(unknown)}", f"among the values of the run: {', '.join(tape.values)}", where)
    found = {}
    for name, given in moved.items():
        value, array = tape.values[name], np.asarray(given)
        _check(array.shape == value.shape, f"shape {array.shape}", f"{value.shape}", f"{where}, {name}")
        found[name] = array.astype(value.dtype, copy=False)
    return found


def _reaching(lines: Collection[Line], names: Collection[str]) -> set[str]:
    """The values that depend on the named ones, and these."""
    reached = set(names)
    for line in lines:
        if reached.intersection(line.sources.values()):
            reached.add(line.name)
    return reached


def pullback(tape: Tape, u: Mapping[str, ArrayLike] | ArrayLike, wanted: Collection[str]) -> dict[str, Array]:
    """J^T u: the derivative of the sum of u times their values, by each wanted value; of its shape and type.

    u: cotangents by the name of a value, or that of the output.  wanted: names of values, in any order; 0 where
    nothing leads from it to a u.  Only what leads from the wanted values is computed.
    Results may be read-only views, and share memory with each other.

    Raises ArgumentError for names and shapes that do not fit.  See `run` for an example.
    """
    given = _checked(tape, u if isinstance(u, Mapping) else {tape.result: u}, wanted, "pullback")
    live = _reaching(tape.lines, wanted)
    found = dict(given)
    for line in reversed(tape.lines):
        slots = [slot for slot, name in line.sources.items() if name in live]
        if line.name not in found or not slots:
            continue
        for slot, part in line.op.derivative.vjp(tape.points[line.name], found[line.name], slots).items():
            name = line.sources[slot]
            found[name] = found[name] + part if name in found else part
        if line.name not in wanted:
            del found[line.name]
    return {name: _of(tape.values[name], found.get(name)) for name in wanted}


def pushforward(tape: Tape, v: Mapping[str, ArrayLike], wanted: Collection[str] = ()) -> dict[str, Array]:
    """J v: how the wanted values move as the values of v move so, to first order; each of its value's shape and type.

    v: tangents by the name of a value; that of a tensor inside is added to what comes from before it.
    wanted: names of values, by default that of the output; 0 where none of v leads to it.

    Raises ArgumentError for names and shapes that do not fit.  See `run` for an example.
    """
    wanted = wanted or (tape.result,)
    moved = _checked(tape, v, wanted, "pushforward")
    for line in tape.lines:
        tangents = {slot: moved[name] for slot, name in line.sources.items() if name in moved}
        if tangents:
            step = line.op.derivative.jvp(tape.points[line.name], tangents)
            moved[line.name] = moved[line.name] + step if line.name in moved else step
    return {name: _of(tape.values[name], moved.get(name)) for name in wanted}


def _of(value: Array, derivative: Array | None) -> Array:
    return np.zeros_like(value) if derivative is None else derivative.astype(value.dtype, copy=False)


# ---- training -------------------------------------------------------------------------------------------------


def running_moments(tape: Tape, momentum: float = 0.1) -> dict[str, Array]:
    """The batch norms' `mean` and `var` after a run in training, by array name: (1 - momentum) old + momentum new.

    The new variance is the unbiased one, of L values L / (L - 1) times that which the batch was divided by
    (PyTorch's rule).  momentum=1 replaces the old ones.  Empty where no batch norm took the moments of some images.

    >>> from .graph import InputSpec, Node
    >>> names = {n: n for n in ("gamma", "beta", "mean", "var")}
    >>> node = Node("y", "BatchNorm", ("x",), {"channels": 1, "eps": 1.0}, names)
    >>> graph = Graph("norm", InputSpec("x", (1,)), "y", (node,), {n: np.ones(1, np.float32) for n in names})
    >>> running_moments(run(graph, {"x": np.array([[1.0], [3.0]])}, training=True), momentum=0.5)
    {'mean': array([1.5]), 'var': array([1.5])}
    """
    found = {}
    for line in tape.lines:
        seen = tape.points[line.name].memory
        if isinstance(seen, Moments) and seen.values:
            new = {"mean": seen.mean, "var": seen.var * (seen.values / max(1, seen.values - 1))}
            for role, moment in new.items():
                name = line.sources[role]
                found[name] = (1 - momentum) * tape.values[name] + momentum * moment
    return found
