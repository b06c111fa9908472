"""LAPQ: the fit in p and its guards, scales and biases, and the paper's claims on small settings."""

import importlib.util
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refquant as rq
from refquant.errors import ArgumentError
from refquant.net.forward import forward
from refquant.net.loss import cross_entropy, divergence
from refquant.ptq.lapq import (
    POWERS,
    Surface,
    calibration_loss,
    fitted,
    lapq,
    least_power,
    mean_patch,
    requantized,
    search,
)
from refquant.ptq.task import Task, make_task

_place = importlib.util.spec_from_file_location("small_network", Path(__file__).with_name("small_network.py"))
assert _place is not None
assert _place.loader is not None
network: Any = importlib.util.module_from_spec(_place)
_place.loader.exec_module(network)
X, Y, TRAINED_ON, trained = network.X, network.Y, network.TRAINED_ON, network.trained

IMAGES = rq.load_data("fashion-mnist").calibration.x


def of(name: str, images: int, bits: tuple[int, int | None]) -> Task:
    return make_task(rq.load_network(name), IMAGES[:images], bits=bits)


def small(bits: tuple[int, int | None], some: slice = slice(256), labelled: bool = True, **kw: Any) -> Task:
    return make_task(trained(), X[some], labels=Y[some] if labelled else None, bits=bits, **kw)


HELD_OUT = slice(TRAINED_ON, None)


# ---- the parabola ---------------------------------------------------------------------------------------------


def test_the_parabolas_minimum_is_taken_only_where_it_is_one_and_within_the_powers() -> None:
    p = POWERS
    assert least_power(p, 3 * (p - 2.75) ** 2 + 1) == (2.75, True)
    assert least_power(p, -((p - 2.75) ** 2))[1] is False  # a maximum
    assert least_power(p, (p - 1.5) ** 2) == (2.0, False)
    assert least_power(p, (p - 5) ** 2) == (4.0, False)


# ---- the loss and the surface ---------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_forward_pass() -> None:
    for labelled in (True, False):
        task = small((3, 4), slice(150), labelled)
        plan = Surface(task).plan(np.ones(6))
        z = forward(task.graph, task.images, plan, mode="fake")
        expected = cross_entropy(z, Y[:150]) if labelled else divergence(z, forward(task.graph, task.images))
        # logits agree to float32 rounding (no value at a tie here), and the losses move by no more than twice that
        assert abs(calibration_loss(task, plan) - expected.value) < 2.0**-12 * np.abs(z).max()


def test_the_mean_patch_is_the_mean_of_all_that_an_output_reads() -> None:
    task = of("cnn", 70, (4, 4))
    x = task.trace["maxpool1"]
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    h, w = task.graph.shapes["conv2"][1:]
    expected = [
        padded[:, c, i : i + h, j : j + w].mean(dtype=np.float64) for c in range(16) for i in range(5) for j in range(5)
    ]
    node = task.graph.node("conv2")
    assert node.attrs["padding"] == (2, 2, 2, 2)
    assert np.allclose(mean_patch(task, node), [expected], rtol=2.0**-20)


def test_step_4_leaves_no_mean_error_where_the_inputs_are_the_float_networks() -> None:
    task = of("cnn", 70, (2, None))
    surface = Surface(task)
    plan = surface.plan(np.ones(len(surface.names)))
    _, trace = forward(task.graph, task.images, plan, mode="fake", trace=True)
    error = (trace["conv1"] - task.trace["conv1"]).mean(axis=(0, 2, 3), dtype=np.float64)
    without = forward(task.graph, task.images, replace(plan, biases={}), mode="fake", trace=True)[1]["conv1"]
    before = (without - task.trace["conv1"]).mean(axis=(0, 2, 3), dtype=np.float64)
    assert np.abs(error).max() < 2.0**-18 * np.abs(task.trace["conv1"]).max()  # float32 rounding of 25 products
    assert np.abs(before).max() > 1e-2


