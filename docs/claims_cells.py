"""The cells of docs/claims.md: one function a kind of measurement, from network, setting and seed to figures."""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
from claims_cases import POWERS
from scipy.optimize import minimize

import refquant as rq
from refquant.net.forward import forward
from refquant.net.gradient import run
from refquant.net.graph import Node, macs
from refquant.net.loss import divergence
from refquant.net.op import Array
from refquant.net.plan import ActivationQuantizer, QuantPlan
from refquant.ptq import adaquant as ada
from refquant.ptq import lapq
from refquant.ptq.activations import with_least_error
from refquant.ptq.adaquant import adaquant, from_range, read_range
from refquant.ptq.batchnorm import renormalized
from refquant.ptq.brecq import brecq, learn_codes
from refquant.ptq.complexity import complexity
from refquant.ptq.lapq import Surface, calibration_loss, fitted, least_power
from refquant.ptq.mixed import sensitivities, weight_bits
from refquant.ptq.multipoint import multipoint, points_of
from refquant.ptq.parts import Part, parts_of
from refquant.ptq.reconstruct import Relaxed, images_in, power_loss, read_activations, reconstruct
from refquant.ptq.soft import softness
from refquant.ptq.straight import free
from refquant.ptq.task import CALIBRATION_IMAGES, Task, make_task
from refquant.quant.multiterm import MultiTerm, with_counts
from refquant.solve.allocate import allocate
from refquant.solve.joint import minimize_scales
from refquant.solve.terms import encode_each

__all__ = [
    "Cell",
    "decay_cell",
    "drivers_cell",
    "layers_cell",
    "light_cell",
    "norms_cell",
    "parts_cell",
    "points_cell",
    "programme_cell",
    "rounding_cell",
    "scales_cell",
    "scores",
    "spare_task",
    "task_of",
    "tuned_cell",
    "unmoved_cell",
    "weighting_cell",
]

Cell = dict[str, Any]

EVALUATIONS = 100
"""Of the loss, a search of scales."""

STEPS, BATCH, RATE = 250, 16, 3e-2
"""Of Adam, a part; the rate is that of rounding variables."""


# ---- images, plans, scores ------------------------------------------------------------------------------------


def task_of(network: str, bits: tuple[int, int | None], images: int, seed: int, **kw: Any) -> Task:
    """The task of a seed: its own images and random numbers; labels only for what asks for them."""
    data = rq.load_data("fashion-mnist").calibration
    some = slice(seed * images % CALIBRATION_IMAGES, seed * images % CALIBRATION_IMAGES + images)
    return make_task(
        rq.load_network(network), data.x[some], labels=np.asarray(data.y)[some], bits=bits, seed=seed, **kw
    )


@cache
def spare_task(network: str) -> Task:
    data = rq.load_data("fashion-mnist").calibration
    some = slice(CALIBRATION_IMAGES, None)
    return make_task(rq.load_network(network), data.x[some], labels=np.asarray(data.y)[some])


def scores(task: Task, plan: QuantPlan) -> dict[str, float]:
    """At the logits: mean squared error relative to the variance, and divergence of the softmax."""
    z, q = task.trace[task.graph.output], forward(task.graph, task.images, plan, mode="fake")
    return {"error": float(((z - q) ** 2).mean() / z.var()), "divergence": divergence(q, z).value}


def both(task: Task, network: str, plan: QuantPlan) -> Cell:
    """On the calibration images, which the plan was made from, and on the spare ones."""
    return {"seen": scores(task, plan), "spare": scores(spare_task(network), plan)}


def nearest(task: Task) -> QuantPlan:
    return QuantPlan({n.name: task.encode(n) for n in task.graph.linear_nodes}, with_least_error(task).activations)


# ---- LAPQ -----------------------------------------------------------------------------------------------------


@cache
def least_at(network: str, bits: int, name: str, p: float) -> Array:
    """s(p) of a weight, which no image takes part in."""
    task = spare_task(network)
    weight = make_task(rq.load_network(network), task.images[:1], bits=(bits, None))
    return LEAST(weight, weight.graph.node(name), p)


LEAST = lapq.least


def searched(start: Surface, driver: str, evaluations: int, spare: Task) -> Cell:
    """The loss where a search begins and where it ends, and both on spare images."""
    ones = np.ones(len(start.names))
    end = minimize_scales(start, ones, method=driver, evaluations=evaluations)
    plans = {"first": start.plan(ones), "last": start.plan(end.scales)}
    spares = {f"spare {k}": calibration_loss(spare, plan) for k, plan in plans.items()}
    return {"first": float(end.losses[0]), "last": end.loss, **spares}


