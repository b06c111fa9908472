"""Optimizers against steps by hand, schedules against their definitions."""

import math
from typing import Any

import numpy as np
import pytest

from refquant.errors import ArgumentError
from refquant.net.optimize import SCHEDULES, Optimizer, adam, constant, cosine, decayed, linear, sgd


def steps(rule: Optimizer, w: float, gradients: list[float], rate: Any) -> list[float]:
    """Where a single param is after each step."""
    params, path = {"w": np.array(w)}, []
    state = rule.init(params)
    for g in gradients:
        params, state = rule.step(params, {"w": np.array(g)}, state, rate)
        path.append(float(params["w"]))
    return path


def test_sgd_by_hand() -> None:
    """Dyadic numbers: exact.  m = 8, 4 + 4, 4 - 16 with momentum 1/2."""
    assert steps(sgd(), 1.0, [8, 4, -16], 0.25) == [-1, -2, 2]
    assert steps(sgd(momentum=0.5), 1.0, [8, 4, -16], 0.25) == [-1, -3, 0]
    assert steps(sgd(momentum=0.5, nesterov=True), 1.0, [8, 4, -16], 0.25) == [1 - 3, -2 - 2, -4 + 5.5]


def adam_by_definition(w: float, gradients: list[float], rate: float, b1: float, b2: float, e: float) -> list[float]:
    """Algorithm 1 of Kingma and Ba, with the sums written out."""
    path = []
    for t in range(1, len(gradients) + 1):
        seen = gradients[:t]
        m = sum((1 - b1) * b1 ** (t - i) * g for i, g in enumerate(seen, 1)) / (1 - b1**t)
        v = sum((1 - b2) * b2 ** (t - i) * g * g for i, g in enumerate(seen, 1)) / (1 - b2**t)
        w -= rate * m / (math.sqrt(v) + e)
        path.append(w)
    return path


@pytest.mark.parametrize("fault", [0.0, 1e-6])
def test_adam_is_its_definition(fault: float) -> None:
    """All sums are of 6 terms of size at most 9, and 1 - b^t is at least 1e-2: 1e-12 is a hundred roundings of them."""
    gradients = [1.0, -3.0, 0.5, 9.0, 0.0, 2.0]
    found = steps(adam(0.75, 0.99, 0.125), 2.0, gradients, 0.1)
    expected = adam_by_definition(2.0, gradients, 0.1, 0.75, 0.99 + fault, 0.125)
    assert bool(np.abs(np.array(found) - expected).max() <= 1e-12) == (fault == 0)


def test_adams_first_step_is_the_rate_whatever_the_gradient() -> None:
    for g in (1e-3, 5.0, -1e6):
        assert abs(steps(adam(), 0.0, [g], 0.5)[0] + math.copysign(0.5, g)) <= 1e-5 * 0.5  # epsilon / |g|


@pytest.mark.parametrize("rule", [sgd(0.9), sgd(0.9, nesterov=True), adam()], ids=["momentum", "nesterov", "adam"])
def test_steps_are_pure_and_each_param_has_its_own_rate(rule: Optimizer) -> None:
    params = {name: np.zeros(2, np.float32) for name in ("a", "b", "still")}
    gradients = {name: np.full(2, 3.0, np.float32) for name in ("a", "b")}
    state = rule.init(params)
    before = {name: w.copy() for name, w in params.items()}
    once, after = rule.step(params, gradients, state, {"a": 0.5, "b": 0.25})
    again, _ = rule.step(params, gradients, state, {"a": 0.5, "b": 0.25})
    assert all(np.array_equal(params[name], before[name]) for name in params)
    assert all(not m.any() for averages in state.averages.values() for m in averages.values())
    assert all(np.array_equal(once[name], again[name]) and once[name].dtype == np.float32 for name in params)
    assert np.array_equal(once["a"], 2 * once["b"])
    assert once["still"] is params["still"]
    assert (state.steps, after.steps) == (0, 1)


def test_decay_is_the_gradient_of_a_square() -> None:
    w, g = {"w": np.array([2.0, -4.0]), "b": np.array([1.0])}, {"w": np.array([1.0, 1.0])}
    assert {name: v.tolist() for name, v in decayed(w, g, 0.5).items()} == {"w": [2.0, -1.0]}


def test_schedules_fall_from_one_to_nothing() -> None:
    total = 10
    for name, schedule in SCHEDULES.items():
        path = [schedule(step, total) for step in range(total + 1)]
        assert path[0] == 1
        assert path == sorted(path, reverse=True)
        assert abs(path[-1] - (name == "constant")) <= 2.0**-52
    assert [constant(3, total), linear(3, total)] == [1, 0.7]
    assert abs(cosine(5, total) - 0.5) <= 2.0**-53
    assert cosine(2, total) > linear(2, total)


def test_schedules_of_no_steps_start_at_1() -> None:
    assert {schedule(0, 0) for schedule in SCHEDULES.values()} == {1.0}


@pytest.mark.parametrize(
    "wrong", [{"beta1": 1.0}, {"beta2": 1.0}, {"beta1": -0.1}, {"beta2": math.nan}, {"epsilon": -1e-8}], ids=str
)
def test_adam_refuses_averages_that_mean_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match="betas of at least 0"):
        adam(**wrong)