def test_factors_of_one_are_the_encoding_and_factors_are_of_all_scales() -> None:
    task = small((3, None))
    node = task.graph.node("gemm2")
    sums = task.encode(node)
    assert np.array_equal(requantized(task.weight(node), sums, 1.0).codes, sums.codes)
    half = requantized(task.weight(node), sums, 0.5)
    assert np.array_equal(half.scales, sums.scales / 2)
    assert np.array_equal(half.codes[0], rq.quantize(task.weight(node), half.scales[0], spec=task.weight_spec))


@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_values_of_two_terms_are_the_nearest_of_all_sums(factor: float) -> None:
    task = small((3, None))
    W = task.weight(task.graph.node("gemm2")).astype(np.float64)
    sums = rq.encode_terms(W, spec=task.weight_spec, terms=2, method="joint")
    found = requantized(W, sums, factor)
    every = [range(spec.qmin, spec.qmax + 1) for spec in sums.specs]
    made = np.stack(
        [sum(q * s for q, s in zip(pair, found.scales.astype(float), strict=True)) for pair in product(*every)]
    )
    least = np.abs(W[None] - made[:, :, None]).min(axis=0)
    assert np.allclose(np.abs(W - found.decode(np.float64)), least, rtol=0, atol=2.0**-50)


def test_sums_of_many_terms_stay_near_the_weight() -> None:
    """Scales found together are not in order: rounded term by term the errors would stay those of a few terms."""
    task = small((2, None))
    W = task.weight(task.graph.node("gemm2"))
    errors = []
    for terms in (4, 9, 19):
        sums = rq.encode_terms(W, spec=task.weight_spec, terms=terms, method="joint")
        errors.append(float(np.abs(W - requantized(W, sums, 1.0).decode(np.float64)).max()))
        assert errors[-1] <= 2 * float(np.abs(W - sums.decode(np.float64)).max())
    assert errors[0] > 30 * errors[1] > 900 * errors[2]


def test_counts_of_terms_are_kept() -> None:
    task = replace(small((2, 4)), terms={"gemm1": 2})
    plan = search(task, evaluations=4, start=2.0).plan
    assert [plan.weights[name].terms for name in ("gemm1", "gemm2")] == [2, 1]


def test_least_powers_are_the_certified_ones_and_higher_ones_clip_less() -> None:
    surface = Surface(small((2, 3)))
    first, last = fitted(surface, 2.0), fitted(surface, 4.0)
    for name, sums in last.weights.items():
        assert np.array_equal(first.weights[name].codes, surface.weights[name].codes)  # encoded by least squares
        assert sums.scales.mean() > first.weights[name].scales.mean()


# ---- the search -----------------------------------------------------------------------------------------------


@pytest.mark.guarantee("LAPQ's plan has the least calibration loss of all that the search saw", kind="sampled")
@pytest.mark.parametrize("driver", ["powell", "coordinate"])
def test_the_plan_is_the_best_seen_and_the_loss_falls(driver: str) -> None:
    task = small((2, 3))
    found = search(task, driver=driver, evaluations=150)
    assert calibration_loss(task, found.plan) == found.trajectory.loss == found.trajectory.losses.min()
    assert found.trajectory.loss < 0.8 * found.trajectory.losses[0]
    assert 2 <= found.power <= 4
    assert found.losses.shape == POWERS.shape


def test_without_labels_the_logits_are_the_target() -> None:
    result = search(small((2, 3), labelled=False), evaluations=20, start=2.0)
    assert result.losses.size == 0
    assert result.trajectory.loss < result.trajectory.losses[0]


def test_activations_of_many_bits_begin_as_observed() -> None:
    task = small((2, 16), slice(64))  # as sums of terms have
    found = fitted(Surface(task), 3.0).activations
    assert all(np.array_equal(q.scale, task.activations[tensor].scale) for tensor, q in found.items())
    wide = replace(next(iter(task.activations.values())).spec, bits=24)
    vars(task).update(activations={t: replace(q, spec=wide) for t, q in task.activations.items()})
    assert fitted(Surface(task), 3.0).activations.keys() == task.activations.keys()


