"""Para-normalization: the mean and deviation of every channel put back to what they are in the float network.

Letters: mu, sigma mean and standard deviation of a channel of a layer's outputs in the float network, mu^, sigma^ in
the quantized one, both over images and positions; m momentum, gamma = sigma / sigma^.

A batch norm whose moments are the float network's, put behind a layer, changes nothing: it scales by sigma what was
divided by sigma.  With its moments measured anew on the quantized network, mu^ and sigma^, and folded back,

    W^ <- gamma W^,    b^ <- gamma (b^ - mu^) + mu.

Momentum mixes the moments: (1 - m) old + m new, variances likewise; 1 replaces them, 0 changes nothing.  Layers are
taken in order, each seeing what the renormalized ones before it give, as in a batch norm's training mode.

Source: Hubara et al. 2021, section 3.4, for networks that had batch norms, whose folded beta and |gamma| serve as mu
and sigma; here these are measured, so any network will do.  Their code takes m = 0.1 and a few batches.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, complaint
from ..net.plan import QuantPlan
from ..quant.multiterm import MultiTerm
from .reconstruct import prefix
from .task import Task

__all__ = ["moments", "renormalized"]

EPSILON = 1e-5
"""Added to variances, as batch norms have it."""


def moments(z: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of every channel, over images and positions, of shape (channels,).

    >>> [part.tolist() for part in moments(np.float32([[1, 0], [3, 0]]))]
    [[2.0, 0.0], [1.0, 0.0]]
    """
    axes = (0, *range(2, z.ndim))
    return z.mean(axis=axes, dtype=np.float64), z.var(axis=axes, dtype=np.float64)


def scaled(sums: MultiTerm, gamma: NDArray[np.float64]) -> MultiTerm:
    """The weight with each output channel times gamma: its scales take it, codes stay.

    Raises ArgumentError where output channels share scales.
    """
    if sums.counts.shape[:1] != gamma.shape:
        got, should = f"scales of shape {sums.counts.shape}", f"{len(gamma)} channels with scales of their own"
        raise ArgumentError(complaint(got, should, "renormalized", "quantize per channel"))
    factor = gamma.reshape(-1, *(1,) * (sums.counts.ndim - 1))
    return replace(sums, scales=(sums.scales * factor).astype(sums.scales.dtype))


def renormalized(task: Task, plan: QuantPlan, *, momentum: float = 1.0) -> QuantPlan:
    """The plan with the moments of every layer but the last put back to the float network's.

    plan: with weights whose output channels have scales of their own.  momentum: m, in [0, 1].

    Raises ArgumentError for a momentum outside and for weights that share scales.
    """
    if not 0 <= momentum <= 1:
        raise ArgumentError(complaint(f"momentum={momentum}", "in [0, 1]", "renormalized"))
    for node in task.graph.linear_nodes:
        if node.name == task.graph.output or node.name not in plan.weights:
            continue
        mean, var = moments(task.trace[node.name])
        seen, varied = moments(prefix(task, plan, node.name))
        mu, variance = mean + momentum * (seen - mean), var + momentum * (varied - var)
        gamma = np.sqrt((var + EPSILON) / (variance + EPSILON))
        bias = plan.biases.get(node.name, task.bias(node))
        moved = (gamma * (bias - mu) + mean).astype(np.float32)
        plan = replace(
            plan,
            weights={**plan.weights, node.name: scaled(plan.weights[node.name], gamma)},
            biases={**plan.biases, node.name: moved},
        )
    return plan
