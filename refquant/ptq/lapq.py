"""LAPQ: scales by the calibration loss itself; Nahshan et al. 2021 (arXiv 1911.07190).

Letters: s the scales of all weights and activations, s(p) those of least |error|^p of each tensor alone, L the loss on
calibration images as a function of s, u the factors by which scales differ from s(2), one a tensor.

Four steps.
    1. s(p) for several p from 2 to 4: layer by layer, without the loss.
    2. A parabola through L(s(p)); its minimum p*, if it has one between 2 and 4, else the p of least L.
    3. From s(p*), Powell's conjugate directions on L, which needs no derivatives, as L has no useful ones.
    4. Throughout, the bias of every output channel makes up for the mean of what its weights' errors do to it.

Otherwise than the released code: calibration images are of the training split, which the code takes from the test
set; s(p) is the certified optimum (`solve_scale`), not what Brent's method meets; where a weight has many scales one
factor moves them all; with sums of terms, all scales of a channel; the grids are the task's, not mid-rise ones, and
what the code does to weights in step 4 (a shift of a whole channel, off the grid) is done to biases, by the mean input.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arith.blas import one_blas_thread
from ..net.forward import BATCH
from ..net.gradient import run
from ..net.graph import Node
from ..net.loss import Loss, cross_entropy, divergence
from ..net.op import Array
from ..net.ops_linear import patches
from ..net.plan import ActivationQuantizer, QuantPlan
from ..net.wiring import through_plan
from ..quant.multiterm import MultiTerm
from ..quant.quantizer import quantize
from ..solve.joint import Trajectory, minimize_scales
from ..solve.scale import solve_scale
from .activations import MOST_BITS
from .blocks import nearest_sums
from .reconstruct import forget, read_activations
from .task import Task

__all__ = ["Search", "Surface", "calibration_loss", "lapq", "search"]

POWERS = np.linspace(2, 4, 10)
"""The p of steps 1 and 2."""

SAMPLE = 4096
"""Values of an activation that its s(p) is found from, at an even stride."""

TOLERANCE = 1e-3
"""Relative gap at which the search for s(p) stops."""


# ---- the loss -------------------------------------------------------------------------------------------------


def calibration_loss(task: Task, plan: QuantPlan) -> float:
    """The mean loss of a plan over all calibration images: cross-entropy with the task's labels.

    Without labels it is KL(softmax of the float logits || softmax of the quantized ones), which is not the paper's.
    """
    relaxed = read_activations(plan.activations)
    params = {**relaxed.fixed, **through_plan(task.graph, replace(plan, activations={}))[1]}
    name, total = task.graph.input.name, 0.0
    x, logits = task.trace[name], task.trace[task.graph.output]
    with one_blas_thread():
        for start in range(0, len(x), BATCH):
            some = slice(start, start + BATCH)
            z = run(task.graph, {name: x[some]}, params, through=relaxed.through).output
            loss: Loss = divergence(z, logits[some]) if task.labels is None else cross_entropy(z, task.labels[some])
            total += loss.value * len(z)
    return total / len(x)


# ---- the surface ----------------------------------------------------------------------------------------------


def mean_patch(task: Task, node: Node) -> NDArray[np.float64]:
    """The mean over images and positions of what an output of the node reads, in the float network; (groups, K)."""
    x = task.trace[node.inputs[0]]
    parts = [patches(node.attrs, x[i : i + BATCH]).sum(axis=(0, 3), dtype=np.float64) for i in range(0, len(x), BATCH)]
    positions = patches(node.attrs, x[:1]).shape[3]
    return np.asarray(np.sum(parts, axis=0) / (len(x) * positions))


def requantized(w: Array, sums: MultiTerm, factor: NDArray[np.float64] | float) -> MultiTerm:
    """The weight on the scales of a sum times a factor, of the parameters' shape: each value the nearest sum.

    With directed rounding the terms are rounded one by one, each to what is left.

    >>> from ..quant.spec import QuantSpec
    >>> one = MultiTerm(np.array([[1, -1]]), np.array([0.5]), (QuantSpec(3),), np.array(1))
    >>> requantized(np.array([0.5, -0.5]), one, 0.5).codes.tolist()
    [[2, -2]]
    """
    scales = (sums.scales * factor).astype(sums.scales.dtype)
    if sums.terms > 1 and sums.specs[0].rounding.startswith("half_"):
        codes = nearest_sums(w, replace(sums, scales=scales))
        return replace(sums, codes=codes.astype(sums.codes.dtype), scales=scales)
    spread, each = sums.specs[0].granularity.spread, []
    left = w.astype(np.float64)
    for t, spec in enumerate(sums.specs):
        q = np.where(t < spread(sums.counts, sums.shape), quantize(left, scales[t], spec=spec), 0)
        left = left - q * spread(scales[t], sums.shape).astype(np.float64)
        each.append(q)
    return replace(sums, codes=np.stack(each).astype(sums.codes.dtype), scales=scales)


class Surface:
    """The loss as a function of one factor a tensor: `names` are those of nodes (weights), then of tensors read.

    weights, activations: at factor 1.  squares: the weights' scales of least squared error, one term.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        nodes = task.graph.linear_nodes
        self.weights = {node.name: task.encode(node) for node in nodes}
        self.activations = dict(task.activations)
        self.means = {node.name: mean_patch(task, node) for node in nodes}
        self.squares = {node.name: least(task, node, 2.0) for node in nodes}
        self.names = [*self.weights, *self.activations]

    def bias(self, node: Node, sums: MultiTerm) -> NDArray[np.float32]:
        """The node's bias less the mean of what its weights' errors add to its outputs (step 4)."""
        m = self.means[node.name]
        error = (sums.decode(np.float64) - self.task.weight(node)).reshape(len(m), -1, m.shape[1])
        shift = (error @ m[:, :, None]).reshape(-1)
        return np.asarray(self.task.bias(node) - shift, np.float32)

    def plan(self, factors: NDArray[np.float64]) -> QuantPlan:
        """The plan whose scales are these times those at factor 1, codes nearest."""
        by = dict(zip(self.names, factors, strict=True))
        nodes = self.task.graph.linear_nodes
        weights = {
            node.name: requantized(self.task.weight(node), self.weights[node.name], by[node.name]) for node in nodes
        }
        return QuantPlan(
            weights,
            {
                tensor: ActivationQuantizer(q.spec, np.asarray(q.scale * by[tensor], np.float32), q.zero_point)
                for tensor, q in self.activations.items()
            },
            biases={node.name: self.bias(node, weights[node.name]) for node in nodes},
        )

    def __call__(self, factors: NDArray[np.float64]) -> float:
        """L at these factors."""
        return calibration_loss(self.task, self.plan(factors))


