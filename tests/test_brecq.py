"""BRECQ: rounding variables and their op, hard codes, weightings, and the paper's claims on small settings."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import refquant as rq
from refquant.errors import ArgumentError
from refquant.net.curvature import gauss_newton_product
from refquant.net.forward import forward
from refquant.net.gradient import run
from refquant.net.graph import Graph, InputSpec, Node
from refquant.net.loss import cross_entropy
from refquant.net.ops_quantize import FAKE_QUANTIZE
from refquant.net.plan import ActivationQuantizer, QuantPlan
from refquant.ptq.activations import with_least_error
from refquant.ptq.brecq import WEIGHTINGS, blockwise, brecq, fisher, learn_codes
from refquant.ptq.parts import parts_of
from refquant.ptq.reconstruct import read_activations
from refquant.ptq.soft import SOFT_ROUND, hardness, regularizer, soften, softness
from refquant.ptq.task import Task, make_task
from refquant.quant.multiterm import sound, with_counts
from refquant.solve.rounding_oracle import best_rounding, rounding_error
from refquant.solve.terms import encode_each

DATA = rq.load_data("fashion-mnist")


def task_of(name: str, images: int, bits: tuple[int, int | None], **kw: Any) -> Task:
    return make_task(rq.load_network(name), DATA.calibration.x[:images], bits=bits, **kw)


# ---- rounding variables ---------------------------------------------------------------------------------------


def test_softness_and_hardness_are_inverse_and_softness_ends_at_log_11() -> None:
    h = np.linspace(0.001, 0.999, 57)
    # -log cancels nothing, and h' <= 0.3, so errors stay within a few roundoffs of 1.2 / h: 2^-40 is a hundredfold.
    assert np.abs(softness(hardness(h))[0] - h).max() < 2.0**-40
    beyond = np.log(11) * np.array([-1.001, 1.001])
    assert softness(beyond)[0].tolist() == [0.0, 1.0]
    assert softness(beyond)[1].tolist() == [0.0, 0.0]
    assert np.all(softness(0.999 * beyond)[1] > 0)


def differences(f: Any, v: np.ndarray, step: float = 2.0**-12) -> np.ndarray:
    return np.array([(f(v + step * e) - f(v - step * e)) / (2 * step) for e in np.eye(v.size)])


def test_the_regularizers_derivative_is_that_of_its_value() -> None:
    v = np.random.default_rng(0).uniform(-2, 2, 7)
    for beta in (2.0, 5.0, 20.0):
        found = regularizer(v, beta)[1]
        # step^2 / 6 |f'''| with |f'''| below (2 beta)^3; rounding of values up to 7: 7 u 2^12
        tolerance = 2.0**-24 / 6 * (2 * beta) ** 3 + 7 * 2.0**-41 * 8
        assert np.abs(differences(lambda u, b=beta: regularizer(u, b)[0], v) - found).max() < tolerance
        assert (
            np.abs(differences(lambda u, b=beta: 1.01 * regularizer(u, b)[0], v) - found).max() > tolerance
        )  # planted


GRAINS = [(rq.PerTensor(), ()), (rq.PerChannel(0), (3,)), (rq.PerGroup(1, 2), (3, 2))]


@pytest.mark.parametrize(("grain", "shape"), GRAINS, ids=str)
@pytest.mark.guarantee("The op of rounding variables has the derivative of its value, forward and back", kind="sampled")
def test_the_op_has_the_derivative_of_its_value(grain: Any, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    v, base, floor = rng.uniform(-2, 2, (3, 3)), rng.normal(size=(3, 3)), rng.integers(-2, 2, (3, 3)).astype(float)
    values: dict[Any, Any] = {0: v, "base": base, "floor": floor, "scale": rng.uniform(0.5, 2, shape)}

    def output(at: dict[Any, Any]) -> np.ndarray:
        params = {role: at[role] for role in ("base", "floor", "scale")}
        return np.asarray(SOFT_ROUND.forward({"granularity": grain}, params, [at[0]]))

    params = {role: values[role] for role in ("base", "floor", "scale")}
    point = SOFT_ROUND.at({"granularity": grain}, params, [v])
    u = rng.normal(size=v.shape)
    for slot, value in values.items():
        t, step = rng.normal(size=np.shape(value)), 2.0**-12
        along = SOFT_ROUND.derivative.jvp(point, {slot: t})
        ends = [output({**values, slot: value + way * t}) for way in (step, -step)]
        # |h'''| < 0.2, scales below 2, tangents below 4 in modulus; rounding of values below 16 over the step
        tolerance = 2.0**-24 / 6 * 0.2 * 2 * 4**3 + 16 * 2.0**-53 * 8 / step
        assert np.abs((ends[0] - ends[1]) / (2 * step) - along).max() < tolerance
        back = SOFT_ROUND.derivative.vjp(point, u, [slot])[slot]
        assert abs(np.sum(back * t) - np.sum(u * along)) < 64 * 2.0**-53 * np.sum(np.abs(u) * np.abs(along) + 1)
        assert abs(np.sum(1.001 * back * t) - np.sum(u * along)) > 64 * 2.0**-53 * np.sum(np.abs(u) * np.abs(along) + 1)


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_rounding_variables_start_at_the_weight_and_harden_to_the_nearest_codes(terms: int) -> None:
    rng = np.random.default_rng(terms)
    w = rng.normal(size=(4, 30)).astype(np.float32)
    spec = rq.QuantSpec(3, granularity=rq.PerChannel(0))
    each = encode_each(w, spec=spec, terms=terms, method="greedy")
    counts = np.minimum([1, 2, 3, 1], terms)
    sums = with_counts(each, counts)
    soft = soften(w, sums)
    relaxed = soft.base + soft.scale[:, None] * (soft.floor + softness(soft.start)[0])
    hard = sound(soft.harden(soft.start), "here")
    assert np.array_equal(hard.codes, sums.codes)  # greedy's last codes are nearest; no ties in these weights
    low, high = (np.array([[spec.qmin] if c == 1 else [1 - 2**2] for c in counts]), np.full((4, 1), spec.qmax))
    r = (w - soft.base) / soft.scale[:, None]
    inside = (r >= low) & (r <= high)
    # v's margin is a hundredth of a step; float32 rounds values of at most 2^3 steps and a base of at most 8
    allowed = 0.01 * soft.scale[:, None] + 2.0**-20
    assert np.all(np.abs(relaxed - w)[inside] <= np.broadcast_to(allowed, w.shape)[inside])
    for v in (np.full(w.shape, 9.0), np.full(w.shape, -9.0)):
        sound(soft.harden(v), "here")  # every choice stays on the grid
    assert (soft.harden(np.full(w.shape, 9.0)).codes != soft.harden(np.full(w.shape, -9.0)).codes).sum() == w.size


def test_hardening_replaces_the_scales_of_last_terms_alone() -> None:
    w = np.random.default_rng(0).normal(size=(2, 9)).astype(np.float32)
    spec = rq.QuantSpec(3, granularity=rq.PerChannel(0))
    sums = with_counts(encode_each(w, spec=spec, terms=2, method="greedy"), [1, 2])
    soft = soften(w, sums)
    new = soft.harden(soft.start, np.array([7.0, 8.0])).scales
    assert new.tolist() == [[7.0, sums.scales[0, 1]], [1.0, 8.0]]


# ---- learned rounding -----------------------------------------------------------------------------------------


def layer(w: np.ndarray, inputs: np.ndarray) -> Task:
    """One Gemm whose input's images are these rows."""
    node = Node("y", "Gemm", ("x",), {"in_features": w.shape[1], "out_features": len(w)}, {"weight": "w"})
    graph = Graph("layer", InputSpec("x", (w.shape[1],)), "y", (node,), {"w": w})
    return make_task(graph, inputs, bits=(2, None))


