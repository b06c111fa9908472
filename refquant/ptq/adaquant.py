"""AdaQuant: layer by layer, weights, biases and ranges that bring a layer's output close; Hubara et al. 2021.

Letters: W, b weight and bias of a layer, V what is added to W before rounding, s_w the weight's scales, R and m extent
and minimum of what the layer reads, X that, Q the quantizers.

For one layer after another Adam minimizes the mean of

    (W X + b - Q_{s_w}(W + V) Q_{R, m}(X^) - b^)^2   over V, s_w, b^, R and m,

straight through the roundings.  V is not held to one step: codes may go anywhere.  `sequential`: X^ comes from the
quantized layers before it, else it is X and layers are independent.

Source: ICML 2021, section 3, and the authors' code; otherwise than there
    learning rates are relative, to steps of the weight, to the range, to the output's standard deviation: the code's
    are absolute and differ a hundredfold in effect from net to net;
    ranges start at those of least squared error, since they move by three tenths at most, and those of images stay
    there (`reconstruct.images_in`);
    sequential inputs are refreshed for all images, where the code refreshes the first batch;
    weights have the task's grid, without zero point; a tensor that several layers read has one range, that of the
    first of them, and with sums of terms V belongs to the last term.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..net.op import Array
from ..net.ops_quantize import FAKE_QUANTIZE_RANGE
from ..net.plan import ActivationQuantizer, QuantPlan
from ..net.wiring import Through
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
)
from .straight import STRAIGHT_ROUND, RealWeight, free
from .task import Task

__all__ = ["adaquant", "from_range", "read_range"]

WEIGHT_RATE, SCALE_RATE, BIAS_RATE, RANGE_RATE = 1e-2, 1e-3, 1e-3, 1e-3
"""Adam's learning rates: V in steps; scales, and ranges, in units of themselves; biases in standard deviations."""


def read_range(tensor: str, q: ActivationQuantizer) -> Relaxed:
    """A tensor read through its quantizer, whose range moves."""
    names = {"extent": f"{tensor}.extent", "minimum": f"{tensor}.minimum"}
    extent = np.asarray(q.scale * (q.spec.qmax - q.spec.qmin), np.float32)
    minimum = np.asarray(q.scale * (q.spec.qmin - np.asarray(q.zero_point)), np.float32)
    way = Through(FAKE_QUANTIZE_RANGE, {"spec": replace(q.spec, quotient="float32")}, names)
    variables = {
        names["extent"]: Variable(extent, extent, RANGE_RATE),
        names["minimum"]: Variable(minimum, extent, RANGE_RATE),
    }
    return Relaxed({tensor: way}, variables=variables)


def from_range(q: ActivationQuantizer, extent: Array, minimum: Array) -> ActivationQuantizer:
    """The quantizer of a range; its zero point is that of `FAKE_QUANTIZE_RANGE`.

    >>> from ..quant.spec import QuantSpec
    >>> q = ActivationQuantizer(QuantSpec(2, signed=False), np.array(1.0), np.array(0))
    >>> moved = from_range(q, np.float32(6), np.float32(-2))
    >>> float(moved.scale), int(moved.zero_point)
    (2.0, 1)
    """
    scale = np.asarray(extent / np.float32(q.spec.qmax - q.spec.qmin))
    zero = np.clip(np.rint(q.spec.qmin - minimum.astype(np.float64) / scale), q.spec.qmin, q.spec.qmax)
    return ActivationQuantizer(q.spec, scale, zero.astype(np.int64))


def _layer(task: Task, name: str, real: RealWeight) -> Relaxed:
    """The weight and bias of a layer, moving."""
    node = task.graph.node(name)
    array, bias = node.params["weight"], node.params["bias"]
    names = {part: f"{array}.{part}" for part in ("base", "scale", "low", "high")}
    attrs = {"granularity": task.granularity, "rounding": task.weight_spec.rounding}
    z = task.trace[name]
    spread = np.maximum(z.std(axis=(0, *range(2, z.ndim))), np.finfo(np.float32).tiny)
    step = task.granularity.spread(real.scale, real.start.shape)
    return Relaxed(
        {array: Through(STRAIGHT_ROUND, attrs, names)},
        {names["base"]: real.base, names["low"]: real.low, names["high"]: real.high},
        {
            array: Variable(real.start, step, WEIGHT_RATE),
            names["scale"]: Variable(real.scale, real.scale, SCALE_RATE),
            bias: Variable(task.bias(node), spread, BIAS_RATE),
        },
    )


def adaquant(
    task: Task,
    *,
    sequential: bool = True,
    through_relu: bool = False,
    steps: int = 600,
    batch: int = 50,
    done: QuantPlan | None = None,
    keep: Keep = forget,
) -> QuantPlan:
    """The plan that AdaQuant finds, without labels.

    sequential: layers see what the quantized ones before them give, else the float network's tensors (the form to
    choose bits from: `mixed`).  through_relu: errors are compared behind a Relu that alone reads the layer, as the
    released code has it.  steps, batch: of Adam, a layer.  done, keep: as in `part_by_part`.

    >>> from ..zoo import load_data, load_network
    >>> from .task import make_task
    >>> task = make_task(load_network("mlp"), load_data("fashion-mnist").calibration.x[:16], bits=(4, 4))
    >>> plan = adaquant(task, steps=2)
    >>> sorted(plan.biases), sorted(plan.activations)
    (['gemm1', 'gemm2', 'gemm3'], ['flatten1', 'relu1', 'relu2'])
    """

    def step(own: Task, part: Part, plan: QuantPlan) -> QuantPlan:
        (name,) = part.layers
        node, tensor = own.graph.node(name), part.input
        real = free(own.weight(node), own.encode(node))
        relaxed = _layer(own, name, real)
        if tensor in plan.activations or tensor in images:
            relaxed |= read_activations(_reads(own, tensor, plan))
        elif tensor in own.activations:
            relaxed |= read_range(tensor, own.activations[tensor])
        found = reconstruct(
            own,
            part,
            prefix(own, plan, tensor) if sequential else own.trace[tensor],
            relaxed,
            power_loss(own.trace[part.output]),
            steps=steps,
            batch=batch,
            schedule="cosine",
        )
        return _with_layer(own, plan, part, real, found)

    task, images = with_least_error(task), images_in(task.graph)
    closed = parts_of(task.graph, "layer")
    parts = closed if through_relu else [Part(part.input, part.layers[0], part.layers) for part in closed]
    return part_by_part(task, parts, step, done=done, keep=keep)


def _reads(task: Task, tensor: str, plan: QuantPlan) -> dict[str, ActivationQuantizer]:
    """What a tensor is read through: the plan's quantizer, else the task's; empty where it stays float."""
    both = {**task.activations, **plan.activations}
    return {tensor: both[tensor]} if tensor in both else {}


def _with_layer(task: Task, plan: QuantPlan, part: Part, real: RealWeight, found: Mapping[str, Array]) -> QuantPlan:
    """The plan with what was found for one layer."""
    (name,) = part.layers
    array, bias = (task.graph.node(name).params[role] for role in ("weight", "bias"))
    activations = {**plan.activations, **_reads(task, part.input, plan)}
    if f"{part.input}.extent" in found:
        ends = found[f"{part.input}.extent"], found[f"{part.input}.minimum"]
        activations[part.input] = from_range(task.activations[part.input], *ends)
    weight = real.rounded(found[array], found[f"{array}.scale"])
    return QuantPlan({**plan.weights, name: weight}, activations, biases={**plan.biases, name: found[bias]})
