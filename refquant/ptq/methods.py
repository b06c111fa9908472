"""Post-training quantization of a whole network: a table of methods behind one door."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.blas import one_blas_thread
from ..errors import ArgumentError, complaint, one_of
from ..net.graph import Graph
from ..net.plan import QuantPlan
from ..quant.granularity import Granularity, PerChannel
from ..quant.integer_spec import IntegerSpec
from ..quant.spec import QuantSpec
from .adaquant import adaquant
from .bias_correction import correct_biases
from .brecq import blockwise, brecq
from .distill import blockwise_distilled
from .equalize import on_equalized
from .integer import integer_plan
from .lapq import lapq
from .lossless import on_axis
from .multipoint import multipoint
from .multiterms import Axis, build_axis, terms_for
from .resume import resumable, state_in
from .sequential import FORMS, sequential
from .task import Progress, Task, make_task, silent

__all__ = ["BUDGETED", "ENCODINGS", "METHODS", "Calibrated", "Method", "calibrate", "quantize_network", "run_method"]

ENCODINGS: dict[str, tuple[str, str]] = {  # name -> encoding of terms: rounding to nearest, directed rounding
    "certified": ("joint", "greedy"),
    "absmax": ("greedy-absmax", "greedy-absmax"),
}
"""Methods that encode each weight alone: `certified` (scales of least squared error, terms joint), `absmax` (largest
magnitude / qmax)."""

AXIS_IMAGES = 256
"""How many images the complexity axis of these methods is built from."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A folded network with what its calibration images said."""

    graph: Graph
    axis: Axis
    images: NDArray[Any]
    trace: Mapping[str, NDArray[np.float32]]


def calibrate(
    graph: Graph,
    calibration: ArrayLike,
    *,
    method: str,
    bits: tuple[int, int | None],
    granularity: Granularity,
    profile: str,
    observer: str = "minmax",
    budget: float = 1.0,
    progress: Progress | None = None,
) -> Calibrated:
    """Fold, observe, and encode every weight with every number of terms that the budget makes worth a look.

    Raises ArgumentError for an unknown method or observer and for no calibration images.
    """
    one_of(method, ENCODINGS, "method", "quantize_network")
    task = make_task(
        graph,
        np.asarray(calibration)[:AXIS_IMAGES],
        bits=bits,
        granularity=granularity,
        profile=profile,
        observer=observer,
        budget=budget,
        progress=progress or silent,
    )
    return _calibrated(task, method)


def _calibrated(task: Task, method: str) -> Calibrated:
    spec = task.weight_spec
    with one_blas_thread():
        axis = build_axis(
            task.graph,
            task.images,
            task.trace,
            task.activations,
            spec,
            _encoding(method, spec),
            task.progress,
            most=terms_for(task.budget or 1.0),
        )
    return Calibrated(task.graph, axis, task.images, task.trace)


def _encoding(method: str, spec: QuantSpec) -> str:
    return ENCODINGS[method][0 if spec.rounding.startswith("half_") else 1]


# ---- the table, and the door ----------------------------------------------------------------------------------

Method = Callable[[Task], QuantPlan]


def _first(task: Task) -> Task:
    return task.changed(images=task.images[:AXIS_IMAGES], labels=None)


def _encoded(method: str, task: Task) -> QuantPlan:
    """Each weight encoded alone, in the terms that the budget allows."""
    axis = _calibrated(_first(task), method).axis
    return axis.plan(axis.allocate(task.budget or 1.0).value)


def _bias_corrected(task: Task) -> QuantPlan:
    """Each weight encoded alone, then biases corrected by calibration images."""
    return correct_biases(task, QuantPlan({n.name: task.encode(n) for n in task.graph.linear_nodes}, task.activations))


def _equalized(task: Task) -> QuantPlan:
    """Channels equalized, each weight encoded alone, then biases corrected; activations have one term."""
    return on_axis(lambda placed: on_equalized(placed.changed(starts={}), _bias_corrected), activation_terms=1)(task)