def surfaces(task: Task, network: str) -> Callable[[float], Surface]:
    """From p to the surface around s(p)."""
    own = patch.object(lapq, "least", lambda own, node, p: least_at(network, own.bits[0], node.name, p))
    with own:
        surface = Surface(task)

    @cache
    def at(p: float) -> Surface:
        with own:
            return fitted(surface, p)

    return at


def scales_cell(network: str, bits: str, seed: int) -> Cell:
    """The loss over p, and where searches from several p end."""
    w, a = map(int, bits.split("-"))
    task, spare = task_of(network, (w, a), 96, seed), spare_task(network)
    around = surfaces(task, network)
    losses = [around(p)(np.ones(len(around(p).names))) for p in POWERS]
    star, parabola = least_power(np.array(POWERS), np.array(losses))
    starts = {"star": star, "1": 1.0, "2": 2.0, "3": 3.0}
    ends = {f"powell {name}": searched(around(p), "powell", EVALUATIONS, spare) for name, p in starts.items()}
    return {"losses": losses, "star": star, "parabola": parabola, **ends}


def drivers_cell(network: str, bits: str, seed: int) -> Cell:
    """Powell and coordinate descent from the same scales, s(2.5), for as long that both go round once at least."""
    w, a = map(int, bits.split("-"))
    start, spare = surfaces(task_of(network, (w, a), 96, seed), network)(2.5), spare_task(network)
    return {driver: searched(start, driver, 3 * EVALUATIONS, spare) for driver in ("powell", "coordinate")}


# ---- AdaQuant -------------------------------------------------------------------------------------------------


def together(task: Task, steps: int) -> QuantPlan:
    """AdaQuant's variables of all layers at once, moved to lower the error of the logits: end-to-end tuning."""
    own, images = with_least_error(task), images_in(task.graph)
    (part,) = parts_of(own.graph, "network")
    reals = {n.name: free(own.weight(n), own.encode(n)) for n in own.graph.linear_nodes}
    relaxed = Relaxed()
    for name, real in reals.items():
        relaxed |= ada._layer(own, name, real)
    for tensor, q in own.activations.items():
        relaxed |= read_activations({tensor: q}) if tensor in images else read_range(tensor, q)
    objective = power_loss(own.trace[part.output])
    inputs = own.trace[part.input]
    found = reconstruct(own, part, inputs, relaxed, objective, steps=steps, batch=BATCH, schedule="cosine")
    plan = QuantPlan()
    for name, real in reals.items():
        alone = Part(own.graph.node(name).inputs[0], name, (name,))
        plan = ada._with_layer(own, plan, alone, real, found)
    return plan


def layer_errors(network: str, plan: QuantPlan) -> list[float]:
    """Of each layer alone, reading the float network's tensors, on spare images, relative to the variance."""
    task, found = spare_task(network), []
    for name, sums in plan.weights.items():
        tensor = task.graph.node(name).inputs[0]
        biases = {name: plan.biases[name]} if name in plan.biases else {}
        one = QuantPlan({name: sums}, {tensor: plan.activations[tensor]}, biases=biases)
        z, q = task.trace[name], forward(task.graph, task.images[:256], one, mode="fake", trace=True)[1][name]
        found.append(float(((z[:256] - q) ** 2).mean() / z.var()))
    return found


def layers_cell(network: str, images: str, seed: int) -> Cell:
    task = task_of(network, (4, 4), int(images), seed)
    plans = {
        "parallel": adaquant(task, sequential=False, steps=STEPS, batch=BATCH),
        "sequential": adaquant(task_of(network, (4, 4), int(images), seed), steps=STEPS, batch=BATCH),
        "together": together(task_of(network, (4, 4), int(images), seed), STEPS),
        "nearest": nearest(task),
    }
    found: Cell = {name: both(task, network, plan) for name, plan in plans.items()}
    return found | {f"layers {name}": layer_errors(network, plans[name]) for name in ("nearest", "parallel")}


