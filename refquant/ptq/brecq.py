"""BRECQ: learned rounding, block by block, then activation scales; Li et al. 2021 (arXiv 2102.05426).

Letters: z a block's output in the float network, dz what quantization adds to it, g the derivative of an image's loss
by z, h in [0, 1] the rounding variables (`soft`), beta and lambda the regularizer's sharpness and weight.

The papers' argument: the loss grows by about dz^T H dz / 2 with H its Hessian by z, which is taken to be diagonal, and
each entry to be the square of g ("fisher": equation 10).  Blocks are as large as what branches and meets again, since
what layers do to each other is strongest there.  So for one block after another, whose input comes from the quantized
ones before it, Adam minimizes

    mean over images and positions of the sum over channels of dz^2 (or g^2 dz^2)
      + lambda sum over weights of 1 - |2h - 1|^beta,

with beta falling from 20 to 2 after a fifth of the steps, before which lambda is 0.  Codes are floor + (h >= 1/2).
Activations are float meanwhile; then their scales alone are learned (LSQ), block by block, to lower |dz|^2.4.
`blockwise` is the form in which later work has it: weights' scales and activations' are learned with the codes.

Otherwise than the released code: all layers get the bits asked for, the first and last too, and what they read; scales
start at those of least squared error, of weights on the task's grid, which is symmetric; those of images stay there
(`reconstruct.images_in`); lambda is 0.1, ten times as large, and the learning rate thirty times, since steps are
fewer.  How these were chosen is in docs/defaults.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ..arith.blas import one_blas_thread
from ..errors import one_of
from ..net.forward import BATCH
from ..net.gradient import pullback, run
from ..net.loss import cross_entropy, divergence
from ..net.op import Array
from ..net.plan import ActivationQuantizer, QuantPlan
from ..net.wiring import Through, through_plan
from ..quant.multiterm import MultiTerm
from .activations import with_least_error
from .parts import Part, parts_of
from .reconstruct import (
    Keep,
    Relaxed,
    Variable,
    forget,
    images_in,
    part_by_part,
    power_loss,
    prefix,
    read_activations,
    reconstruct,
    with_scales,
)
from .soft import SOFT_ROUND, SoftWeight, regularizer, soften
from .task import Task

__all__ = ["WEIGHTINGS", "blockwise", "brecq", "learn_codes", "relaxed_weights", "sharpness"]

WARM_UP = 0.2
"""The share of steps before the regularizer sets in."""

RATE, SCALE_RATE = 3e-2, 1e-3
"""Adam's learning rates: of rounding variables, and of scales in units of themselves."""

POWER = 2.4
"""Of the error that activation scales lower."""


NOTHING = Relaxed()


# ---- the weighting of errors ----------------------------------------------------------------------------------


def _by_output(task: Task, part: Part, plan: QuantPlan, cotangent: Callable[[Array, slice], Array]) -> Array:
    """g for all calibration images, with a plan for what comes before the part's output, this included."""
    through, params = through_plan(task.graph, plan)
    x = task.trace[task.graph.input.name]
    found = []
    with one_blas_thread():
        for start in range(0, len(x), BATCH):
            some = slice(start, start + BATCH)
            tape = run(task.graph, {task.graph.input.name: x[some]}, params, through=through)
            u = cotangent(tape.output, some) * len(tape.output)
            found.append(pullback(tape, u, [part.output])[part.output])
    return np.concatenate(found)


def fisher(task: Task, part: Part, plan: QuantPlan) -> Array:
    """g^2 with g of the cross-entropy at the float network, divided by its mean; 1 where that is 0.

    Labels are the task's; where it has none they are drawn from the network's softmax, so that the mean of g^2 is the
    diagonal of the Fisher information.
    """
    labels = task.labels
    if labels is None:
        logits = task.trace[task.graph.output]
        labels = (logits + task.rng.gumbel(size=logits.shape)).argmax(axis=1)
    y = labels
    g2 = _by_output(task, part, QuantPlan(), lambda z, some: cross_entropy(z, y[some]).cotangent) ** 2
    mean = g2.mean(dtype=np.float64)
    return (g2 / mean).astype(np.float32) if mean > 0 else np.ones_like(g2)


