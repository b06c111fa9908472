"""Multipoint quantization: a channel as a sum of low-bit points, more points where its output errs most.

Letters: w a channel, r what its points so far leave, a point = coefficient a times codes in {-L..L}, n points,
e the channel's output error on calibration images, eta its threshold.

Points are found greedily: a_i and codes of least |r_i - a_i q_i|_2, the next from what is left.  For a fixed a the
codes are the nearest, and |r - a [r/a]|^2 is least at a known, finite number of places: the paper searches a grid of
a; here it is the certified scale (`solve.scale`), which no grid can better.
A channel gets as few points as bring e = sqrt(mean over images of sum over positions of ((w - w^) x)^2) to at most
eta.  Under a budget, eta is the least threshold whose bit operations stay within it.

[proved, proofs/05_terms.py] Each point lowers |r|^2 by |r|_inf^2 at least, so |r_n|_2 <= (1 - 1/d)^(n/2) |w|_2.

Source: Liu et al. 2021 (Post-training Quantization with Multiple Points, arXiv 2002.09049), sections 3 and 4.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, complaint
from ..net.graph import Node, macs
from ..net.plan import QuantPlan
from ..quant.granularity import PerTensor
from ..quant.multiterm import MultiTerm, with_counts
from ..solve.terms import encode_each
from .multiterms import terms_for
from .observe import output_errors, second_moment
from .task import Task

__all__ = ["MOST_POINTS", "multipoint", "point_errors", "points_for_budget", "points_for_threshold"]

Array = NDArray[np.float64]

MOST_POINTS = 6


def points_of(task: Task, node: Node, most: int = MOST_POINTS) -> list[MultiTerm]:
    """The node's weight as 1, 2, ... points; the first ones of each are those of the one before."""
    spec = replace(task.weight_spec, narrow=True)
    return encode_each(task.weight(node), spec=spec, terms=most, method="greedy")


def point_errors(task: Task, node: Node, points: list[MultiTerm]) -> Array:
    """e of every channel (or of the layer, with one scale a tensor) for every number of points; shape (items, n)."""
    C = second_moment(node, task.trace[node.inputs[0]])
    squares = np.stack([output_errors(p.decode() - task.weight(node), C) for p in points], axis=1)
    if task.granularity == PerTensor():
        squares = squares.sum(axis=0, keepdims=True)
    return np.sqrt(squares)


def points_for_threshold(errors: Array, eta: float) -> NDArray[np.int64]:
    """The fewest points with an error of at most eta, for each row of errors; all of them where none is enough.

    >>> points_for_threshold(np.array([[3.0, 1.0, 0.1], [0.5, 0.4, 0.3], [9.0, 8.0, 7.0]]), 1.0).tolist()
    [2, 1, 3]
    """
    enough = errors <= eta
    return np.asarray(np.where(enough.any(axis=1), enough.argmax(axis=1) + 1, errors.shape[1]), np.int64)


def points_for_budget(errors: Array, costs: Array, budget: float) -> tuple[NDArray[np.int64], float]:
    """The points for the least threshold whose total cost is within the budget, and that threshold.

    errors: shape (items, n).  costs: shape (items,), of one point each.  The cost falls as eta rises, and changes at
    errors only, so a bisection over them finds it.

    >>> points_for_budget(np.array([[3.0, 1.0], [2.0, 0.5]]), np.array([1.0, 1.0]), 3.0)
    (array([2, 1]), 2.0)
    """
    etas = np.unique(errors)
    low, high = 0, len(etas) - 1  # at the largest every item has one point
    while low < high:
        middle = (low + high) // 2
        if float(points_for_threshold(errors, etas[middle]) @ costs) <= budget * (1 + 1e-12):
            high = middle
        else:
            low = middle + 1
    return points_for_threshold(errors, float(etas[high])), float(etas[high])


def multipoint(task: Task, threshold: float | None = None, most: int = MOST_POINTS) -> QuantPlan:
    """The plan with points by output error, within the task's budget or to a threshold; one point without both.

    Weights lie on the symmetric grid -L..L, which has one code less than the task's full-range grid.

    Raises ArgumentError for a granularity other than by output channel or by tensor, and for both a budget and a
    threshold.
    """
    if task.budget is not None and threshold is not None:
        got = f"budget={task.budget} and threshold={threshold}"
        raise ArgumentError(complaint(got, "one of both", "multipoint"))
    nodes, work = task.graph.linear_nodes, macs(task.graph)
    total = sum(work.values())
    points: dict[str, list[MultiTerm]] = {}
    errors: dict[str, Array] = {}
    for done, node in enumerate(nodes):
        points[node.name] = points_of(task, node, max(most, terms_for(task.budget or 1.0)))
        errors[node.name] = point_errors(task, node, points[node.name])
        if len(errors[node.name]) != points[node.name][0].counts.size:
            got = f"granularity {task.granularity}"
            raise ArgumentError(complaint(got, "by output channel or by tensor", "multipoint"))
        task.progress("finding points", done + 1, len(nodes))
    costs = {name: np.full(len(e), work[name] / total / len(e)) for name, e in errors.items()}
    return QuantPlan(_chosen(points, errors, costs, task.budget, threshold), task.activations)


def _chosen(
    points: Mapping[str, list[MultiTerm]],
    errors: Mapping[str, Array],
    costs: Mapping[str, Array],
    budget: float | None,
    threshold: float | None,
) -> dict[str, MultiTerm]:
    if threshold is None:
        all_errors, all_costs = (np.concatenate(list(v.values())) for v in (errors, costs))
        _, threshold = points_for_budget(all_errors, all_costs, budget or 1.0)
    chosen: dict[str, MultiTerm] = {}
    for name, each in points.items():
        counts: NDArray[Any] = points_for_threshold(errors[name], threshold)
        chosen[name] = with_counts(each, counts.reshape(each[0].counts.shape))
    return chosen