# ---- s(p) -----------------------------------------------------------------------------------------------------


def _best(x: Array, q: ActivationQuantizer, p: float) -> NDArray[Any]:
    """The scale of least |error|^p; as observed beyond `MOST_BITS`, where little is left to gain."""
    if q.spec.bits > MOST_BITS:
        return q.scale
    values = x.ravel()[:: max(1, x.size // SAMPLE)]
    values = values[values != 0]  # a code: no scale errs there
    spec = replace(q.spec, quotient="exact", zero_point_order="after")
    return solve_scale(values, spec=spec, objective="power", p=p, tol=TOLERANCE, zero_point=q.zero_point).value


def least(task: Task, node: Node, p: float) -> NDArray[np.float64]:
    """The scales of least |error|^p of a weight, one term."""
    return solve_scale(task.weight(node), spec=task.weight_spec, objective="power", p=p, tol=TOLERANCE).value


def fitted(surface: Surface, p: float) -> Surface:
    """The surface whose factors 1 are s(p); every term of a channel is scaled as its one-term optimum is from p = 2."""
    task, other = surface.task, copy(surface)
    other.weights = {
        node.name: requantized(
            task.weight(node), surface.weights[node.name], least(task, node, p) / surface.squares[node.name]
        )
        for node in task.graph.linear_nodes
    }
    other.activations = {
        tensor: ActivationQuantizer(q.spec, np.asarray(_best(task.trace[tensor], q, p), np.float32), q.zero_point)
        for tensor, q in surface.activations.items()
    }
    return other


# ---- the method -----------------------------------------------------------------------------------------------


class Search(NamedTuple):
    """What LAPQ saw: powers p and the loss at each s(p); p* and whether the parabola gave it; Powell's trajectory.

    plan: the best one.
    """

    powers: NDArray[np.float64]
    losses: NDArray[np.float64]
    power: float
    fitted: bool
    trajectory: Trajectory
    plan: QuantPlan


def least_power(powers: NDArray[np.float64], losses: NDArray[np.float64]) -> tuple[float, bool]:
    """Where the parabola through the losses has its minimum, and True; else the power of least loss, and False.

    It has none where it opens downwards, or one beyond the powers.

    >>> p = np.array([2.0, 3.0, 4.0])
    >>> least_power(p, (p - 2.5) ** 2), least_power(p, -p), least_power(p, (p - 9) ** 2)
    ((2.5, True), (4.0, False), (4.0, False))
    """
    a, b, _ = np.polyfit(powers, losses, 2)
    if a > 0 and powers.min() <= -b / (2 * a) <= powers.max():
        return float(np.round(-b / (2 * a), 12)), True
    return float(powers[np.argmin(losses)]), False


def search(
    task: Task,
    *,
    driver: str = "powell",
    rounds: int = 2,
    evaluations: int = 400,
    start: float | None = None,
    done: Sequence[float] | None = None,
    keep: Callable[[tuple[float, ...]], object] = forget,
) -> Search:
    """LAPQ with all that it saw on the way.

    driver: a name of `solve.joint.DRIVERS`; rounds, evaluations: its limits.  start: a p in place of p*.
    keep: called with all losses so far, after each.  done: those of an earlier run of the same task that was broken
    off: where scales go next depends on losses alone, so the search passes the same points without computing them
    again, and its result is that of an unbroken run.

    Raises ArgumentError for an unknown driver and a p outside 1..4.
    """
    surface, known = Surface(task), tuple(done or ())
    seen: list[float] = []

    def recalled(loss: Callable[[Any], float], at: Any) -> float:
        """The loss at a point, computed unless it is known."""
        seen.append(known[len(seen)] if len(seen) < len(known) else loss(at))
        if len(seen) > len(known):
            keep(tuple(seen))
        return seen[-1]

    losses = []
    for k, p in enumerate(POWERS if start is None else ()):
        losses.append(recalled(lambda p: _at_one(fitted(surface, p)), float(p)))
        task.progress("fitting p", k + 1, len(POWERS))
    power, parabola = least_power(POWERS, np.array(losses)) if start is None else (start, False)
    from_here = fitted(surface, power)

    def loss(factors: NDArray[np.float64]) -> float:
        task.progress("moving scales", min(len(seen) - len(losses) + 1, evaluations), evaluations)
        return recalled(from_here, factors)

    found = minimize_scales(loss, np.ones(len(surface.names)), method=driver, rounds=rounds, evaluations=evaluations)
    powers = POWERS if start is None else np.array([])
    return Search(powers, np.array(losses), power, parabola, found, from_here.plan(found.scales))


def _at_one(surface: Surface) -> float:
    return surface(np.ones(len(surface.names)))


def lapq(
    task: Task,
    *,
    driver: str = "powell",
    rounds: int = 2,
    evaluations: int = 400,
    done: Sequence[float] | None = None,
    keep: Callable[[tuple[float, ...]], object] = forget,
) -> QuantPlan:
    """The plan that LAPQ finds; with `task.labels` by the cross-entropy, as in the paper, else without labels.

    Arguments and errors are those of `search`.

    >>> from ..net.graph import Graph, InputSpec
    >>> from .task import make_task
    >>> y = Node("y", "Gemm", ("x",), {"in_features": 3, "out_features": 2}, {"weight": "w"})
    >>> graph = Graph("classes", InputSpec("x", (3,)), "y", (y,), {"w": np.float32([[1, -0.4, 0.3], [-1, 0.2, 0.7]])})
    >>> plan = lapq(make_task(graph, np.eye(3), labels=[0, 1, 1], bits=(3, 4)), evaluations=3)
    >>> sorted(plan.weights), plan.weights["y"].codes.shape, sorted(plan.biases)
    (['y'], (1, 2, 3), ['y'])
    """
    return search(task, driver=driver, rounds=rounds, evaluations=evaluations, done=done, keep=keep).plan
