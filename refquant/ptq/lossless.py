"""Any method on the complexity axis: sums of low-bit terms for weights and activations, from single-term to lossless.

Letters: b_w, b_a the bits of a term, T_w the terms of a channel's weights, T_a those of a tensor, F quality,
P = sum over layers of MACs b_w b_a T_w T_a, relative to one term throughout, P0 its limit.

A method alone gives one point.  Here counts are chosen first, then the method runs with them: it starts from sums of
T_w terms with joint scales and codes, and optimizes what it optimizes, so any row of `methods.METHODS` can be placed
anywhere.  The curve F(P) is what a study shows; its knob is continuous in practice, since a channel weighs little.

Counts: with errors taken to add up at the logits [model], channels that read tensor x choose T_w and the tensor chooses
T_a, min sum of e_w(T_w) + e_a(T_a) with P <= P0.  Costs multiply, so a tensor with its channels is one item: T_a and a
point of the channels' dual front.  That allocation is exact over these choices; then channels are allocated once more,
exactly, for the T_a found.

A tensor's T terms of b bits are the base-2^b digits of its code on one grid of T b bits, least digits last: sum over t
of scale 2^(b (T-t)) q_t.  So they are held as one quantizer of T b bits, whose P is the same.  A sum of 16 bits or more
covers twice the range that calibration images have: what other images have beyond it would err by more than rounding
does, and no term would mend that.  So with less than 6 bits a term, of which 3 are taken, what ranges cut remains; with
directed rounding, so does what the first term of a weight clips.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arith.blas import one_blas_thread
from ..errors import ArgumentError, complaint
from ..net.forward import forward
from ..net.plan import ActivationQuantizer, QuantPlan
from ..quant.multiterm import with_counts
from ..solve.allocate import allocate
from ..solve.hull import dual_front
from .multiterms import Axis, build_axis, terms_for
from .observe import activation_quantizers
from .task import Task

__all__ = [
    "LEVELS",
    "Placement",
    "Places",
    "digits",
    "find_places",
    "first_reached",
    "lossless_levels",
    "on_axis",
    "paired_interval",
]

Array = NDArray[np.float64]

MOST_ACTIVATION_TERMS = 3
AXIS_IMAGES = 256
"""How many images the tables are measured on."""

HEADROOM, HEADROOM_BITS = 2.0, 16
"""How many times the observed range the grids of sums of terms cover, from so many bits on."""

FRONT_POINTS = 48
"""Points of a dual front that compete, evenly spaced by cost."""


def digits(codes: NDArray[np.int64], bits: int, terms: int) -> NDArray[np.int64]:
    """The digits of codes in 0..2^(bits terms) - 1, the greatest first: shape (terms, *codes.shape).

    >>> digits(np.array([255, 18]), 4, 2).tolist()
    [[15, 1], [15, 2]]
    """
    shifts = bits * np.arange(terms)[::-1].reshape(-1, *(1,) * np.ndim(codes))
    return np.asarray((codes >> shifts) & (2**bits - 1))


def headroom(bits: int) -> float:
    """How many times the observed range the grid of a sum of terms covers, of so many bits together.

    >>> headroom(8), headroom(16)
    (1.0, 2.0)
    """
    return HEADROOM if bits >= HEADROOM_BITS else 1.0


# ---- what counts cost and err ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placement:
    """Counts: by node, those of weights (of the granularity's parameter shape); by tensor, those of activations.

    error: what the tables say of the squared error at the logits; operations: P relative to one term throughout.
    """

    weights: Mapping[str, NDArray[np.int64]]
    activations: Mapping[str, int]
    error: float
    operations: float


@dataclass(frozen=True, eq=False)
class Places:
    """All that placing a task needs: an axis for its weights, the error of each tensor alone, and its quantizers."""

    task: Task
    axis: Axis
    tensor_errors: Mapping[str, float]  # with one term
    quantizers: Sequence[Mapping[str, ActivationQuantizer]]  # with 1, 2, ... terms

    @cached_property
    def readers(self) -> dict[str, list[str]]:
        """By tensor, the nodes that read it."""
        found: dict[str, list[str]] = {}
        for node in self.task.graph.linear_nodes:
            found.setdefault(node.inputs[0], []).append(node.name)
        return found

    def _rows(self, tensor: str) -> NDArray[np.int64]:
        index = np.arange(len(self.axis.errors))
        return np.concatenate([index[self.axis.items[name]] for name in self.readers[tensor]])

    def tensor_error(self, tensor: str, terms: int) -> float:
        """The error of a tensor with so many terms: measured for one, then as the square of a code's step [model]."""
        bits = self.task.bits[1] or 0
        step = (headroom(bits * terms) if terms > 1 else 1.0) / 2.0 ** (bits * (terms - 1))
        return self.tensor_errors.get(tensor, 0.0) * step**2

    def _activation_terms(self, budget: float) -> dict[str, int]:
        errors, costs, choices = [], [], []
        for tensor in self.readers:
            rows = self._rows(tensor)
            front = dual_front(self.axis.errors[rows], self.axis.costs[rows])
            at = np.searchsorted(front.cost, np.linspace(front.cost[0], front.cost[-1], FRONT_POINTS))
            at = np.unique(np.minimum(at, len(front.cost) - 1))
            terms = range(1, len(self.quantizers) + 1)
            e = np.concatenate([front.error[at] + self.tensor_error(tensor, t) for t in terms])
            c = np.concatenate([front.cost[at] * t for t in terms])
            choices.append(np.repeat(list(terms), len(at)))
            short = FRONT_POINTS * len(terms) - len(e)  # filled up with a choice that no one takes
            errors.append(np.append(e, np.full(short, e.max())))
            costs.append(np.append(c, np.full(short, c.max())))
        found = allocate(np.stack(errors), np.stack(costs), budget * (1 + 1e-12), tol=1e-4).value
        return {
            tensor: int(which[min(k, len(which) - 1)])
            for tensor, which, k in zip(self.readers, choices, found.tolist(), strict=True)
        }

    def given(self, activations: Mapping[str, int], budget: float) -> Placement:
        """The placement of least tabulated error with these terms of activations.

        Raises ArgumentError where not even one term a weight is within the budget.
        """
        factor = np.ones(len(self.axis.errors))
        for tensor, terms in activations.items():
            factor[self._rows(tensor)] = terms
        costs = self.axis.costs * factor[:, None]
        found = allocate(self.axis.errors, costs, budget * (1 + 1e-12), tol=1e-4)
        weights = self.axis.by_node(found.value + 1)
        left = sum(self.tensor_error(tensor, terms) for tensor, terms in activations.items())
        spent = float(costs[np.arange(len(costs)), found.value].sum())
        return Placement(weights, dict(activations), float(found.objective) + left, spent)

    def place(self, budget: float) -> Placement:
        """The placement for a budget: P <= budget, relative to one term throughout.

        Raises ArgumentError for a budget below 1.
        """
        if not (np.isfinite(budget) and budget >= 1):
            raise ArgumentError(complaint(f"budget={budget}", "at least 1 (one term throughout)", "place"))
        ones = self.given(dict.fromkeys(self.readers, 1), budget)
        if len(self.quantizers) < 2:
            return ones
        return min(ones, self.given(self._activation_terms(budget), budget), key=lambda p: p.error)

    def placed(self, placement: Placement) -> Task:
        """The task with these counts: a method that runs it finds them in `terms` and in `activations`."""
        starts = {name: with_counts(self.axis.encodings[name], counts) for name, counts in placement.weights.items()}
        acts = {t: self.quantizers[placement.activations[t] - 1][t] for t in self.task.activations}
        return self.task.changed(terms=placement.weights, starts=starts, budget=None, activations=acts)


def find_places(
    task: Task, *, weight_terms: int = terms_for(1.0), activation_terms: int = MOST_ACTIVATION_TERMS
) -> Places:
    """The tables of a task: its weights in 1..`weight_terms` terms, and what each tensor's quantizer alone costs.

    Measured on the first 256 calibration images; no labels are used.
    """
    images = task.images[:AXIS_IMAGES]
    trace = {name: tensor[: len(images)] for name, tensor in task.trace.items()}
    spec = task.weight_spec
    logits = trace[task.graph.output].astype(np.float64)
    with one_blas_thread():
        axis = build_axis(
            task.graph, images, trace, task.activations, spec, task.encoding, task.progress, most=weight_terms
        )
        alone = {}
        for tensor, q in task.activations.items():
            made = forward(task.graph, images, QuantPlan(activations={tensor: q}), mode="fake")
            alone[tensor] = float(np.mean(np.sum((made.astype(np.float64) - logits) ** 2, axis=1)))
    quantizers: list[Mapping[str, ActivationQuantizer]] = [task.activations]
    one = task.activation_spec
    for terms in range(2, activation_terms + 1):
        if one is not None and one.bits * terms <= 24:  # as float32 tensors have digits
            fine = replace(one, bits=one.bits * terms)
            quantizers.append(activation_quantizers(task.graph, task.trace, fine, task.observer, headroom(fine.bits)))
    return Places(task, axis, alone, quantizers)


def on_axis(
    method: Callable[[Task], QuantPlan], activation_terms: int = MOST_ACTIVATION_TERMS
) -> Callable[[Task], QuantPlan]:
    """The method under the task's budget: its counts are placed, then it runs; without a budget, the method itself."""

    def run(task: Task) -> QuantPlan:
        if task.budget is None:
            return method(task)
        places = find_places(task, weight_terms=terms_for(task.budget), activation_terms=activation_terms)
        return method(places.placed(places.place(task.budget)))

    return run


# ---- levels of lossless ---------------------------------------------------------------------------------------


def paired_interval(right: NDArray[np.bool_], reference: NDArray[np.bool_]) -> tuple[float, float]:
    """The 95 % interval of the difference of two accuracies on the same images, in [-1, 1].

    Letters: N images; b those that only the reference has right, c those that only the other has.  To each of the four
    cells of the table that b and c are of, half an image is added, so that the interval has a width where b = c = 0.

    Source: Agresti and Min 2005 ("Wald+2").

    >>> [round(v, 3) for v in paired_interval(np.array([1, 1, 0, 1], bool), np.array([1, 1, 1, 1], bool))]
    [-0.609, 0.276]
    >>> [round(v, 4) for v in paired_interval(np.ones(10_000, bool), np.ones(10_000, bool))]
    [-0.0002, 0.0002]
    """
    b, c = np.sum(reference & ~right) + 0.5, np.sum(right & ~reference) + 0.5
    N = len(right) + 2
    middle = (c - b) / N
    half = 1.959964 * ((b + c - (b - c) ** 2 / N) ** 0.5) / N
    return max(-1.0, float(middle - half)), min(1.0, float(middle + half))


MARGIN = 0.005
"""Of equivalence: half a point."""


def _equivalent(logits: NDArray[Any], reference: NDArray[Any], labels: NDArray[Any]) -> bool:
    low, high = paired_interval(logits.argmax(axis=1) == labels, reference.argmax(axis=1) == labels)
    return -MARGIN <= low and high <= MARGIN


LEVELS: dict[str, Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], bool]] = {
    "equivalent": _equivalent,
    "class-equal": lambda z, r, y: bool(np.array_equal(z.argmax(axis=1), r.argmax(axis=1))),
    "logits-equal": lambda z, r, y: bool(np.array_equal(z, r)),
}
"""name -> whether logits reach a level against those of the float network, on a set with these labels: `equivalent`,
the interval of the difference in accuracy lies within half a point; `class-equal`, every class is the float network's;
`logits-equal`, bit for bit.  The last implies the one before it; neither implies the first, which of fewer than 390
images no network reaches."""


def lossless_levels(logits: NDArray[Any], reference: NDArray[Any], labels: NDArray[Any]) -> dict[str, bool]:
    """Which levels these logits reach on this set.

    >>> z = np.array([[1.0, 2.0]])
    >>> lossless_levels(z + 0.5, z, np.array([0]))  # of one image, an interval says little
    {'equivalent': False, 'class-equal': True, 'logits-equal': False}
    """
    return {name: level(logits, reference, labels) for name, level in LEVELS.items()}


def first_reached(points: Sequence[tuple[float, Mapping[str, bool]]]) -> dict[str, float | None]:
    """For each level the least complexity from which on every point of a curve reaches it; None if the last does not.

    points: (P, levels).  A measurement on the points given, not a search between them.

    >>> first_reached([(3.0, {"a": True}), (1.0, {"a": True}), (2.0, {"a": False})])
    {'a': 3.0}
    """
    ordered = sorted(points, key=lambda point: point[0])
    names = ordered[0][1] if ordered else {}
    found: dict[str, float | None] = {}
    for name in names:
        found[name] = None
        for P, levels in reversed(ordered):
            if not levels[name]:
                break
            found[name] = P
    return found
