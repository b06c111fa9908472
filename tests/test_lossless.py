"""Methods on the complexity axis: budgets, exact counts, activation terms, and the levels of lossless."""

import importlib.util
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import multinomial

import refquant as rq
from refquant.net.graph import Graph, InputSpec, Node
from refquant.ptq.complexity import complexity
from refquant.ptq.lossless import (
    LEVELS,
    Places,
    digits,
    find_places,
    first_reached,
    lossless_levels,
    on_axis,
    paired_interval,
)
from refquant.ptq.methods import BUDGETED, METHODS
from refquant.ptq.sequential import sequential
from refquant.ptq.task import make_task
from refquant.quant.granularity import Granularity

DATA = rq.load_data("fashion-mnist")
HELD = DATA.calibration.x[512:]


_place = importlib.util.spec_from_file_location("small_network", Path(__file__).with_name("small_network.py"))
assert _place is not None
assert _place.loader is not None
small: Any = importlib.util.module_from_spec(_place)
_place.loader.exec_module(small)


@pytest.fixture(scope="module")
def places() -> Places:
    return find_places(make_task(rq.load_network("mlp"), DATA.calibration.x[:128], bits=(2, 3)), weight_terms=2)


def operations(plan: rq.QuantPlan) -> int:
    return complexity(rq.load_network("mlp"), plan).bit_operations


def test_budgets_are_kept_and_counted_as_complexity_counts(places: Places) -> None:
    single = operations(sequential(places.placed(places.place(1.0)), "gpfq"))
    errors = []
    for budget in (1.0, 1.3, 2.0, 3.0):
        placement = places.place(budget)
        spent = operations(sequential(places.placed(placement), "gpfq")) / single
        # a layer's operations are rounded to integers, of millions
        assert spent == pytest.approx(placement.operations, rel=1e-6)
        assert spent <= budget * (1 + 1e-6)
        errors.append(placement.error)
    assert errors == sorted(errors, reverse=True)
    assert max(places.place(3.0).activations.values()) > 1


@pytest.mark.guarantee(
    "Counts for weights and activations together are nearly the best of all activation counts", kind="checked"
)
def test_counts_are_nearly_the_best_of_all_activation_terms(places: Places) -> None:
    """Brute force over 3^3 activation counts, channels exactly allocated for each."""
    for budget in (1.5, 3.0):
        best = np.inf
        for terms in product((1, 2, 3), repeat=3):
            try:
                best = min(best, places.given(dict(zip(places.readers, terms, strict=True)), budget).error)
            except rq.ArgumentError:
                continue
        found = places.place(budget).error
        assert found >= best * (1 - 1e-3)  # allocations stop at a relative gap of 1e-4
        assert found <= best * 1.03  # of the front, 48 points compete


def test_placed_tasks_start_from_sums_that_are_known(places: Places) -> None:
    placement = places.place(2.0)
    task = places.placed(placement)
    for node in task.graph.linear_nodes:
        start = task.encode(node)
        assert np.array_equal(start.counts, placement.weights[node.name])
        fresh = make_task(rq.load_network("mlp"), DATA.calibration.x[:4], bits=(2, 3))
        again = rq.MultiTerm.decode(start)
        assert again.shape == fresh.weight(node).shape
    assert task.trace is places.task.trace


@pytest.mark.guarantee("Activation terms are digits of one code, exactly", kind="exhaustive")
@pytest.mark.parametrize(("bits", "terms"), [(2, 3), (3, 2), (4, 2), (8, 1)])
def test_activation_terms_are_digits_of_one_code(bits: int, terms: int) -> None:
    codes = np.arange(2 ** (bits * terms))
    q = digits(codes, bits, terms)
    assert q.min() == 0
    assert q.max() == 2**bits - 1
    weights = 2 ** (bits * np.arange(terms)[::-1])
    assert np.array_equal(weights @ q, codes)


def test_more_terms_of_activations_err_less(places: Places) -> None:
    """By about 4^b a term: the model that the tables use, within a factor of 3."""
    task = places.task
    images = task.images
    reference = rq.forward(task.graph, images).astype(float)
    for tensor in places.readers:
        errors = []
        for quantizers in places.quantizers[:2]:
            plan = rq.QuantPlan(activations={tensor: quantizers[tensor]})
            errors.append(float(np.mean((rq.forward(task.graph, images, plan, mode="fake") - reference) ** 2)))
        assert 4**3 / 3 < errors[0] / errors[1] < 4**3 * 3


