"""A part of a network moved towards its float outputs: the loop that AdaQuant, BRECQ and distillation share.

Letters: z^ the part's output as quantized, z what the float network has there; k a step of K.

A method says what the part's weights and inputs are read through (`net.wiring.Through`), which of the params may
move, and how far at a time: a `Variable` is moved in units of its own, such as a weight's quantization step, so that
a learning rate means the same for every tensor of every network.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.blas import one_blas_thread
from ..net.forward import forward
from ..net.gradient import pullback, run
from ..net.graph import Graph
from ..net.loss import Loss, mean_power
from ..net.op import Array
from ..net.ops import OPS
from ..net.ops_quantize import FAKE_QUANTIZE
from ..net.optimize import SCHEDULES, adam
from ..net.plan import ActivationQuantizer, QuantPlan
from ..net.wiring import Through
from .parts import Part
from .task import Task, minibatches

__all__ = [
    "Keep",
    "Relaxed",
    "Variable",
    "images_in",
    "part_by_part",
    "power_loss",
    "prefix",
    "read_activations",
    "reconstruct",
    "with_scales",
]

Objective = Callable[[Array, NDArray[np.int64]], Loss]
"""From a part's output for some images, and which images these are, to a loss."""

Penalty = Callable[[Mapping[str, Array], float], Mapping[str, Array]]
"""From the values of the variables and how much of the work is done, in [0, 1), to what is added to gradients."""


SHOWN = 50
"""Steps between two reports of progress."""


class Variable(NamedTuple):
    """A param that moves: where it starts, the unit it is moved in (broadcastable), Adam's learning rate in units."""

    start: Array
    unit: ArrayLike
    rate: float


@dataclass(frozen=True)
class Relaxed:
    """A part made differentiable: what its values are read through, params that stay, and variables, by name."""

    through: Mapping[str, Through] = field(default_factory=dict)
    fixed: Mapping[str, Array] = field(default_factory=dict)
    variables: Mapping[str, Variable] = field(default_factory=dict)

    def __or__(self, other: "Relaxed") -> "Relaxed":
        """Both together."""
        return Relaxed(
            {**self.through, **other.through}, {**self.fixed, **other.fixed}, {**self.variables, **other.variables}
        )


def with_scales(name: str, scale: Array, rate: float) -> Relaxed:
    """Scales under a name: moving, in units of themselves, or with rate 0 staying.

    >>> with_scales("s", np.array(2.0), 0.0).fixed, with_scales("s", np.array(2.0), 0.5).variables["s"].rate
    ({'s': array(2.)}, 0.5)
    """
    return Relaxed(variables={name: Variable(scale, scale, rate)}) if rate else Relaxed(fixed={name: scale})


def images_in(graph: Graph) -> set[str]:
    """The tensors that hold the images themselves: no Conv or Gemm is before them.

    Methods that learn scales leave theirs alone.  Where much of a tensor is one value, as a background is, that value's
    code stays while s moves a little, and its x^ moves by c - z; LSQ's rule, made for values spread over a step, has
    the residual of rounding there, of either sign.

    >>> from ..zoo import load_network
    >>> sorted(images_in(load_network("mlp"))), sorted(images_in(load_network("resnet")))
    (['flatten1', 'input'], ['input'])
    """
    made: set[str] = set()
    for node in graph.nodes:
        if OPS[node.op].linear or made.intersection(node.inputs):
            made.add(node.name)
    return set(graph.shapes) - made


def read_activations(
    activations: Mapping[str, ActivationQuantizer], rate: float = 0.0, still: Collection[str] = ()
) -> Relaxed:
    """Tensors read through their quantizers; with a rate, the scales of all but `still` move, in units of themselves.

    In these runs x / scale is one division of float32, whatever clause Q2 of the spec says: they differ next to ties.
    """
    relaxed = Relaxed()
    for tensor, q in activations.items():
        names = {"scale": f"{tensor}.scale", "zero_point": f"{tensor}.zero_point"}
        way = Through(FAKE_QUANTIZE, {"spec": replace(q.spec, quotient="float32")}, names)
        relaxed |= Relaxed({tensor: way}, {names["zero_point"]: q.zero_point}) | with_scales(
            names["scale"], q.scale, 0.0 if tensor in still else rate
        )
    return relaxed