def test_the_search_is_deterministic() -> None:
    plans = [search(small((3, 4)), evaluations=5, start=3.0).plan for _ in range(2)]
    assert np.array_equal(plans[0].weights["gemm1"].codes, plans[1].weights["gemm1"].codes)
    assert plans[0].activations["relu1"].scale == plans[1].activations["relu1"].scale


def test_a_tensor_wide_scale_is_searched_too() -> None:
    plan = lapq(small((2, 3), slice(32), granularity=rq.PerTensor()), evaluations=3)
    assert plan.weights["gemm1"].scales.shape == (1,)


def test_an_unknown_driver_is_refused() -> None:
    with pytest.raises(ArgumentError, match="powel"):
        search(small((3, 4)), driver="powel", start=2.0)


# ---- claims ---------------------------------------------------------------------------------------------------

THIRDS = [slice(0, 256), slice(256, 512), slice(512, 768)]


@pytest.mark.parametrize("some", THIRDS, ids=["first", "second", "third"])
def test_at_two_bits_the_held_out_loss_is_below_that_of_least_squares(some: slice) -> None:
    """1.72 to 1.29, 1.75 to 1.23 and 1.89 to 1.09.  At three bits one of the three rises (0.923 to 0.960), and so it
    does at four bits from the first images (0.683 to 0.707).

    Other claims of the paper do not hold on this network, scales a channel each: p* does not grow as bits fall
    (W4A4 2.2, W3A3 2.0, W2A2 2.0), the loss has several minima over p, and coordinate descent ends below Powell at
    W3A3 (0.362, 0.385), W2A4 (0.543, 0.616) and W2A2 (0.808, 0.813), above at W4A2 alone.  From p = 1 Powell ends
    higher than from p* but at W3A3 (0.374, 0.385).
    """
    assert held_out_ratio(2, some, 200) < 0.85


def held_out_ratio(bits: int, some: slice, evaluations: int, start: float | None = None) -> float:
    """The held-out loss of LAPQ's plan over that of least squares."""
    task, held_out = small((bits, bits), some), small((bits, bits), HELD_OUT)
    least_squares = fitted(Surface(task), 2.0).plan(np.ones(6))
    plan = search(task, evaluations=evaluations, start=start).plan
    return calibration_loss(held_out, plan) / calibration_loss(held_out, least_squares)


def test_what_is_gained_on_held_out_images_grows_as_bits_fall() -> None:
    """From p = 2 to 0.85, 0.64 and 0.57 of it at two bits, to 0.99, 0.94 and 1.00 at four."""
    for some in THIRDS:
        ratios = [held_out_ratio(bits, some, 60, 2.0) for bits in (2, 4)]
        assert ratios[0] < 0.9 * ratios[1]


def trace(bits: int, some: slice) -> float:
    """Of the Hessian of the loss by log scales of activations, at least squares, from a quadratic fitted in a box.

    The box, 0.3 to either side, is wider than the plateaus of the loss; 80 points for 28 coefficients.
    """
    surface = fitted(Surface(small((8, bits), some)), 2.0)
    d = np.random.default_rng(0).uniform(-0.3, 0.3, (80, 6))
    i, j = np.triu_indices(6)
    columns = np.concatenate([np.ones((80, 1)), d, d[:, i] * d[:, j]], axis=1)
    fit = np.linalg.lstsq(columns, np.array([surface(np.exp(row)) for row in d]), rcond=None)[0]
    squares = fit[7:][(i == j) & (i >= 3)]
    return float(2 * squares.sum())


@pytest.mark.parametrize("some", THIRDS, ids=["first", "second", "third"])
def test_the_loss_is_more_curved_at_two_bits_than_at_four(some: slice) -> None:
    """4.3 to 1.6, 5.5 to 1.8, 4.1 to 1.8.  Off the diagonal nothing is told from the fit's noise with three tensors."""
    assert trace(2, some) > 1.5 * trace(4, some) > 0
