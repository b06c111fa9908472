"""The complexity axis: every layer's weight as 1, 2, ... low-bit terms, and counts chosen under a budget.

Items of the choice are output channels (layers, with one scale a tensor); the error of a choice is its
layer-output error d' C d on calibration images, times what a unit of that layer's output error was seen
to cost at the logits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..net.forward import forward
from ..net.graph import Graph, macs
from ..net.plan import ActivationQuantizer, QuantPlan
from ..quant.granularity import PerTensor
from ..quant.multiterm import MultiTerm, encode_greedy, rest_of, with_counts
from ..quant.spec import QuantSpec
from ..solve.allocate import allocate
from ..solve.solution import Solution
from ..solve.terms import encode_each
from .observe import output_errors, second_moment
from .task import Progress

__all__ = ["MOST_TERMS", "Axis", "build_axis", "lossless_terms", "terms_for"]

Array = NDArray[np.float64]
MOST_TERMS = 20
"""Terms a weight may have: 20 of 2 bits leave about what float32 rounds away."""

LOSSLESS_TERMS = 64
"""Terms at which the search for a lossless sum gives up: 2-bit terms gain at least a bit each."""


def terms_for(budget: float) -> int:
    """How many terms of weights are tabulated for a budget: more than it allows everywhere, from 4 to `MOST_TERMS`.

    >>> [terms_for(budget) for budget in (1.0, 3.0, 8.0, 48.0)]
    [4, 4, 9, 20]
    """
    return min(max(4, math.ceil(budget) + 1), MOST_TERMS)


def lossless_terms(weight: NDArray[np.float32], spec: QuantSpec) -> MultiTerm:
    """The greedy sum with the fewest terms for each scale that decodes to the float32 weight bit for bit.

    Scales are |r|_inf / qmax, so that the error falls by 2 qmax a term (qmax with floor) and the search ends.
    Where float64 sums cannot reach a weight (floor, and negative weights below 2^-29 of the largest), the
    result is the sum with all terms tried, and does not decode to the weight: compare before you claim.
    """
    terms = 4
    while True:
        sums = encode_greedy(weight, spec=spec, terms=terms, rest=rest_of(spec))
        equal = sums.partial_sums().astype(np.float32) == weight
        rows = np.stack([spec.granularity.rows(e.astype(float), fill=1.0).all(axis=1) for e in equal])
        if rows[-1].all() or terms >= LOSSLESS_TERMS:
            break
        terms *= 2
    counts = np.where(rows.any(axis=0), rows.argmax(axis=0) + 1, terms)
    return sums.truncated(counts.reshape(sums.counts.shape))


@dataclass(frozen=True, eq=False)
class Axis:
    """All that choosing term counts needs: encodings by node and count, errors and costs by item and count."""

    graph: Graph
    activations: Mapping[str, ActivationQuantizer]
    encodings: Mapping[str, list[MultiTerm]]
    items: Mapping[str, slice]  # node -> its items
    errors: Array  # (items, counts): expected squared error at the logits, by the surrogate
    costs: Array  # (items, counts): bit operations, relative to one term throughout

    def by_node(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Counts, one an item, as each node's weight has them: of the granularity's parameter shape."""
        found = {}
        for name, encodings in self.encodings.items():
            shape = encodings[0].counts.shape
            chosen = counts[self.items[name]].reshape((-1, *(1,) * (len(shape) - 1)) if shape else ())
            found[name] = np.broadcast_to(chosen, shape)  # all groups of a channel alike
        return found

    def plan(self, counts: NDArray[np.int64]) -> QuantPlan:
        """The plan with these counts (1..most, one an item)."""
        weights = {name: with_counts(self.encodings[name], each) for name, each in self.by_node(counts).items()}
        return QuantPlan(weights, self.activations)

    def allocate(self, mean_terms: float) -> Solution:
        """The counts of least surrogate error whose bit operations are at most this multiple of single-term."""
        solution = allocate(self.errors, self.costs, mean_terms * (1 + 1e-12), tol=1e-4)
        return Solution(solution.value + 1, solution.objective, solution.lower_bound, solution.certified, 0)

    def lossless(self) -> QuantPlan:
        """The plan whose weights decode to the float32 weights bit for bit."""
        weights = {
            node.name: lossless_terms(self.graph.param(node, "weight"), self.encodings[node.name][0].specs[0])
            for node in self.graph.linear_nodes
        }
        return QuantPlan(weights, self.activations)


def _sensitivity(
    graph: Graph, x: NDArray[Any], logits: Array, node: str, terms: MultiTerm, layer_error: float
) -> float:
    """Squared error at the logits per unit of squared error at a layer's output, with that layer alone quantized."""
    alone = forward(graph, x, QuantPlan({node: terms}), mode="fake").astype(np.float64)
    return float(np.mean(np.sum((alone - logits) ** 2, axis=1))) / layer_error if layer_error > 0 else 0.0


def build_axis(
    graph: Graph,
    x: NDArray[Any],
    trace: Mapping[str, NDArray[np.float32]],
    activations: Mapping[str, ActivationQuantizer],
    spec: QuantSpec,
    method: str,
    progress: Progress | None = None,
    most: int = terms_for(1.0),
) -> Axis:
    """Encode every layer with 1..`most` terms and tabulate what each count costs and errs.

    graph: batch norms folded.  x: calibration images, trace: the float tensors they make.
    """
    encodings: dict[str, list[MultiTerm]] = {}
    items: dict[str, slice] = {}
    errors: list[Array] = []
    costs: list[Array] = []
    work = macs(graph)
    total = sum(work.values())
    logits = trace[graph.output].astype(np.float64)
    counts = np.arange(1, most + 1)
    for done, node in enumerate(graph.linear_nodes):
        weight = graph.param(node, "weight")
        encodings[node.name] = encode_each(weight, spec=spec, terms=most, method=method)
        C = second_moment(node, trace[node.inputs[0]])
        table = np.stack([output_errors(e.decode() - weight, C) for e in encodings[node.name]], axis=1)
        rate = _sensitivity(graph, x, logits, node.name, encodings[node.name][0], float(table[:, 0].sum()))
        if spec.granularity == PerTensor():
            table = table.sum(axis=0, keepdims=True)
        first = sum(len(e) for e in errors)
        items[node.name] = slice(first, first + len(table))
        errors.append(rate * table)
        costs.append(np.broadcast_to(counts * (work[node.name] / total / len(table)), table.shape))
        if progress is not None:
            progress("solving scales and terms", done + 1, len(graph.linear_nodes))
    return Axis(graph, activations, encodings, items, np.concatenate(errors), np.concatenate(costs))
