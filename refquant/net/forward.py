"""A network run on images: as trained (`float`), with the quantizers of a plan (`fake`), or on integers (`integer`).

A mode turns graph and plan into a program once; the program then runs batches of a fixed size, each on one
BLAS thread, side by side in worker threads.  So results are the same bytes for any number of workers.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.blas import one_blas_thread
from ..errors import ArgumentError, NotANumberError, complaint, instance_of, one_of
from .floating import fake_program, float_program
from .graph import Graph
from .integer import integer_program
from .plan import QuantPlan
from .program import Prepare, Program

__all__ = ["BATCH", "MODES", "forward"]

BATCH = 64
"""Images a batch: measured to be about the fastest, since the tensors of a batch then stay in cache."""

Trace: TypeAlias = dict[str, NDArray[Any]]


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
) -> NDArray[Any]: ...
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
) -> tuple[NDArray[Any], Trace]: ...
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
) -> NDArray[Any] | tuple[NDArray[Any], Trace]: ...
def forward(
    graph: Graph,
    x: ArrayLike,
    plan: QuantPlan | None = None,
    mode: str = "float",
    trace: bool = False,
    *,
    progress: Callable[[int], object] | None = None,
    workers: int | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], Trace]:
    """The network's outputs for a stack of images, shape (N, *output shape); row n is image n's.

    x: shape (N, *graph.input.shape), integers or floats in the units of the input entry (bytes, for the
    embedded networks): (x scale - mean) / std is always applied, in float32.  No images give no rows.
    mode: "float" runs the graph as it is, in float32, and takes no plan.  The others run the graph with batch
    norms folded (`fold_batch_norm`: a graph already folded stays as it is).  "fake" has the plan's weights in
    place of the graph's, and the plan's quantizers where a Conv or Gemm reads a tensor; everything else stays
    float32.  With a plan for an integer-only network (`plan.integer`), "fake" quantizes every tensor and every
    bias and computes in float64; "integer" does the same on integers alone (clauses N1 to N5), and its
    results are int32 codes.
    trace: also return all tensors by name, the transformed input first, as the nodes give them (before a
    reader's quantizer); with "fake" the names are those of the folded graph.
    progress: called in this thread with the number of images of each batch that is done (`tqdm.update`).
    workers: threads, by default one a processor; results are the same bytes for any number.

    Raises ArgumentError for an x of another shape or type or with an infinity, for an unknown mode, and for a
    plan that is missing, unwanted, or of another network; NotANumberError for an x with a NaN;
    CodeOverflowError for an accumulator or a bias that does not fit, where `plan.integer` says "raise".

    >>> from .graph import InputSpec, Node
    >>> double = Node("double", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> graph = Graph("twice", InputSpec("x", (1,), mean=1.0), "double", (double,), {"w": np.float32([[2]])})
    >>> forward(graph, [[1], [4]]).tolist()
    [[0.0], [6.0]]
    """
    images = _checked_images(graph, x)
    program = MODES[one_of(mode, MODES, "mode", "forward")](graph, plan)
    shapes = program.graph.shapes
    N, names = len(images), list(shapes) if trace else [program.graph.output]
    results: Trace = {name: np.empty((N, *shapes[name]), program.dtype) for name in names}

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


def _float(graph: Graph, plan: QuantPlan | None) -> Program:
    if plan is not None:
        raise ArgumentError(complaint("a plan", "none", "forward(mode='float')", "drop it, or say mode='fake'"))
    return float_program(graph)


def _with_plan(mode: str, prepare: Callable[[Graph, QuantPlan], Program]) -> Prepare:
    def row(graph: Graph, plan: QuantPlan | None) -> Program:
        return prepare(graph, instance_of(plan, QuantPlan, "plan", f"forward(mode={mode!r})"))

    return row


MODES: dict[str, Prepare] = {
    "float": _float,
    "fake": _with_plan("fake", fake_program),
    "integer": _with_plan("integer", integer_program),
}
"""From the name of a mode to what prepares its program."""