@pytest.mark.guarantee("Codes that BRECQ learns for one layer err no less than the exact optimum", kind="sampled")
def test_learned_rounding_is_graded_by_the_oracle() -> None:
    """Of the gap between nearest and best codes, 0.83 is closed on average over ten seeds, 0.64 at the least.

    With lambda = 0.1 that is 0.37 on average, and for three of the ten learned codes err more than nearest ones.
    """
    sums = np.zeros(3)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        X = np.maximum(rng.normal(size=(64, 8)) @ (rng.normal(size=(8, 8)) / 3 + np.eye(8)), 0).astype(np.float32)
        w = rng.normal(size=(12, 8)).astype(np.float32)
        task = layer(w, X)
        nearest, learned = task.encode(task.graph.node("y")), brecq(task, steps=800, weight=1.0).weights["y"]
        spec = replace(task.weight_spec, granularity=rq.PerTensor())
        for i, row in enumerate(w):
            scale = float(nearest.scales[0, i])
            best = best_rounding(row, scale, spec=spec, inputs=X)
            found = [rounding_error(codes.codes[0, i], row, scale, X) for codes in (nearest, learned)]
            assert min(found) >= float(best.lower_bound)
            sums += [float(best.objective), *found]
    least, near, learnt = sums
    assert learnt <= near - 0.5 * (near - least)


def nmse(task: Task, plan: QuantPlan, images: np.ndarray) -> float:
    z, q = forward(task.graph, images), forward(task.graph, images, plan, mode="fake")
    return float(((z - q) ** 2).mean() / z.var())


def nearest_plan(task: Task) -> QuantPlan:
    return QuantPlan({node.name: task.encode(node) for node in task.graph.linear_nodes}, task.activations)


