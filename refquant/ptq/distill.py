"""Logit distillation without labels: biases and scales of a quantized network, its codes fixed.

What is minimized, by Adam over the whole network, is the mean over calibration images of KL(softmax of the float
logits || softmax of the quantized ones).  Codes stay, so that only numbers move that are stored in full width anyway:

    every bias; the scales of weights, those of all terms of a channel (or of what shares scales) by one factor;
    the scales of activations, whose zero points stay; those of images stay, too.

Source: Hinton et al. 2015 (arXiv 1503.02531), at temperature 1; by biases alone it is AdaQuant's bias tuning (Hubara
et al. 2021), which takes the mean over images and classes.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..net.loss import divergence
from ..net.op import Array
from ..net.ops_quantize import DEQUANTIZE
from ..net.plan import ActivationQuantizer, QuantPlan
from ..net.wiring import Through
from ..quant.multiterm import MultiTerm
from .brecq import blockwise
from .parts import Part
from .reconstruct import Keep, Relaxed, Variable, forget, images_in, read_activations, reconstruct, with_scales
from .task import Task

__all__ = ["blockwise_distilled", "distill", "relaxed_biases", "relaxed_scales", "rescaled"]


def relaxed_biases(task: Task, plan: QuantPlan, rate: float) -> Relaxed:
    """All biases, moved in units of their channel's standard deviation in the float network."""
    variables = {}
    for node in task.graph.linear_nodes:
        spread = task.trace[node.name].std(axis=(0, *range(2, task.trace[node.name].ndim)))
        bias = plan.biases.get(node.name, task.bias(node))
        variables[node.params["bias"]] = Variable(bias, np.maximum(spread, np.finfo(np.float32).tiny), rate)
    return Relaxed(variables=variables)


def relaxed_scales(task: Task, weights: Mapping[str, MultiTerm], rate: float) -> Relaxed:
    """Weights times a factor for what shares a scale, which starts at 1."""
    relaxed = Relaxed()
    spec = task.weight_spec
    for name, sums in weights.items():
        array = task.graph.node(name).params["weight"]
        names = {"scale": f"{array}.factor", "zero_point": f"{array}.zero"}
        ones = np.ones(sums.counts.shape, np.float32)
        relaxed |= Relaxed(
            {array: Through(DEQUANTIZE, {"spec": spec}, names)},
            {array: sums.decode(), names["zero_point"]: np.zeros_like(ones)},
        ) | with_scales(names["scale"], ones, rate)
    return relaxed


def rescaled(sums: MultiTerm, factor: Array | float) -> MultiTerm:
    """The sum with all its scales times a factor, > 0, of the parameters' shape."""
    return replace(sums, scales=(sums.scales * factor).astype(sums.scales.dtype))


def distill(
    task: Task, plan: QuantPlan, *, steps: int = 200, batch: int = 64, rate: float = 1e-3, scale_rate: float = 1e-3
) -> QuantPlan:
    """The plan with biases and scales at which the network's logits are closer to the float network's.

    plan: with the weights of every Conv and Gemm.  rate: of biases, in standard deviations of their channels.
    scale_rate: of all scales, in units of themselves; 0 moves biases alone.  Both fall to 0 by a cosine.
    """
    graph = task.graph
    names = tuple(node.name for node in graph.linear_nodes)
    target = task.trace[graph.output]
    found = reconstruct(
        task,
        Part(graph.input.name, graph.output, names),
        task.trace[graph.input.name],
        relaxed_biases(task, plan, rate)
        | relaxed_scales(task, plan.weights, scale_rate)
        | read_activations(plan.activations, scale_rate, images_in(graph)),
        lambda output, some: divergence(output, target[some]),
        steps=steps,
        batch=batch,
        schedule="cosine",
    )
    arrays = {node.name: node.params for node in graph.linear_nodes}
    activations = {
        tensor: ActivationQuantizer(q.spec, found.get(f"{tensor}.scale", q.scale), q.zero_point)
        for tensor, q in plan.activations.items()
    }
    weights = {
        name: rescaled(sums, found.get(f"{arrays[name]['weight']}.factor", 1.0)) for name, sums in plan.weights.items()
    }
    return replace(
        plan, weights=weights, activations=activations, biases={name: found[arrays[name]["bias"]] for name in names}
    )


def blockwise_distilled(
    task: Task,
    *,
    steps: int = 1500,
    distill_steps: int = 200,
    done: QuantPlan | None = None,
    keep: Keep = forget,
) -> QuantPlan:
    """Codes and scales learned block by block (`brecq.blockwise`), then biases and scales from the logits.

    done, keep: of blocks, as in `part_by_part`.
    """
    return distill(task, blockwise(task, steps=steps, done=done, keep=keep), steps=distill_steps)
