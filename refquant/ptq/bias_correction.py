"""Bias correction: the mean error that quantized weights and inputs make at a layer's output, taken off its bias.

Letters: W weights, x what they meet, hats quantized; E a mean over images and positions.

Empirical: b <- b - E(W^ x^) + E(W x), measured on calibration images, layer after layer.  Then every output channel of
the quantized network has the float network's mean on these images, up to rounding.
Analytic [model]: b <- b - (W^ - W) E x, with E x from the batch norm before: its outputs are taken for normal, mean
beta and deviation |gamma|, those of channels independent, and padding for pixels; x^ for x.  No images are needed.

Neither lowers the error of logits for certain: what errs by a factor, as 2-bit weights do, is moved, not mended.

Source: Nagel et al. 2019 (Data-Free Quantization, arXiv 1906.04721), section 4.2 and appendix B.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from ..net.fold import fold_batch_norm
from ..net.graph import Graph, Node
from ..net.plan import QuantPlan
from ..quant.multiterm import MultiTerm
from .sequential import layer_moments, mean_shift
from .task import Task, walk

__all__ = ["Normal", "analytic_biases", "correct_biases", "rectified", "tensor_moments"]

Array = NDArray[np.float64]


# ---- empirical ------------------------------------------------------------------------------------------------


def correct_biases(task: Task, plan: QuantPlan) -> QuantPlan:
    """The plan with the bias of each layer moved by the mean error that the layer has once those before it moved.

    plan: of the task's network, with a weight for every layer; its own biases are replaced.
    """
    task = task.changed(activations=plan.activations)

    def layer(node: Node, X: NDArray[Any], X_hat: NDArray[Any]) -> tuple[MultiTerm, NDArray[Any]]:
        sums, seen = plan.weights[node.name], layer_moments(node, X, X_hat)
        return sums, task.bias(node) + mean_shift(task.weight(node), sums.decode(), seen.mean, seen.mean_hat)

    return walk(task, layer, "correcting biases")


# ---- analytic -------------------------------------------------------------------------------------------------


class Normal(NamedTuple):
    """What a model says of a tensor's channels: means and variances, shape (channels,)."""

    mean: Array
    variance: Array


def rectified(x: Normal) -> Normal:
    """The mean and the variance of max(x, 0) for normal x.

    >>> [round(float(v[0]), 6) for v in rectified(Normal(np.array([0.0]), np.array([1.0])))]
    [0.398942, 0.340845]
    """
    m, s = x.mean, np.sqrt(np.maximum(x.variance, np.finfo(float).tiny))
    z = np.clip(m / s, -40.0, 40.0)  # beyond, the density is 0
    density, share = np.exp(-z * z / 2) / np.sqrt(2 * np.pi), ndtr(z)
    mean, square = s * density + m * share, (m * m + s * s) * share + m * s * density
    return Normal(mean, np.maximum(square - mean * mean, 0.0))


def _norm(graph: Graph, node: Node, seen: list[Normal]) -> Normal:
    params = graph.params(node)
    return Normal(params["beta"].astype(np.float64), params["gamma"].astype(np.float64) ** 2)


RULES: Mapping[str, Any] = {
    "BatchNorm": _norm,
    "Relu": lambda graph, node, seen: rectified(seen[0]),
    "Add": lambda graph, node, seen: Normal(*(sum(parts) for parts in zip(*seen, strict=True))),
    "GlobalAvgPool": lambda graph, node, seen: seen[0],
    "AveragePool": lambda graph, node, seen: seen[0],
    "Flatten": lambda graph, node, seen: _repeated(graph, node, seen[0]),
}
"""op -> channel moments of its output from those of its inputs; other ops say nothing.  After pooling the variance is
an upper one; only means are used from there."""


def _repeated(graph: Graph, node: Node, x: Normal) -> Normal:
    times = int(np.prod(graph.shapes[node.name])) // len(x.mean)
    return Normal(*(np.repeat(v, times) for v in x))


def tensor_moments(graph: Graph) -> dict[str, Normal]:
    """What batch norms say of tensors, by name, for those that depend on batch norms through ops of `RULES` alone.

    graph: with its batch norms, not folded.
    """
    known: dict[str, Normal] = {}
    for node in graph.nodes:
        if node.op == "BatchNorm" or (node.op in RULES and all(tensor in known for tensor in node.inputs)):
            known[node.name] = RULES[node.op](graph, node, [known[t] for t in node.inputs if t in known])
    return known


def analytic_biases(graph: Graph, plan: QuantPlan) -> QuantPlan:
    """The plan with biases moved by -(W^ - W) E x where batch norms tell E x; other layers keep theirs.

    graph: with its batch norms.  A forecast under the model above, not a measurement.
    """
    folded, known = fold_batch_norm(graph), tensor_moments(graph)
    renamed = {n.inputs[0]: n.name for n in graph.nodes if n.op == "BatchNorm"}  # a folded Conv is its batch norm
    biases = dict(plan.biases)
    for node in folded.linear_nodes:
        tensor = node.inputs[0]
        moments = known.get(tensor, known.get(renamed.get(tensor, "")))
        if moments is None or node.name not in plan.weights:
            continue
        error = plan.weights[node.name].decode(np.float64) - folded.param(node, "weight")
        groups = node.attrs.get("groups", 1)
        mean = moments.mean.reshape(groups, -1)  # (groups, channels)
        per_channel = error.reshape(groups, -1, mean.shape[1], error[0].size // mean.shape[1]).sum(axis=3)
        bias = plan.biases.get(node.name, folded.params(node).get("bias", np.zeros(len(error), np.float32)))
        biases[node.name] = (bias - np.einsum("goc,gc->go", per_channel, mean).ravel()).astype(np.float32)
    return replace(plan, biases=biases)