def power_loss(target: Array, power: float = 2.0, weights: Array | None = None) -> Objective:
    """The mean over images and positions of the sum over channels of w |z^ - z|^power.

    target: z for all calibration images; weights: w, of its shape, 1 by default.
    """
    channels = target.shape[1] if target.ndim > 1 else 1

    def objective(output: Array, some: NDArray[np.int64]) -> Loss:
        w = np.asarray(channels, output.dtype) if weights is None else channels * weights[some]
        return mean_power(output, target[some], power, w)

    return objective


def reconstruct(
    task: Task,
    part: Part,
    inputs: Array,
    relaxed: Relaxed,
    objective: Objective,
    *,
    steps: int,
    batch: int,
    penalty: Penalty | None = None,
    schedule: str = "constant",
) -> dict[str, Array]:
    """The variables after K steps of Adam on the objective, by name.

    inputs: what the part reads, for all calibration images.  schedule: of the learning rates, a name of `SCHEDULES`.
    The images of a step are drawn with `task.rng`; a variable that nothing in the part reads stays.
    """
    rule, factor = adam(), SCHEDULES[schedule]
    units = {name: np.asarray(v.unit, np.float32) for name, v in relaxed.variables.items()}
    starts = {name: np.asarray(v.start, np.float32) for name, v in relaxed.variables.items()}
    values, moved = starts, {name: np.zeros_like(start) for name, start in starts.items()}
    state = rule.init(moved)
    with one_blas_thread():
        for k, some in enumerate(minibatches(task, batch, steps)):
            tape = run(
                task.graph,
                {part.input: inputs[some]},
                {**relaxed.fixed, **values},
                output=part.output,
                through=relaxed.through,
            )
            g = pullback(tape, objective(tape.output, some).cotangent, [name for name in values if name in tape.values])
            for name, more in (penalty(values, k / steps) if penalty else {}).items():
                g[name] = g[name] + more
            rates = {name: v.rate * factor(k, steps) for name, v in relaxed.variables.items()}
            moved, state = rule.step(moved, {name: d * units[name] for name, d in g.items()}, state, rates)
            values = {name: starts[name] + units[name] * step for name, step in moved.items()}
            if (k + 1) % SHOWN == 0 or k + 1 == steps:
                task.progress(f"reconstructing {part.output}", k + 1, steps)
    return values


def prefix(task: Task, plan: QuantPlan, tensor: str) -> Array:
    """A tensor of the network quantized so far, for all calibration images: the rest of a plan is float."""
    if not plan.weights and not plan.activations:
        return task.trace[tensor]
    return np.asarray(forward(task.graph, task.images, plan, mode="fake", trace=True)[1][tensor])


# ---- part by part ---------------------------------------------------------------------------------------------

Keep = Callable[[QuantPlan], object]
"""Called with the plan so far, after each part: to store it, so that a longer run can go on from there."""


def forget(state: object) -> None:
    """Nothing: what is done so far is not kept."""


def part_by_part(
    task: Task,
    parts: Sequence[Part],
    step: Callable[[Task, Part, QuantPlan], QuantPlan],
    *,
    done: QuantPlan | None = None,
    keep: Keep = forget,
) -> QuantPlan:
    """The plan after all parts, each added by `step` to the plan of those before it.

    done: the plan of an earlier run of the same task that was broken off; parts whose weights it has are left as they
    are.  Each part draws random numbers of its own (a child of `task.rng`), so the result is that of an unbroken run.
    """
    plan = done or QuantPlan()
    for part, rng in zip(parts, task.rng.spawn(len(parts)), strict=True):
        if not set(part.layers) <= set(plan.weights):
            plan = step(task.changed(rng=rng), part, plan)
            keep(plan)
    return plan