@pytest.mark.parametrize(("bits", "reach"), [(3, (1.0, 1.0, 1.0)), (7, (1.0, 1.0, 2.0)), (8, (1.0, 2.0, 2.0))])
def test_grids_of_16_bits_and_more_reach_twice_as_far_as_calibration_images(
    bits: int, reach: tuple[float, ...]
) -> None:
    task = make_task(rq.load_network("cnn"), DATA.calibration.x[:16], bits=(2, bits))
    for quantizers, times in zip(find_places(task, weight_terms=1).quantizers, reach, strict=True):
        for tensor, q in quantizers.items():
            lo, hi = (float(task.trace[tensor].min()), float(task.trace[tensor].max()))
            ends = float(q.scale) * (np.array([q.spec.qmin, q.spec.qmax]) - int(q.zero_point))
            assert np.allclose(ends, (times * min(lo, 0), times * hi), rtol=0, atol=float(q.scale))


def test_tensors_with_headroom_are_modelled_with_it() -> None:
    """A step twice as wide errs four times as much: 2^(16 - 1) steps a range against 2^8."""
    task = make_task(rq.load_network("mlp"), DATA.calibration.x[:16], bits=(2, 8))
    places = find_places(task, weight_terms=1)
    one, two, three = (places.tensor_error("relu1", terms) for terms in (1, 2, 3))
    assert (one / two, two / three) == (4.0**7, 4.0**8)


@pytest.mark.parametrize("method", ["certified", "bias-corrected", "gptq", "gpfq", "qronos", "descent"])
def test_a_large_budget_buys_logits_as_near_as_float32_allows(method: str) -> None:
    """With more terms than a block of the search has; activations stay float, so that weights alone err."""
    graph, images, held = small.trained(), small.X[:48], small.X[small.TRAINED_ON :]
    reference = rq.forward(graph, held)
    single = rq.quantize_network(graph, images, method="absmax", bits=(2, None))
    errors = {}
    for budget in (3.0, 9.0, 18.0):
        plan = rq.quantize_network(graph, images, method=method, bits=(2, None), budget=budget)
        assert complexity(graph, plan).bit_operations <= budget * complexity(graph, single).bit_operations
        errors[budget] = float(np.abs(rq.forward(graph, held, plan, mode="fake") - reference).max())
    assert errors[9.0] < errors[3.0] / 4
    assert errors[18.0] < errors[9.0] / 4
    assert errors[18.0] < 2.0**-11 * float(np.abs(reference).max())


@pytest.mark.parametrize("method", ["equalized", "multipoint"])
def test_methods_of_one_activation_term_spend_a_budget_on_weights(method: str) -> None:
    graph, images = small.trained(), small.X[:48]
    single, plan = (rq.quantize_network(graph, images, method=method, bits=(2, 4), budget=b) for b in (None, 8.0))
    assert {q.spec.bits for q in plan.activations.values()} == {4}
    spent = complexity(graph, plan).bit_operations / complexity(graph, single).bit_operations
    assert 7 < spent <= 8


@pytest.mark.parametrize("method", ["absmax", "equalized", "multipoint", "gpfq"])
def test_methods_take_a_budget(method: str) -> None:
    """Those that train take minutes and have tests of their own; the door is the same for all."""
    images = DATA.calibration.x[:32]
    plans = {
        budget: rq.quantize_network(rq.load_network("mlp"), images, method=method, bits=(2, 8), budget=budget)
        for budget in (None, 1.5)
    }
    assert operations(plans[1.5]) <= 1.5 * operations(plans[None]) * (1 + 1e-6)
    assert operations(plans[1.5]) > 1.4 * operations(plans[None])
    graph = rq.load_network("mlp")
    reference = rq.forward(graph, HELD)
    kept = {
        budget: np.mean(rq.forward(graph, HELD, plan, mode="fake").argmax(axis=1) == reference.argmax(axis=1))
        for budget, plan in plans.items()
    }
    assert kept[1.5] > kept[None] - 0.01
    assert set(BUDGETED) <= set(METHODS)


