"""A network run on images, in float32: as trained (`float`), or with the quantizers of a plan (`fake`).

A mode turns graph and plan into a program once; the program then runs batches of a fixed size, each on one
BLAS thread, side by side in worker threads.  So results are the same bytes for any number of workers.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.blas import one_blas_thread
from ..errors import ArgumentError, NotANumberError, complaint
from .fold import fold_batch_norm
from .graph import Graph, InputSpec, Node
from .op import Array, Params
from .ops import OPS
from .plan import QuantPlan

__all__ = ["BATCH", "MODES", "Program", "forward"]

BATCH = 64
"""Images a batch: measured to be about the fastest, since the tensors of a batch then stay in cache."""

Trace: TypeAlias = dict[str, NDArray[Any]]


class Program(NamedTuple):
    """What a mode makes of a graph and a plan: the graph it runs, and how it runs one batch.

    run: from a batch of raw images to the network's tensors, in order, as (name, array).
    """

    graph: Graph
    run: Callable[[NDArray[Any]], Iterator[tuple[str, NDArray[Any]]]]


Prepare: TypeAlias = Callable[[Graph, QuantPlan | None], Program]


# ---- the door -------------------------------------------------------------------------------------------------


@overload
def forward(
    graph: Graph,
    x: ArrayLike,
    plan: QuantPlan | None = None,
    mode: str = "float",
    trace: Literal[False] = False,
    *,
    progress: Callable[[int], object] | None = None,
    workers: int | None = None,
) -> Array: ...
@overload
def forward(
    graph: Graph,
    x: ArrayLike,
    plan: QuantPlan | None = None,
    mode: str = "float",
    *,
    trace: Literal[True],
    progress: Callable[[int], object] | None = None,
    workers: int | None = None,
) -> tuple[Array, Trace]: ...
@overload
def forward(
    graph: Graph,
    x: ArrayLike,
    plan: QuantPlan | None = None,
    mode: str = "float",
    trace: bool = False,
    *,
    progress: Callable[[int], object] | None = None,
    workers: int | None = None,
) -> Array | tuple[Array, Trace]: ...
def forward(
    graph: Graph,
    x: ArrayLike,
    plan: QuantPlan | None = None,
    mode: str = "float",
    trace: bool = False,
    *,
    progress: Callable[[int], object] | None = None,
    workers: int | None = None,
) -> Array | tuple[Array, Trace]:
    """The network's outputs for a stack of images, shape (N, *output shape), float32; row n is image n's.

    x: shape (N, *graph.input.shape), integers or floats in the units of the input entry (bytes, for the
    embedded networks): (x scale - mean) / std is always applied, in float32.  No images give no rows.
    mode: "float" runs the graph as it is and takes no plan.  "fake" runs the graph with batch norms folded
    (`fold_batch_norm`: a graph already folded stays as it is), the plan's weights in place of the graph's,
    and the plan's quantizers where a Conv or Gemm reads a tensor; everything else stays float32.
    trace: also return all tensors by name, the transformed input first, as the nodes give them (before a
    reader's quantizer); with "fake" the names are those of the folded graph.
    progress: called in this thread with the number of images of each batch that is done (`tqdm.update`).
    workers: threads, by default one a processor; results are the same bytes for any number.

    Raises ArgumentError for an x of another shape or type or with an infinity, for an unknown mode, and for a
    plan that is missing, unwanted, or of another network; NotANumberError for an x with a NaN.

    >>> double = Node("double", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> graph = Graph("twice", InputSpec("x", (1,), mean=1.0), "double", (double,), {"w": np.float32([[2]])})
    >>> forward(graph, [[1], [4]]).tolist()
    [[0.0], [6.0]]
    """
    images = _checked_images(graph, x)
    program = _row(mode)(graph, plan)
    shapes = program.graph.shapes
    N, names = len(images), list(shapes) if trace else [program.graph.output]
    results: Trace = {name: np.empty((N, *shapes[name]), np.float32) for name in names}

    def run(start: int) -> int:
        batch = slice(start, min(start + BATCH, N))
        for name, tensor in program.run(images[batch]):
            if name in results:
                results[name][batch] = tensor
        return batch.stop - batch.start

    with one_blas_thread(), ThreadPoolExecutor(_workers(workers)) as pool:
        for done in pool.map(run, range(0, N, BATCH)):
            if progress is not None:
                progress(done)
    logits = results[program.graph.output]
    return (logits, results) if trace else logits


def _row(mode: str) -> Prepare:
    if mode not in MODES:
        raise ArgumentError(complaint(f"mode={mode!r}", f"one of {', '.join(MODES)}", "forward"))
    return MODES[mode]


def _workers(workers: int | None) -> int:
    if workers is None:
        return os.cpu_count() or 1
    if type(workers) is not int or workers < 1:
        raise ArgumentError(complaint(f"workers={workers!r}", "an integer of at least 1", "forward"))
    return workers


def _checked_images(graph: Graph, x: ArrayLike) -> NDArray[Any]:
    images, shape = np.asarray(x), graph.input.shape
    if images.shape != (len(images) if images.ndim else 0, *shape):
        got = f"x of shape {images.shape}"
        raise ArgumentError(complaint(got, f"shape (N, {', '.join(map(str, shape))})", f"forward({graph.name})"))
    if images.dtype.kind not in "uif":
        raise ArgumentError(complaint(f"x of type {images.dtype}", "integers or floats", f"forward({graph.name})"))
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        nan = bool(np.isnan(images).any())
        kind, got = (NotANumberError, "NaN in x") if nan else (ArgumentError, "infinity in x")
        raise kind(complaint(got, "finite values", f"forward({graph.name})", "clean the images"))
    return images


# ---- the modes ------------------------------------------------------------------------------------------------


def _transform(spec: InputSpec, x: NDArray[Any]) -> Array:
    scale, mean, std = np.float32(spec.scale), np.float32(spec.mean), np.float32(spec.std)
    y: Array = (x.astype(np.float32) * scale - mean) / std
    return y


def _last_reads(graph: Graph) -> dict[str, list[str]]:
    """From the name of a node to the tensors that nobody reads after it."""
    last = {tensor: node.name for node in graph.nodes for tensor in (node.name, *node.inputs)}
    return {node.name: [tensor for tensor, reader in last.items() if reader == node.name] for node in graph.nodes}


def _program(
    graph: Graph, params: Mapping[str, Params], quantized: Callable[[str, Array], Array] = lambda tensor, x: x
) -> Program:
    """The float32 interpreter: params by node name; quantized gives a tensor as linear nodes read it."""
    no_longer_read = _last_reads(graph)

    def run(x: NDArray[Any]) -> Iterator[tuple[str, Array]]:
        values = {graph.input.name: _transform(graph.input, x)}
        as_read: dict[str, Array] = {}  # quantized once, however many nodes read it
        yield graph.input.name, values[graph.input.name]
        for node in graph.nodes:
            op = OPS[node.op]
            if op.linear:
                as_read |= {t: quantized(t, values[t]) for t in node.inputs if t not in as_read}
            source = as_read if op.linear else values
            values[node.name] = op.forward(node.attrs, params[node.name], [source[t] for t in node.inputs])
            yield node.name, values[node.name]
            for tensor in no_longer_read[node.name]:
                del values[tensor]
                as_read.pop(tensor, None)

    return Program(graph, run)


def _float(graph: Graph, plan: QuantPlan | None) -> Program:
    if plan is not None:
        raise ArgumentError(complaint("a plan", "none", "forward(mode='float')", "drop it, or say mode='fake'"))
    return _program(graph, {node.name: graph.params(node) for node in graph.nodes})


def _fake(graph: Graph, plan: QuantPlan | None) -> Program:
    if not isinstance(plan, QuantPlan):
        raise ArgumentError(complaint(f"plan={plan!r}", "a QuantPlan", "forward(mode='fake')"))
    graph = fold_batch_norm(graph)
    _check_names("weights", plan.weights, [node.name for node in graph.linear_nodes], graph)
    _check_names("activations", plan.activations, [t for node in graph.linear_nodes for t in node.inputs], graph)
    params = {node.name: {**graph.params(node), **_weight(graph, node, plan)} for node in graph.nodes}
    return _program(graph, params, plan.activation)


def _check_names(field: str, names: Mapping[str, object], known: list[str], graph: Graph) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        got, should = f"{field} of {', '.join(unknown)}", f"among {', '.join(dict.fromkeys(known))}"
        raise ArgumentError(complaint(got, should, f"plan for {graph.name}"))


def _weight(graph: Graph, node: Node, plan: QuantPlan) -> Params:
    """{"weight": the plan's weight of a node}, decoded; {} where the node keeps its own."""
    W = plan.weight(node.name)
    if W is None:
        return {}
    wanted = graph.param(node, "weight").shape
    if W.shape != wanted:
        raise ArgumentError(complaint(f"a weight of shape {W.shape}", f"{wanted}", f"plan for node {node.name}"))
    return {"weight": W}


MODES: dict[str, Prepare] = {"float": _float, "fake": _fake}
"""From the name of a mode to what prepares its program."""