def light_layer(own: Task, node: Node, known: ActivationQuantizer | None) -> tuple[MultiTerm, ActivationQuantizer]:
    """A factor of a layer's scales, and one and a shift of the range that it reads, by Nelder-Mead on its error.

    known: the quantizer of what it reads, where another layer has found it.  (The released code has a shift of the
    weights' range, too, and averages what it finds batch by batch.)
    """
    tensor, array = node.inputs[0], node.params["weight"]
    x, z, q = own.trace[tensor], own.trace[node.name], own.activations[tensor]
    W, start = own.weight(node), own.encode(node)
    extent, minimum = q.scale * (q.spec.qmax - q.spec.qmin), q.scale * (q.spec.qmin - q.zero_point)

    def at(p: Array) -> tuple[MultiTerm, ActivationQuantizer]:
        read = known or from_range(q, np.float32(extent * p[1]), np.float32(minimum + extent * p[2]))
        return lapq.requantized(W, start, p[0]), read

    def loss(p: Array) -> float:
        if min(p[:2]) <= 0.1:
            return np.inf
        sums, read = at(p)
        inputs = QuantPlan(activations={tensor: read}).activation(tensor, x)
        y = run(own.graph, {tensor: inputs}, {array: sums.decode()}, output=node.name).output
        return float(((y - z) ** 2).mean())

    simplex = np.array([[1, 1, 0], [1.1, 1, 0], [1, 1.1, 0], [1, 1, 0.05]])
    options = {"maxfev": 60, "initial_simplex": simplex}
    return at(minimize(loss, simplex[0], method="Nelder-Mead", options=options).x)


def light(task: Task) -> QuantPlan:
    """AdaQuant's form without moving weights: ranges of each layer alone."""
    own, plan = with_least_error(task), QuantPlan()
    for node in own.graph.linear_nodes:
        sums, read = light_layer(own, node, plan.activations.get(node.inputs[0]))
        plan = QuantPlan({**plan.weights, node.name: sums}, {**plan.activations, node.inputs[0]: read})
    return plan


def light_cell(network: str, images: str, seed: int) -> Cell:
    task = task_of(network, (4, 4), int(images), seed)
    return {name: both(task, network, plan) for name, plan in (("light", light(task)), ("nearest", nearest(task)))}


def norms_cell(network: str, bits: str, seed: int) -> Cell:
    """Cross-entropy before and after para-normalization."""
    task = task_of(network, (int(bits), 8), 128, seed)
    plan, spare = nearest(task), spare_task(network)
    new = renormalized(task, plan)
    return {
        name: {"seen": calibration_loss(task, p), "spare": calibration_loss(spare, p)}
        for name, p in (("before", plan), ("after", new))
    }


def tuned_cell(network: str, bits: str, seed: int) -> Cell:
    """The same with weights, biases and ranges that AdaQuant has tuned."""
    task, spare = task_of(network, (int(bits), 8), 128, seed), spare_task(network)
    plan = adaquant(task, steps=STEPS, batch=BATCH)
    plans = {"before": plan, "after": renormalized(task, plan)}
    return {name: {"seen": calibration_loss(task, p), "spare": calibration_loss(spare, p)} for name, p in plans.items()}


def unmoved_cell(network: str, _: str, seed: int) -> Cell:
    task = task_of(network, (4, None), 32, seed)
    plan = nearest(task)
    z, same = (forward(task.graph, task.images, p, mode="fake") for p in (plan, renormalized(task, plan, momentum=0.0)))
    return {"apart": float(np.abs(z - same).max() / np.abs(z).max())}


def programme_cell(network: str, _: str, seed: int) -> Cell:
    """Largest difference of the programme's optimum from brute force, over budgets, relative to the largest loss."""
    tasks = [task_of(network, (bits, 8), 32, seed) for bits in (2, 4, 8)]
    plans = [nearest(task) for task in tasks]
    table, cost = sensitivities(tasks[-1], plans, pairs=False).single, weight_bits(plans)
    rows = np.arange(len(cost))
    every = np.array(list(product(range(3), repeat=len(cost))))
    loss, paid = table[rows, every].sum(axis=1), cost[rows, every].sum(axis=1)
    apart = [
        abs(float(allocate(table, cost, share * cost[:, -1].sum()).objective) - loss[paid <= share * paid.max()].min())
        for share in (0.3, 0.45, 0.6, 0.75, 0.9)
    ]
    return {"apart": max(apart) / float(np.abs(loss).max()), "layers": len(cost), "allocations": len(every)}


# ---- BRECQ ----------------------------------------------------------------------------------------------------


def parts_cell(network: str, setting: str, seed: int) -> Cell:
    """Granularity and images, 2-bit weights; `network4` takes four times as many steps."""
    granularity, images = setting.split("-")
    steps = STEPS * (4 if granularity.endswith("4") else 1)
    task = task_of(network, (2, None), int(images), seed)
    return both(task, network, brecq(task, granularity=granularity.rstrip("4"), steps=steps, batch=BATCH, rate=RATE))