@pytest.mark.parametrize("granularity", [rq.PerTensor(), rq.PerChannel(0), rq.PerGroup(1, 5)], ids=str)
def test_weights_may_share_scales_by_tensor_channel_or_group(granularity: Granularity) -> None:
    """All groups of a channel have one count, since P counts channels."""
    rng = np.random.default_rng(2)
    arrays = {"v": rng.normal(size=(8, 12)).astype(np.float32), "w": rng.normal(size=(3, 8)).astype(np.float32)}
    nodes = (
        Node("hidden", "Gemm", ("x",), {"in_features": 12, "out_features": 8}, {"weight": "v"}),
        Node("relu", "Relu", ("hidden",)),
        Node("y", "Gemm", ("relu",), {"in_features": 8, "out_features": 3}, {"weight": "w"}),
    )
    graph = Graph("two", InputSpec("x", (12,)), "y", nodes, arrays)
    task = make_task(graph, rng.normal(size=(16, 12)), bits=(2, 4), granularity=granularity, budget=1.5)
    single, plan = (on_axis(sequential)(one) for one in (replace(task, budget=None), task))
    spent = complexity(task.graph, plan).bit_operations / complexity(task.graph, single).bit_operations
    assert 1.0 <= spent <= 1.5
    for weight in plan.weights.values():
        assert weight.counts.shape == granularity.parameter_shape(weight.shape)
        rows = weight.counts.reshape(len(weight.counts) if weight.counts.ndim else 1, -1)
        assert np.array_equal(rows, np.broadcast_to(rows[:, :1], rows.shape))


def test_on_axis_without_a_budget_is_the_method_itself() -> None:
    task = make_task(rq.load_network("mlp"), DATA.calibration.x[:8])
    seen = []

    def method(given: object) -> rq.QuantPlan:
        seen.append(given)
        return rq.QuantPlan()

    on_axis(method)(task)
    assert seen == [task]


def test_bad_budgets_are_refused(places: Places) -> None:
    for budget in (0.5, np.inf, np.nan):
        with pytest.raises(rq.ArgumentError, match="at least 1"):
            places.place(budget)


# ---- levels ---------------------------------------------------------------------------------------------------


def test_levels_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4000, 10))
    y = np.where(rng.random(4000) < 0.9, z.argmax(axis=1), rng.integers(10, size=4000))
    moved = z.copy()
    moved[0, z[0].argmin()] = 99.0  # one class of 4,000
    assert lossless_levels(z, z, y) == dict.fromkeys(LEVELS, True)
    assert lossless_levels(z + 1e-9, z, y) == {"equivalent": True, "class-equal": True, "logits-equal": False}
    assert lossless_levels(moved, z, y) == {"equivalent": True, "class-equal": False, "logits-equal": False}
    worse = z.copy()
    worse[:100] = -z[:100]
    assert lossless_levels(worse, z, y) == dict.fromkeys(LEVELS, False)
    few = slice(0, 30)  # too few images to call anything equivalent: absence of evidence
    assert not lossless_levels(moved[few], z[few], y[few])["equivalent"]


def coverage(N: int, only_reference: float, only_other: float) -> float:
    """How often the interval holds the true difference, summed over all tables of N images: exact."""
    held = 0.0
    for b, c in product(range(N + 1), repeat=2):
        if b + c <= N:
            reference, right = np.ones(N, bool), np.ones(N, bool)
            right[:b], reference[N - c :] = False, False
            low, high = paired_interval(right, reference)
            if low <= only_other - only_reference <= high:
                rest = 1 - only_reference - only_other
                held += float(multinomial.pmf([b, c, N - b - c], N, [only_reference, only_other, rest]))
    return held


@pytest.mark.parametrize(
    ("only_reference", "only_other"),
    [(0.01, 0.01), (0.03, 0.01), (0.02, 0.0), (0.05, 0.0), (0.1, 0.02), (0.2, 0.1), (0.3, 0.3)],
)
def test_paired_intervals_hold_the_truth_as_often_as_they_say(only_reference: float, only_other: float) -> None:
    """95 %, less a point for the normal approximation; without the half images 70 % to 83 % where few differ."""
    assert coverage(60, only_reference, only_other) > 0.94


def test_paired_intervals_of_equal_runs_have_a_width() -> None:
    low, high = paired_interval(np.ones(100, bool), np.ones(100, bool))
    assert -0.05 < low < 0 < high < 0.05
    assert paired_interval(np.zeros(0, bool), np.zeros(0, bool)) == (-1.959964 / 2, 1.959964 / 2)  # of no image
    assert paired_interval(np.ones(2, bool), np.zeros(2, bool))[1] == 1.0  # no further
    assert paired_interval(np.zeros(2, bool), np.ones(2, bool))[0] == -1.0


def test_levels_count_from_where_they_stay() -> None:
    points = [(1.0, {"a": True, "b": False}), (2.0, {"a": False, "b": False}), (3.0, {"a": True, "b": False})]
    assert first_reached(points) == {"a": 3.0, "b": None}
    assert first_reached([]) == {}
