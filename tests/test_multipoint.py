"""Multipoint: the decay that is proved, points by output error against chance, budgets and their accounting."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import refquant as rq
from refquant.ptq.complexity import complexity
from refquant.ptq.multipoint import multipoint, point_errors, points_for_budget, points_for_threshold, points_of
from refquant.ptq.task import Task, make_task
from refquant.quant.multiterm import with_counts
from refquant.solve.terms import encode_each

DATA = rq.load_data("fashion-mnist")


def task_of(name: str, bits: int = 2, budget: float | None = None) -> Task:
    return make_task(rq.load_network(name), DATA.calibration.x[:64], bits=(bits, 8), budget=budget)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_errors_decay_geometrically(bits: int) -> None:
    """|r_n|^2 <= (1 - 1/d) |r_(n-1)|^2: 0 and +-1 are on the grid, and the certified scale is the best one."""
    task = task_of("resnet", bits)
    for name in ("conv1", "conv2", "gemm1"):
        node = task.graph.node(name)
        W = task.weight(node).astype(float)
        left = [(W**2).reshape(len(W), -1).sum(axis=1)]
        left += [((p.decode(np.float64) - W) ** 2).reshape(len(W), -1).sum(axis=1) for p in points_of(task, node)]
        d = W[0].size
        for before, after in pairwise(left):
            # scales rounded to float32 move a sum of squares by at most 2^-23 of what was there
            assert np.all(after <= (1 - 1 / d) * before + 2.0**-22 * left[0])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_with_absmax_scales_the_largest_error_falls_by_half_a_step_a_point(bits: int) -> None:
    """|r_n|_inf <= (1 / (2 qmax))^n |w|_inf, where every a_i is the largest magnitude of what is left."""
    task = task_of("resnet", bits)
    spec, step = replace(task.weight_spec, narrow=True), 1 / (2 ** (bits - 1) - 1)
    for node in task.graph.linear_nodes:
        W = task.weight(node).astype(np.float64)
        first = np.abs(W.reshape(len(W), -1)).max(axis=1)
        each = encode_each(task.weight(node), spec=spec, terms=4, method="greedy-absmax")
        for n, sums in enumerate(each, start=1):
            left = np.abs((sums.decode(np.float64) - W).reshape(len(W), -1)).max(axis=1)
            # each of n scales is rounded to float32, by at most 2^-24 of itself
            assert np.all(left <= (step / 2) ** n * first * (1 + n * 2.0**-23))
            assert n > 1 or np.any(left > 0.9 * step / 2 * first)  # nearly met: half a step would be noticed


def test_points_are_never_worse_than_the_papers_grid_search() -> None:
    """A grid of 500 coefficients in (0, 2 |r|_inf], least squares afterwards: what the paper's algorithm does."""
    task = task_of("mlp", 2)
    node = task.graph.node("gemm3")
    W = task.weight(node).astype(float)
    one = points_of(task, node, 1)[0].decode(np.float64)
    for w, found in zip(W, one, strict=True):
        errors = []
        for a in np.linspace(0, 2 * np.abs(w).max(), 501)[1:]:
            q = np.clip(np.rint(w / a), -1, 1)
            errors.append(np.sum((w - a * q) ** 2))
        assert np.sum((w - found) ** 2) <= min(errors) * (1 + 1e-6)


def test_thresholds_are_kept_with_the_fewest_points() -> None:
    task = task_of("cnn", 3)
    eta = 0.5
    plan = multipoint(task, threshold=eta)
    for node in task.graph.linear_nodes:
        errors = point_errors(task, node, points_of(task, node))
        counts = plan.weights[node.name].counts
        chosen = errors[np.arange(len(errors)), counts - 1]
        assert np.all((chosen <= eta) | (counts == errors.shape[1]))
        assert np.all((counts == 1) | (errors[np.arange(len(errors)), counts - 2] > eta))


def test_budgets_are_kept_and_nearly_used() -> None:
    for budget in (1.0, 1.2, 1.5, 2.0):
        task = task_of("resnet", 2, budget)
        single = complexity(task.graph, multipoint(task_of("resnet", 2))).bit_operations
        spent = complexity(task.graph, multipoint(task)).bit_operations / single
        assert spent <= budget * (1 + 1e-9)
        assert spent > budget - 0.05 or budget == 1.0


def test_the_budgets_threshold_is_the_least() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        errors = np.sort(rng.random((6, 4)), axis=1)[:, ::-1]
        costs = rng.random(6)
        budget = float(costs.sum() * rng.uniform(1, 4))
        counts, eta = points_for_budget(errors, costs, budget)
        assert counts @ costs <= budget * (1 + 1e-12)
        lower = np.unique(errors)[np.unique(errors) < eta]
        assert all(points_for_threshold(errors, e) @ costs > budget for e in lower)


def test_choice_by_output_error_beats_chance() -> None:
    """The papers' ablation: at equal bit operations, ten random choices of channels; error at the logits."""
    budget, task = 1.5, task_of("mlp", 2, 1.5)
    images = DATA.calibration.x[512:]
    reference = rq.forward(task.graph, images)

    def error(plan: rq.QuantPlan) -> float:
        return float(np.mean((rq.forward(task.graph, images, plan, mode="fake") - reference) ** 2))

    points = {n.name: points_of(task, n, 2) for n in task.graph.linear_nodes}
    rng = np.random.default_rng(1)
    by_chance = []
    for _ in range(10):
        weights = {}
        for name, each in points.items():
            counts = np.ones(each[0].counts.shape, np.int64)
            counts[rng.permutation(len(counts))[: round((budget - 1) * len(counts))]] = 2
            weights[name] = with_counts(each, counts)
        by_chance.append(error(rq.QuantPlan(weights, task.activations)))
    assert error(multipoint(task)) < min(by_chance)


def test_refusals() -> None:
    with pytest.raises(rq.ArgumentError, match="one of both"):
        multipoint(task_of("mlp", 2, 1.5), threshold=1.0)
    grouped = make_task(rq.load_network("mlp"), DATA.calibration.x[:8], granularity=rq.PerGroup(1, 16))
    with pytest.raises(rq.ArgumentError, match="by output channel"):
        multipoint(grouped)