def fisher_code(task: Task, part: Part, plan: QuantPlan) -> Array:
    """(|g| + 1)^2, as the released code has it, with g of KL(float || quantized up to and with this part)."""
    target = task.trace[task.graph.output]
    nearest = {name: task.encode(task.graph.node(name)) for name in part.layers}
    so_far = replace(plan, weights={**plan.weights, **nearest})
    g = _by_output(task, part, so_far, lambda z, some: divergence(z, target[some]).cotangent)
    w: Array = (np.abs(g) + 1) ** 2
    return w


WEIGHTINGS: dict[str, Callable[[Task, Part, QuantPlan], Array | None]] = {
    "mse": lambda task, part, plan: None,
    "fisher": fisher,
    "fisher_code": fisher_code,
}
"""name -> the weights of squared errors: none, the paper's, those of an option of the released code."""


# ---- weights --------------------------------------------------------------------------------------------------


def sharpness(done: float) -> float:
    """beta when so much of the work is done: 20 at the end of the warm-up, 2 at the end.

    >>> sharpness(0.2), sharpness(1.0)
    (20.0, 2.0)
    """
    return 20.0 - 18.0 * (done - WARM_UP) / (1 - WARM_UP)


def relaxed_weights(task: Task, weights: Mapping[str, SoftWeight], rate: float, scale_rate: float = 0.0) -> Relaxed:
    """The weights of some nodes read through their rounding variables, which move; and their scales, with a rate."""
    relaxed = Relaxed()
    for name, soft in weights.items():
        array = task.graph.node(name).params["weight"]
        names = {part: f"{array}.{part}" for part in ("base", "floor", "scale")}
        way = Through(SOFT_ROUND, {"granularity": task.granularity}, names)
        relaxed |= Relaxed(
            {array: way},
            {names["base"]: soft.base, names["floor"]: soft.floor},
            {array: Variable(soft.start, 1.0, rate)},
        ) | with_scales(names["scale"], soft.scale, scale_rate)
    return relaxed


def learn_codes(
    task: Task,
    part: Part,
    plan: QuantPlan,
    *,
    reads: Relaxed = NOTHING,
    weights: Array | None = None,
    steps: int,
    batch: int,
    weight: float,
    rate: float = RATE,
    scale_rate: float = 0.0,
) -> tuple[dict[str, MultiTerm], dict[str, Array]]:
    """The weights of a part, their codes learned, and all variables as they were before codes became integers.

    plan: of what comes before the part.  reads: what its activations are read through.  weights: of squared errors.
    weight: lambda.  rate: Adam's, of rounding variables.  scale_rate: above 0 the weights' scales are learned, too.
    """
    soft = {}
    for name in part.layers:
        node = task.graph.node(name)
        soft[name] = soften(task.weight(node), task.encode(node))
    arrays = {name: task.graph.node(name).params["weight"] for name in part.layers}

    def penalty(values: Mapping[str, Array], done: float) -> dict[str, Array]:
        if done < WARM_UP:
            return {}
        return {array: weight * regularizer(values[array], sharpness(done))[1] for array in arrays.values()}

    found = reconstruct(
        task,
        part,
        prefix(task, plan, part.input),
        relaxed_weights(task, soft, rate, scale_rate) | reads,
        power_loss(task.trace[part.output], weights=weights),
        steps=steps,
        batch=batch,
        penalty=penalty,
    )
    hard = {name: soft[name].harden(found[array], found.get(f"{array}.scale")) for name, array in arrays.items()}
    return hard, found


# ---- activations ----------------------------------------------------------------------------------------------


def _reads(task: Task, part: Part, activations: Mapping[str, ActivationQuantizer]) -> dict[str, ActivationQuantizer]:
    """The quantizers of the tensors that the part's layers read."""
    read = [task.graph.node(name).inputs[0] for name in part.layers]
    return {tensor: activations[tensor] for tensor in read if tensor in activations}


def _rescaled(reads: Mapping[str, ActivationQuantizer], found: Mapping[str, Array]) -> dict[str, ActivationQuantizer]:
    return {t: ActivationQuantizer(q.spec, found.get(f"{t}.scale", q.scale), q.zero_point) for t, q in reads.items()}


