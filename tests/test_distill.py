"""Distillation from logits: what moves, what stays, and that logits come closer."""

from dataclasses import replace
from typing import Any

import numpy as np

import refquant as rq
from refquant.net.forward import forward
from refquant.net.gradient import pullback, run
from refquant.net.loss import divergence
from refquant.net.plan import QuantPlan
from refquant.ptq.distill import blockwise_distilled, distill, relaxed_biases, relaxed_scales, rescaled
from refquant.ptq.methods import METHODS
from refquant.ptq.reconstruct import images_in, read_activations
from refquant.ptq.task import Task, make_task

DATA = rq.load_data("fashion-mnist")


def task_of(name: str, images: int, bits: tuple[int, int | None], **kw: Any) -> Task:
    return make_task(rq.load_network(name), DATA.calibration.x[:images], bits=bits, **kw)


def nearest_plan(task: Task) -> QuantPlan:
    return QuantPlan({node.name: task.encode(node) for node in task.graph.linear_nodes}, task.activations)


def loss(task: Task, plan: QuantPlan, images: np.ndarray) -> float:
    z, q = forward(task.graph, images), forward(task.graph, images, plan, mode="fake")
    return divergence(q, z).value


def test_codes_and_zero_points_stay_and_all_else_moves() -> None:
    task = task_of("cnn", 64, (2, 4))
    plan = nearest_plan(task)
    found = distill(task, plan, steps=8, batch=16)
    for name, sums in plan.weights.items():
        assert np.array_equal(found.weights[name].codes, sums.codes)
        assert np.mean(found.weights[name].scales != sums.scales) > 0.5  # the units that no image lights stay
        assert np.mean(found.biases[name] != task.bias(task.graph.node(name))) > 0.5
    for tensor, q in plan.activations.items():
        assert found.activations[tensor].zero_point == q.zero_point
        assert (found.activations[tensor].scale == q.scale) == (tensor in images_in(task.graph))


def test_logits_come_closer_on_held_out_images() -> None:
    task = task_of("mlp", 256, (2, 4))
    plan = nearest_plan(task)
    before, after = (
        loss(task, p, DATA.calibration.x[512:])
        for p in (plan, distill(task, plan, steps=120, rate=1e-2, scale_rate=3e-3))
    )
    assert after < 0.5 * before


def test_without_a_rate_of_scales_biases_alone_move() -> None:
    task = task_of("mlp", 16, (3, 4))
    plan = nearest_plan(task)
    found = distill(task, plan, steps=3, scale_rate=0.0)
    assert all(np.array_equal(found.weights[name].scales, sums.scales) for name, sums in plan.weights.items())
    assert all(found.activations[tensor].scale == q.scale for tensor, q in plan.activations.items())
    assert not np.array_equal(found.biases["gemm2"], task.bias(task.graph.node("gemm2")))


def test_no_step_leaves_the_plan_as_it_is() -> None:
    task = task_of("mlp", 8, (3, 4))
    plan = nearest_plan(task)
    same = distill(task, plan, steps=0)
    images = DATA.calibration.x[:32]
    assert np.array_equal(forward(task.graph, images, plan, "fake"), forward(task.graph, images, same, "fake"))


def test_all_terms_of_a_channel_are_scaled_by_one_factor() -> None:
    task = replace(task_of("mlp", 8, (2, None)), terms={"gemm1": 2})
    sums = task.encode(task.graph.node("gemm1"))
    factor = np.linspace(0.5, 2, 256)
    scaled = rescaled(sums, factor)
    assert np.allclose(scaled.decode(), sums.decode() * factor[:, None], rtol=2.0**-21)
    assert np.array_equal(scaled.codes, sums.codes)


def test_the_relaxed_network_is_the_quantized_one_and_its_gradient_by_a_bias_is_exact() -> None:
    task = task_of("mlp", 32, (3, None))
    plan = nearest_plan(task)
    relaxed = relaxed_biases(task, plan, 0.1) | relaxed_scales(task, plan.weights, 0.1) | read_activations({})
    x, target = task.trace["input"].astype(np.float64), task.trace["gemm3"].astype(np.float64)
    starts = {name: np.asarray(v.start, np.float64) for name, v in relaxed.variables.items()}

    def value(at: dict[str, np.ndarray]) -> tuple[float, Any]:
        tape = run(task.graph, {"input": x}, {**relaxed.fixed, **at}, through=relaxed.through)
        return divergence(tape.output, target).value, tape

    at, tape = value(starts)
    fake = forward(task.graph, task.images, plan, mode="fake")
    assert np.abs(tape.output - fake).max() < 2.0**-12 * np.abs(fake).max()  # float32 sums of at most 784 products
    g = pullback(tape, divergence(tape.output, target).cotangent, ["gemm3.bias", "gemm2.weight.factor"])
    step = 2.0**-14
    for name, k in (("gemm3.bias", 3), ("gemm2.weight.factor", 5)):
        e = np.zeros_like(starts[name])
        e[k] = step
        ends = [value({**starts, name: starts[name] + way * e})[0] for way in (1, -1)]
        # third derivatives of log-sum-exp are below 1 for biases; Relu's kinks may lie between for factors
        assert abs((ends[0] - ends[1]) / (2 * step) - g[name][k]) < (2.0**-28 if name == "gemm3.bias" else 2.0**-9)
    assert at > 0


def test_the_method_is_in_the_table_and_gives_a_whole_plan() -> None:
    task = task_of("cnn", 32, (2, 4))
    plan = blockwise_distilled(task, steps=3, distill_steps=3)
    assert METHODS["blockwise-distilled"] is blockwise_distilled
    assert sorted(plan.weights) == sorted(plan.biases) == sorted(node.name for node in task.graph.linear_nodes)
    assert np.isfinite(forward(task.graph, task.images, plan, mode="fake")).all()