HELD_OUT = DATA.calibration.x[512:]  # of the training split, seen by no method here


@pytest.mark.parametrize(("bits", "factor"), [(4, 0.8), (3, 0.7), (2, 0.5)])
def test_learned_rounding_lowers_the_output_error_of_nearest(bits: int, factor: float) -> None:
    task = task_of("mlp", 128, (bits, None))
    learned, nearest = (nmse(task, plan, HELD_OUT) for plan in (brecq(task, steps=150), nearest_plan(task)))
    assert learned < factor * nearest


def test_codes_are_decided_at_the_end_and_becoming_integers_changes_little() -> None:
    task = task_of("mlp", 128, (3, None))
    part = parts_of(task.graph, "block")[1]
    hard, found = learn_codes(task, part, QuantPlan(), steps=1000, batch=32, weight=1.0)
    h = softness(found["gemm2.weight"])[0]
    assert np.mean((h > 0) & (h < 1)) < 0.02
    soft = soften(task.weight(task.graph.node("gemm2")), hard["gemm2"])
    assert np.abs(soft.floor).max() <= 4
    x, z = task.trace["relu1"], task.trace["relu2"]
    decided = run(task.graph, {"relu1": x}, {"gemm2.weight": hard["gemm2"].decode()}, output="relu2").output
    first = task.encode(task.graph.node("gemm2")).decode()
    rounded = run(task.graph, {"relu1": x}, {"gemm2.weight": first}, output="relu2").output
    assert ((decided - z) ** 2).mean() < 0.5 * ((rounded - z) ** 2).mean()


def test_the_same_seed_gives_the_same_plan_and_another_one_another() -> None:
    def codes(seed: int) -> np.ndarray:
        return np.asarray(brecq(task_of("mlp", 48, (2, 4), seed=seed), steps=15, scale_steps=5).weights["gemm2"].codes)

    assert np.array_equal(codes(0), codes(0))
    assert not np.array_equal(codes(0), codes(1))


def test_terms_are_kept_and_lower_the_error() -> None:
    one = task_of("mlp", 64, (2, None))
    two = replace(one, terms={node.name: 2 for node in one.graph.linear_nodes})
    plans = [brecq(task, steps=60) for task in (one, two)]
    assert [plan.weights["gemm1"].terms for plan in plans] == [1, 2]
    for plan in plans:
        for sums in plan.weights.values():
            sound(sums, "here")
    assert nmse(one, plans[1], HELD_OUT) < 0.5 * nmse(one, plans[0], HELD_OUT)


def test_blockwise_moves_scales_and_lowers_the_error_of_nearest() -> None:
    task = task_of("mlp", 64, (2, 4))
    plan = blockwise(task, steps=60)
    for name, sums in plan.weights.items():
        first = task.encode(task.graph.node(name)).scales
        assert np.all(np.abs(sums.scales / first - 1) < 0.1)
        assert np.mean(sums.scales != first) > 0.9
    starts = with_least_error(task).activations
    assert [plan.activations[t].scale == starts[t].scale for t in ("flatten1", "relu1", "relu2")] == [
        True,
        False,
        False,
    ]
    assert nmse(task, plan, HELD_OUT) < 0.5 * nmse(task, nearest_plan(task), HELD_OUT)


# ---- activations ----------------------------------------------------------------------------------------------


def test_brecq_moves_scales_of_activations_that_layers_made_and_lowers_the_error() -> None:
    task = task_of("mlp", 128, (2, 4))
    starts = with_least_error(task).activations
    plan = brecq(task, steps=60, scale_steps=60)
    assert [plan.activations[t].scale == starts[t].scale for t in ("flatten1", "relu1", "relu2")] == [
        True,
        False,
        False,
    ]
    assert nmse(task, plan, HELD_OUT) < nmse(task, replace(plan, activations=task.activations), HELD_OUT)


def test_at_one_value_the_rule_of_a_scale_may_point_away_from_it() -> None:
    """The background of images: to meet it the scale must grow, and LSQ's rule would have it shrink."""
    spec, x, s = rq.QuantSpec(4, signed=False, quotient="float32"), np.array([-0.81], np.float32), 0.19

    def error(scale: float) -> float:
        return float((rq.fake_quantize(x, np.float32(scale), 4, spec=spec) - x)[0] ** 2)

    assert error(s + 0.005) < error(s) < error(s - 0.005)
    at = FAKE_QUANTIZE.at({"spec": spec}, {"scale": np.array(s, np.float32), "zero_point": np.array(4)}, [x])
    assert FAKE_QUANTIZE.derivative.vjp(at, 2 * (at.output - x), ["scale"])["scale"] > 0
    still = read_activations({"x": ActivationQuantizer(spec, np.array(0.19), np.array(4))}, 0.1, ["x"])
    assert not still.variables


