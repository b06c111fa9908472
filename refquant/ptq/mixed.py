"""Bits chosen layer by layer: sensitivities measured by the loss, allocation exact; AdaQuant's and BRECQ's programmes.

Letters: L the calibration loss, choices 0..J-1 from few bits to many, 0 the plan with all layers at the last choice,
L_ia that plan's with layer i at choice a, L_ia,jb with two layers.

    AdaQuant: min sum_i (L_ia - L_0) under the budget, as if losses added up.
    BRECQ:    the same and, for two layers of one block, what they add together: L_ia,jb - L_ia - L_jb + L_0.

Hubara et al. 2021 solve theirs by integer programme, on losses of labelled calibration images; Li et al. 2021
(BRECQ), section 3.4, theirs by a genetic algorithm whose code is not released, measuring pairs at the fewest bits
alone.  Here both are solved exactly (`solve.allocate`, `solve.pairs`; `genetic` is for comparison), and what the
chosen plan's loss is beside what the sum foretold is part of the answer: that losses add up is an assumption.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, complaint
from ..net.plan import QuantPlan
from ..solve.allocate import allocate
from ..solve.pairs import allocate_pairs
from ..solve.solution import Solution
from .lapq import calibration_loss
from .parts import parts_of
from .task import Task

__all__ = ["Mixed", "Sensitivities", "combined", "mix", "sensitivities"]


class Sensitivities(NamedTuple):
    """names: of the layers.  base: L_0.  single: L_ia - L_0, shape (layers, choices).  pair: of two layers of a block,
    shape (layers, choices, layers, choices), in the half i < j, 0 elsewhere."""

    names: tuple[str, ...]
    base: float
    single: NDArray[np.float64]
    pair: NDArray[np.float64]


class Mixed(NamedTuple):
    """A plan of mixed bits: which choice each layer has, the loss that the sums foretell, and the loss it has."""

    plan: QuantPlan
    solution: Solution
    foretold: float
    measured: float


def combined(plans: Sequence[QuantPlan], choices: Sequence[int]) -> QuantPlan:
    """The last plan with each layer's weight and bias from the plan of its choice; activations are the last plan's.

    choices: one a layer, in the order of the last plan's weights.
    """
    last = plans[-1]
    of = dict(zip(last.weights, choices, strict=True))
    weights = {name: plans[choice].weights[name] for name, choice in of.items()}
    biases = {name: plans[j].biases[name] for name, j in of.items() if name in plans[j].biases}
    return replace(last, weights=weights, biases=biases)


def sensitivities(task: Task, plans: Sequence[QuantPlan], *, pairs: bool = True) -> Sensitivities:
    """What the loss is with single layers, and pairs of layers of one block, at fewer bits.

    plans: the choices, from few bits to many, each with all weights of the network.  pairs: without them all are 0.
    Layers times choices (and pairs times their square) evaluations of the loss: labels are used, if the task has any.
    """
    names, J = tuple(plans[-1].weights), len(plans)
    full = [J - 1] * len(names)

    def loss(**at: int) -> float:
        choices = [at.get(f"_{i}", last) for i, last in enumerate(full)]
        return calibration_loss(task, combined(plans, choices))

    base = loss()
    single = np.array([[loss(**{f"_{i}": a}) - base for a in range(J - 1)] + [0.0] for i in range(len(names))])
    pair = np.zeros(single.shape * 2)
    for part in parts_of(task.graph, "block") if pairs else ():
        inside = [names.index(name) for name in part.layers if name in names]
        for i, j in combinations(inside, 2):
            for a, b in np.ndindex(J - 1, J - 1):
                together = loss(**{f"_{i}": a, f"_{j}": b}) - base
                pair[i, a, j, b] = together - single[i, a] - single[j, b]
    return Sensitivities(names, base, single, pair)


def weight_bits(plans: Sequence[QuantPlan]) -> NDArray[np.float64]:
    """The bits that each layer's weight takes with each choice, scales counted; shape (layers, choices)."""
    return np.array([[plan.weights[name].storage_bits for plan in plans] for name in plans[-1].weights], np.float64)


def mix(task: Task, plans: Sequence[QuantPlan], budget: float, *, pairs: bool = True) -> Mixed:
    """The choices of least foretold loss whose weights take at most a share of the last plan's bits.

    plans, pairs: as `sensitivities`; with pairs=False it is AdaQuant's programme, else BRECQ's.  budget: of weight
    bits, relative to the last plan's.  The allocation is certified (`solution`); the loss it foretells is a forecast.

    Raises ArgumentError for fewer than two plans, and a budget that the fewest bits do not meet.
    """
    if len(plans) < 2:
        raise ArgumentError(complaint(f"{len(plans)} plans", "at least two to choose from", "mix"))
    table, cost = sensitivities(task, plans, pairs=pairs), weight_bits(plans)
    most = budget * cost[:, -1].sum()
    found = allocate_pairs(table.single, table.pair, cost, most) if pairs else allocate(table.single, cost, most)
    plan = combined(plans, found.value.tolist())
    return Mixed(plan, found, table.base + float(found.objective), calibration_loss(task, plan))