def _learn_activations(task: Task, parts: list[Part], plan: QuantPlan, steps: int, batch: int) -> QuantPlan:
    """The plan with scales of activations learned part by part, each part reading the float network."""
    quantizers = dict(with_least_error(task).activations)
    _, weights = through_plan(task.graph, plan)
    for part in parts:
        reads = _reads(task, part, quantizers)
        relaxed = read_activations(reads, SCALE_RATE, images_in(task.graph)) | Relaxed(fixed=weights)
        objective = power_loss(task.trace[part.output], POWER)
        inputs = task.trace[part.input]
        found = reconstruct(task, part, inputs, relaxed, objective, steps=steps, batch=batch, schedule="cosine")
        quantizers |= _rescaled(reads, found)
    return replace(plan, activations=quantizers)


# ---- the method -----------------------------------------------------------------------------------------------


def brecq(
    task: Task,
    *,
    granularity: str = "block",
    weighting: str = "mse",
    steps: int = 1500,
    scale_steps: int = 300,
    batch: int = 32,
    weight: float = 0.1,
    rate: float = RATE,
    done: QuantPlan | None = None,
    keep: Keep = forget,
) -> QuantPlan:
    """The plan that BRECQ finds: codes learned part by part with float activations, then activation scales.

    granularity: of the parts, "layer" (AdaRound's), "block", "stage" or "network".  weighting: of squared errors, a
    name of `WEIGHTINGS`; only "fisher" uses labels.  steps, scale_steps: of Adam, a part, for codes and for scales of
    activations.  batch: images a step.  weight: lambda.  rate: Adam's, of rounding variables.  done, keep: of weights,
    as in `part_by_part`.  With `task.terms` the codes of each last term are learned.

    Raises ArgumentError for unknown names.

    >>> from ..zoo import load_data, load_network
    >>> from .task import make_task
    >>> task = make_task(load_network("mlp"), load_data("fashion-mnist").calibration.x[:32], bits=(2, None))
    >>> plan = brecq(task, steps=5)
    >>> sorted(plan.weights), sorted(set(plan.weights["gemm3"].codes.ravel().tolist()))
    (['gemm1', 'gemm2', 'gemm3'], [-2, -1, 0, 1])
    """
    weigh, parts = WEIGHTINGS[one_of(weighting, WEIGHTINGS, "weighting", "brecq")], parts_of(task.graph, granularity)

    def step(own: Task, part: Part, plan: QuantPlan) -> QuantPlan:
        squares = weigh(own, part, plan)
        hard, _ = learn_codes(own, part, plan, weights=squares, steps=steps, batch=batch, weight=weight, rate=rate)
        return replace(plan, weights={**plan.weights, **hard})

    plan = part_by_part(task, parts, step, done=done, keep=keep)
    return _learn_activations(task, parts, plan, scale_steps, batch) if task.activations else plan


def blockwise(
    task: Task,
    *,
    granularity: str = "block",
    steps: int = 1500,
    batch: int = 32,
    weight: float = 0.1,
    rate: float = RATE,
    done: QuantPlan | None = None,
    keep: Keep = forget,
) -> QuantPlan:
    """The plan found part by part with codes, scales of weights and scales of activations learned together.

    Every part reads what the quantized parts before it give, their activations quantized, too.  Arguments, and
    errors, are those of `brecq`.
    """
    quantizers = with_least_error(task).activations

    def step(own: Task, part: Part, plan: QuantPlan) -> QuantPlan:
        reads = _reads(own, part, {**quantizers, **plan.activations})
        hard, found = learn_codes(
            own,
            part,
            plan,
            reads=read_activations(reads, SCALE_RATE, images_in(own.graph)),
            steps=steps,
            batch=batch,
            weight=weight,
            rate=rate,
            scale_rate=SCALE_RATE,
        )
        activations = {**plan.activations, **_rescaled(reads, found)}
        return replace(plan, weights={**plan.weights, **hard}, activations=activations)

    return part_by_part(task, parts_of(task.graph, granularity), step, done=done, keep=keep)