# ---- weightings -----------------------------------------------------------------------------------------------


def test_the_papers_weights_are_squares_of_the_derivative_of_each_images_loss() -> None:
    assert DATA.calibration.y is not None
    labels = DATA.calibration.y[:8]
    task = task_of("mlp", 8, (4, None), labels=labels)
    parts = parts_of(task.graph, "block")
    z = task.trace["gemm3"].astype(np.float64)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    g2 = (p - np.eye(10)[labels]) ** 2
    # exponentials of float32 logits of modulus below 64 err by 2^-18 relatively
    assert np.abs(fisher(task, parts[2], QuantPlan()) - g2 / g2.mean()).max() < 2.0**-17 * (g2 / g2.mean()).max()
    inner = fisher(task, parts[1], QuantPlan())
    assert inner.shape == task.trace["relu2"].shape
    W = task.weight(task.graph.node("gemm3"))
    expected = ((p - np.eye(10)[labels]) @ W) ** 2
    assert np.allclose(inner, expected / expected.mean(), rtol=2.0**-12, atol=2.0**-14 * inner.max())


def test_without_labels_they_are_drawn_from_the_networks_softmax() -> None:
    p = np.array([0.45, 0.33, 0.22])
    node = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 3}, {"weight": "w"})
    graph = Graph("classes", InputSpec("x", (1,)), "y", (node,), {"w": np.log(p).astype(np.float32)[:, None]})
    task = make_task(graph, np.ones((512, 1)), bits=(2, None))
    g2 = fisher(task, parts_of(task.graph, "block")[0], QuantPlan())
    drawn = np.bincount((g2 / p**2).argmax(axis=1), minlength=3) / 512  # (1 - p)^2 > p^2: the label's entry sticks out
    assert np.all(np.abs(drawn - p) < 5 * np.sqrt(p * (1 - p) / 512))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("granularity", ["layer", "network"])
def test_every_weighting_and_granularity_gives_a_whole_plan(weighting: str, granularity: str) -> None:
    task = task_of("cnn", 16, (2, 4))
    plan = brecq(task, granularity=granularity, weighting=weighting, steps=3, scale_steps=2)
    assert sorted(plan.weights) == sorted(node.name for node in task.graph.linear_nodes)
    assert sorted(plan.activations) == sorted(task.activations)
    assert np.isfinite(forward(task.graph, task.images, plan, mode="fake")).all()


def test_unknown_names_are_refused() -> None:
    task = task_of("mlp", 2, (2, None))
    with pytest.raises(ArgumentError, match="weighting"):
        brecq(task, weighting="hessian")
    with pytest.raises(ArgumentError, match="granularity"):
        brecq(task, granularity="row")


# ---- the theorem ----------------------------------------------------------------------------------------------


@pytest.mark.guarantee("Theorem 3.1 of BRECQ: the ratio of the two quadratic forms tends to 1", kind="sampled")
def test_the_theorem_holds_for_small_perturbations_and_not_for_large_ones() -> None:
    """dz^T S dz over dtheta^T G dtheta: 1 to first order, since dz = J dtheta to first order."""
    rng = np.random.default_rng(0)
    sizes = (8, 16, 16, 4)
    nodes, arrays, previous = [], {}, "x"
    for k, (n, m) in enumerate(pairwise(sizes)):
        nodes.append(Node(f"y{k}", "Gemm", (previous,), {"in_features": n, "out_features": m}, {"weight": f"w{k}"}))
        arrays[f"w{k}"] = (rng.normal(size=(m, n)) / np.sqrt(n)).astype(np.float32)
        nodes.append(Node(f"z{k}", "Relu", (f"y{k}",)))
        previous = f"z{k}"
    graph = Graph("mlp", InputSpec("x", (8,)), "y2", tuple(nodes[:-1]), arrays)
    x, labels = rng.normal(size=(64, 8)), rng.integers(0, 4, 64)
    direction = {name: rng.uniform(-1, 1, w.shape) * np.abs(w).max() for name, w in arrays.items()}
    tape = run(graph, {"x": x})
    loss = cross_entropy(tape.output, labels)
    G = gauss_newton_product(tape, loss, direction)
    whole = sum(float(np.sum(G[name] * d)) for name, d in direction.items())

    def ratio(t: float) -> float:
        dz = run(graph, {"x": x}, {name: arrays[name] + t * d for name, d in direction.items()}).output - tape.output
        return float(np.sum(dz * loss.curvature(dz))) / (t * t * whole)

    gaps = [abs(ratio(t) - 1) for t in (1e-4, 1e-3, 1e-2)]
    assert gaps[0] < 1e-3
    assert gaps[0] < 0.3 * gaps[1] < 0.09 * gaps[2]  # of first order in t
    assert abs(ratio(0.5) - 1) > 0.2