METHODS: dict[str, Method] = {
    **{name: partial(_encoded, name) for name in ENCODINGS},
    "lapq": lapq,
    "adaquant": adaquant,
    "bias-corrected": _bias_corrected,
    "equalized": _equalized,
    "multipoint": multipoint,
    **{form: partial(sequential, form=form) for form in FORMS},
    "brecq": brecq,
    "blockwise": blockwise,
    "blockwise-distilled": blockwise_distilled,
}
"""name -> the method: from a task to a plan."""

BUDGETED = (*ENCODINGS, "multipoint", "equalized")
"""Those that spend a budget themselves; for the others `lossless.on_axis` places the terms first."""


def run_method(method: str, task: Task, resume: str | os.PathLike[str] | None = None) -> QuantPlan:
    """The plan of a method, under the task's budget if it has one.

    resume: a folder where the methods of `resume.STATES` keep what they have done, and from where they go on.

    Raises what `resume.state_in` raises.
    """
    run: Callable[..., QuantPlan] = METHODS[method]
    if resume is not None:
        done, keep = state_in(resume, method, task)
        run = partial(run, done=done, keep=keep)
    return run(task) if method in BUDGETED else on_axis(run)(task)


def quantize_network(
    graph: Graph,
    calibration: ArrayLike,
    *,
    method: str = "certified",
    bits: tuple[int, int | None] = (4, 8),
    granularity: Granularity = PerChannel(0),  # noqa: B008 (frozen, without state)
    profile: str = "seed-nearest@1",
    budget: float | None = None,
    labels: ArrayLike | None = None,
    seed: int = 0,
    integer: IntegerSpec | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> QuantPlan:
    """A plan for the network: weights as sums of low-bit terms, activations with zero points.

    method: a name of `METHODS`.  calibration: images in the units of the graph's input entry; labels: their classes,
    which only some methods use.  bits: of weights and activations (None leaves activations float).  profile: the
    semantics of activations; weights, which are encoded offline, take its grid and rounding with an exact quotient.
    budget: bit operations relative to one term throughout, at least 1; None means one term a weight.  seed: for
    methods that draw random numbers.
    integer: the plan is for an integer-only network of these semantics (`forward(mode="integer")`): every
    tensor is quantized, one term a weight; by the methods that encode each weight alone.
    resume: a folder where the longer methods (`refquant.ptq.resume.STATES`) keep what they have done; one
    that was broken off goes on from there, with the same result to the bit.
    progress: called with what is being done, how much of it is done, and how much there is.

    Raises ArgumentError for unknown names, no images, a budget below 1, for an integer-only network with a budget,
    with float activations or with another method, and for `resume` with a method that keeps nothing; FileError for
    a state that belongs to other arguments.

    >>> from refquant.zoo import load_data, load_network
    >>> plan = quantize_network(load_network("mlp"), load_data("fashion-mnist").calibration.x[:8], budget=1.5)
    >>> sorted(plan.weights), plan.weights["gemm3"].specs[0].bits
    (['gemm1', 'gemm2', 'gemm3'], 4)
    """
    one_of(method, METHODS, "method", "quantize_network")
    if resume is not None:
        resumable(method, "quantize_network")
    if budget is not None and not (isinstance(budget, Real) and np.isfinite(budget) and budget >= 1):
        raise ArgumentError(complaint(f"budget={budget!r}", "at least 1 (one term throughout)", "quantize_network"))
    task = make_task(
        graph,
        calibration,
        labels=labels,
        bits=bits,
        granularity=granularity,
        profile=profile,
        budget=budget,
        seed=seed,
        progress=progress or silent,
    )
    if integer is None:
        return run_method(method, task, resume)
    if budget is not None or bits[1] is None or method not in ENCODINGS:
        got = f"budget={budget}, activation bits {bits[1]}, method={method!r}"
        should = f"None, 2 to 16, one of {', '.join(ENCODINGS)}"
        raise ArgumentError(complaint(got, should, "quantize_network(integer=...)"))
    return integer_plan(_first(task), encoding=_encoding(method, task.weight_spec), integer=integer)