def weighting_cell(network: str, weighting: str, seed: int) -> Cell:
    task = task_of(network, (2, None), 64, seed)
    return both(task, network, brecq(task, weighting=weighting, steps=STEPS, batch=BATCH, rate=RATE))


def rounding_cell(network: str, bits: str, seed: int) -> Cell:
    """Nearest against AdaRound's (layer by layer) codes, weights alone; and how far the last layer's are decided."""
    task = task_of(network, (int(bits), None), 64, seed)
    plans = {"nearest": nearest(task), "learned": brecq(task, granularity="layer", steps=STEPS, batch=BATCH, rate=RATE)}
    part = parts_of(task.graph, "layer")[-1]
    node = task.graph.node(part.layers[0])
    array = node.params["weight"]
    hard, values = learn_codes(task, part, QuantPlan(), steps=4 * STEPS, batch=BATCH, weight=1.0, rate=RATE)
    h = softness(values[array])[0]
    soft = hard[node.name].decode(np.float64) + 0.0
    scale = task.granularity.spread(hard[node.name].scales[-1], soft.shape)
    soft = soft + scale * (h - (h >= 0.5))
    x, z = task.trace[part.input], task.trace[part.output]
    errors = [
        float(
            (
                (run(task.graph, {part.input: x}, {array: v.astype(np.float32)}, output=part.output).output - z) ** 2
            ).mean()
        )
        for v in (soft, hard[node.name].decode())
    ]
    gap = {"undecided": float(((h > 0) & (h < 1)).mean()), "soft": errors[0], "hard": errors[1]}
    return {name: both(task, network, plan) for name, plan in plans.items()} | gap


# ---- Multipoint -----------------------------------------------------------------------------------------------


def points_cell(network: str, budget: str, seed: int) -> Cell:
    """Channels chosen by output error against random choices at the same share of every layer's channels."""
    task = task_of(network, (2, 8), 64, seed, budget=float(budget))
    ranked = multipoint(task, most=2)
    points = {n.name: points_of(task, n, 2) for n in task.graph.linear_nodes}
    operations = complexity(task.graph, ranked).bit_operations
    found = []
    for _ in range(5):
        weights = {}
        for name, each in points.items():
            counts = np.ones(each[0].counts.shape, np.int64)
            counts[task.rng.permutation(len(counts))[: round((float(budget) - 1) * len(counts))]] = 2
            weights[name] = with_counts(each, counts)
        plan = QuantPlan(weights, task.activations)
        found.append(scores(spare_task(network), plan) | {"operations": complexity(task.graph, plan).bit_operations})
    work, bits = macs(task.graph), 2 * 8
    counted = sum(work[name] * float(w.counts.mean()) * bits for name, w in ranked.weights.items())
    chosen = scores(spare_task(network), ranked) | {"operations": operations, "counted": counted}
    return {"ranked": chosen, "random": found}


def decay_cell(network: str, bits: str, _: int) -> Cell:
    """The largest ratio of an error to what was proved: (a) absmax scales, in the largest error; (b) best scales."""
    task = task_of(network, (int(bits), 8), 1, 0)
    worst = {"a": 0.0, "b": 0.0}
    slope: dict[str, list[float]] = {"a": [], "b": []}
    for node in task.graph.linear_nodes:
        W = task.weight(node).astype(np.float64).reshape(len(task.weight(node)), -1)
        spec = rq.QuantSpec(int(bits), narrow=True, granularity=rq.PerChannel(0))
        absmax = encode_each(task.weight(node), spec=spec, terms=4, method="greedy-absmax")
        best = points_of(task, node, 4)
        first, d = np.abs(W).max(axis=1), W.shape[1]
        length = np.sqrt((W**2).sum(axis=1))
        for n, (one, two) in enumerate(zip(absmax, best, strict=True), start=1):
            e = np.abs(one.decode(np.float64).reshape(W.shape) - W).max(axis=1)
            r = np.sqrt(((two.decode(np.float64).reshape(W.shape) - W) ** 2).sum(axis=1))
            worst["a"] = max(worst["a"], float((e / first).max() / (0.5 / (2 ** (int(bits) - 1) - 1)) ** n))
            worst["b"] = max(worst["b"], float((r / length).max() / (1 - 1 / d) ** (n / 2)))
            slope["a"].append(float(np.log(e / first).mean() / n))
            slope["b"].append(float(np.log(r / length).mean() / n))
    return {name: {"worst": worst[name], "slope": float(np.mean(slope[name]))} for name in worst}
