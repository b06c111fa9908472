"""Reconstruction: what moves, in which units, and runs that are broken off and go on."""

from typing import Any

import numpy as np
import pytest

import refquant as rq
from refquant.net.plan import QuantPlan
from refquant.ptq.adaquant import adaquant
from refquant.ptq.brecq import blockwise, brecq
from refquant.ptq.parts import parts_of
from refquant.ptq.reconstruct import Relaxed, Variable, power_loss, prefix, reconstruct
from refquant.ptq.task import Task, make_task

IMAGES = rq.load_data("fashion-mnist").calibration.x


def task_of(name: str = "mlp", images: int = 48, bits: tuple[int, int | None] = (2, 4), **kw: Any) -> Task:
    return make_task(rq.load_network(name), IMAGES[:images], bits=bits, **kw)


def test_the_first_step_is_the_rate_in_units_and_others_stay() -> None:
    task = task_of()
    part = parts_of(task.graph, "block")[2]
    bias = task.bias(task.graph.node("gemm3"))
    unit = np.linspace(1, 3, 10).astype(np.float32)
    variables = {"gemm3.bias": Variable(bias + 1, unit, 0.01), "gemm1.bias": Variable(np.ones(256), 1.0, 0.01)}
    target = task.trace["gemm3"]
    relaxed, x = Relaxed(variables=variables), task.trace["relu2"]
    found = reconstruct(task, part, x, relaxed, power_loss(target), steps=1, batch=16)
    # Adam's first step is the rate, against the gradient's sign, here positive; float32 numbers below 8
    assert np.abs(found["gemm3.bias"] - (bias + 1 - 0.01 * unit)).max() < 2.0**-20
    assert np.array_equal(found["gemm1.bias"], np.ones(256))  # nothing in the part reads it


def test_a_bias_finds_its_way_back() -> None:
    task = task_of()
    part = parts_of(task.graph, "block")[2]
    bias = task.bias(task.graph.node("gemm3"))
    relaxed = Relaxed(variables={"gemm3.bias": Variable(bias + 0.1, 1.0, 0.01)})
    target, x = task.trace["gemm3"], task.trace["relu2"]
    found = reconstruct(task, part, x, relaxed, power_loss(target), steps=300, batch=48, schedule="linear")
    assert np.abs(found["gemm3.bias"] - bias).max() < 1e-3


def test_the_loss_sums_over_channels_and_averages_over_images_and_positions() -> None:
    target = np.zeros((2, 3, 2, 2), np.float32)
    some = np.array([0, 1])
    assert power_loss(target)(target + 2, some).value == 12.0  # three channels of 2^2
    assert power_loss(target, weights=np.full_like(target, 0.5))(target + 2, some).value == 6.0


def test_the_prefix_is_float_where_nothing_is_quantized_yet() -> None:
    task = task_of()
    assert prefix(task, QuantPlan(), "relu1") is task.trace["relu1"]
    later = QuantPlan({"gemm2": task.encode(task.graph.node("gemm2"))})
    assert np.array_equal(prefix(task, later, "relu1"), task.trace["relu1"])
    assert not np.array_equal(prefix(task, later, "relu2"), task.trace["relu2"])


RUNS: dict[str, Any] = {
    "brecq": lambda task, **kw: brecq(task, steps=4, scale_steps=2, **kw),
    "blockwise": lambda task, **kw: blockwise(task, steps=4, **kw),
    "adaquant": lambda task, **kw: adaquant(task, steps=4, batch=16, **kw),
}


def same(one: QuantPlan, other: QuantPlan) -> bool:
    return all(
        np.array_equal(one.weights[name].codes, w.codes) and np.array_equal(one.weights[name].scales, w.scales)
        for name, w in other.weights.items()
    ) and all(np.array_equal(one.activations[tensor].scale, q.scale) for tensor, q in other.activations.items())


@pytest.mark.parametrize("method", RUNS)
@pytest.mark.guarantee(
    "A method broken off after any part and taken up again gives the unbroken run's plan", kind="sampled"
)
def test_a_run_broken_off_and_taken_up_again_is_the_unbroken_one(method: str) -> None:
    kept: list[QuantPlan] = []
    whole = RUNS[method](task_of(), keep=kept.append)
    assert [len(plan.weights) for plan in kept] == [1, 2, 3]
    assert same(RUNS[method](task_of(), done=kept[1]), whole)
    assert not same(RUNS[method](task_of(seed=1), done=kept[0]), whole)


def test_progress_is_told_to_the_end_of_every_part() -> None:
    seen: list[tuple[str, int, int]] = []
    blockwise(task_of(progress=lambda *news: seen.append(news)), steps=60)
    assert [news[1:] for news in seen] == [(50, 60), (60, 60)] * 3
    assert len({news[0] for news in seen}) == 3
