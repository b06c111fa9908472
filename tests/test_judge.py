"""Answers judged: what is right is accepted, and every smallest change to it is noticed."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import refquant as rq
from refquant.conform.judge import Expected, faults, gamma
from refquant.conform.operations import OPERATIONS, Request, evaluate
from refquant.conform.packs import Asked, Pack, level_one

Array = NDArray[Any]


@pytest.fixture(scope="module")
def pack() -> Pack:
    return level_one()


def exactly_judged(pack: Pack) -> list[Asked]:
    """A test an operation and profile at least, all small ones."""
    return [a for t in pack.tests for a in t.asked if a.request.op not in ("solve_scale", "allocate", "network")]


def nudged(a: Array, i: int) -> Array:
    """The array with element i changed as little as its type allows."""
    b = a.copy().ravel()
    b[i] = b[i] + 1 if a.dtype.kind in "iu" else np.nextafter(b[i], b.dtype.type(-np.inf if b[i] > 0 else np.inf))
    return b.reshape(a.shape)


# ---- exactly --------------------------------------------------------------------------------------------------


def test_the_smallest_change_anywhere_is_noticed(pack: Pack) -> None:
    rng = np.random.default_rng(1)
    seen = set()
    for asked in exactly_judged(pack):
        outputs = asked.expected.outputs
        assert faults(asked.request, asked.expected, dict(outputs)) == []
        for name, a in outputs.items():
            if not a.size or name in asked.expected.slack:
                continue
            i = int(rng.integers(a.size))
            if not np.isfinite(a.ravel()[i]):
                continue
            (found,) = faults(asked.request, asked.expected, {**outputs, name: nudged(a, i)})
            assert found.startswith(name)
            assert "differ" in found
            seen.add(asked.request.op)
    assert seen == set(OPERATIONS) - {"solve_scale", "allocate", "network"}


def asked_for(**outputs: Array) -> tuple[Request, Expected]:
    return Request("dynamic_quantize" if len(outputs) > 1 else "quantize", rq.QuantSpec(8), {}), Expected(outputs)


@pytest.mark.parametrize(
    ("got", "text"),
    [
        ({"codes": np.array([1, 3])}, "codes[1]: got 3, should be 2; 1 of 2 differ"),
        (np.array([5, 3]), "codes[0]: got 5, should be 1; 2 of 2 differ"),
        (np.array([1.0, 2.0]), "got an array of float64, should be integers"),
        (np.array([True, False]), "got an array of bool, should be integers"),
        (np.array(["1", "2"]), "should be integers"),
        (np.array([[1, 2]]), "got shape (1, 2), should be (2,)"),
        (np.array(1), "got shape (), should be (2,)"),
        (None, "should be integers"),
        ({}, "got outputs none, should be codes"),
        ({"q": np.array([1, 2])}, "got outputs q, should be codes"),
        ({"codes": np.array([1, 2]), "q": 1}, "got outputs codes, q, should be codes"),
        ({3: 1}, "got outputs 3, should be codes"),
    ],
)
def test_what_is_wrong_is_said(got: Any, text: str) -> None:
    (found,) = faults(*asked_for(codes=np.array([1, 2])), got)
    assert text in found


@pytest.mark.parametrize("got", [np.array([1, 2], np.int8), np.array([1, 2], np.uint64), [1, 2], {"codes": (1, 2)}])
def test_the_width_of_integers_is_free(got: Any) -> None:
    assert faults(*asked_for(codes=np.array([1, 2])), got) == []


@pytest.mark.parametrize(
    ("should", "got", "right"),
    [
        (0.0, 0.0, True),
        (0.0, -0.0, False),
        (-0.0, 0.0, False),
        (np.nan, np.nan, True),
        (np.nan, 0.0, False),
        (0.0, np.nan, False),
        (np.inf, np.inf, True),
        (np.inf, -np.inf, False),
        (np.inf, np.finfo(np.float32).max, False),
        (1.0, np.nextafter(np.float32(1), np.float32(2)), False),
    ],
)
def test_floats_are_compared_to_the_bit(should: float, got: float, right: bool) -> None:
    found = faults(*asked_for(y=np.array([should], np.float32)), np.array([got], np.float32))
    assert (found == []) == right


def test_one_array_cannot_stand_for_two() -> None:
    (found,) = faults(*asked_for(codes=np.array([1]), scale=np.array(1.0)), np.array([1]))
    assert "should be outputs by name: codes, scale" in found


# ---- within rounding ------------------------------------------------------------------------------------------


def test_sums_are_right_within_their_bound_and_no_further() -> None:
    magnitude, n = np.array([10.0]), 8
    request = Request("gradient", rq.QuantSpec(8), {})
    expected = Expected({"scale": np.array([1.0])}, {"scale": (magnitude, n)})
    u = Fraction(1, 2**53)
    bound = n * u / (1 - n * u) * 10  # gamma_n, exactly
    assert abs(Fraction(gamma(n, np.float64)) * 10 - bound) < bound * 2**-50
    for sign in (1, -1):
        near, far = 1 + sign * float(bound * Fraction(99, 100)), 1 + sign * float(bound * Fraction(120, 100))
        assert faults(request, expected, np.array([near])) == []
        (found,) = faults(request, expected, np.array([far]))
        assert "to within" in found
    for bad in (np.nan, np.inf):
        assert faults(request, expected, np.array([bad])) != []


def test_the_product_lies_within_the_bounds_of_level_1_and_its_double_does_not(pack: Pack) -> None:
    seen = 0
    for test in pack.tests:
        for asked in test.asked:
            answer = evaluate(asked.request) if asked.expected.slack else {}
            for name in asked.expected.slack:
                assert faults(asked.request, asked.expected, answer) == []
                if np.any(answer[name] != 0):
                    assert faults(asked.request, asked.expected, {**answer, name: 2 * answer[name]}) != []
                    seen += 1
    assert seen > 0


# ---- by property ----------------------------------------------------------------------------------------------


def scale_of(x: list[float], bits: int = 4) -> tuple[Request, Expected]:
    request = Request("solve_scale", rq.QuantSpec(bits), {"x": np.array(x)})
    return request, Expected(evaluate(request))


def test_any_scale_that_errs_as_little_is_right() -> None:
    request, expected = scale_of([1.0])  # which every 1 / k represents
    for k in (1, 2, 4, 7):
        assert faults(request, expected, {"scale": 1 / k, "objective": 0.0, "lower_bound": 0.0}) == []
    assert faults(request, expected, {"scale": 1 / 9, "objective": 4 / 81, "lower_bound": 0.0}) != []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"scale": 1.01}, "scale: errs"),
        ({"objective": 1.001}, "objective: got"),
        ({"objective": 0.999}, "objective: got"),
        ({"lower_bound": 1.001}, "lower_bound: got"),
        ({"scale": -1.0}, "should be finite"),
        ({"scale": 0.0}, "should be finite"),
        ({"scale": np.nan}, "should be finite"),
        ({"objective": np.inf}, "should be finite"),
    ],
)
def test_a_scale_that_is_not_what_it_says_is_noticed(change: Mapping[str, float], text: str) -> None:
    request, expected = scale_of([0.9, -1.1, 2.0, 0.37, -3.3, 0.05])
    best = {name: float(v) for name, v in expected.outputs.items()}
    assert faults(request, expected, best) == []
    got = {**best, **{name: best[name] * factor for name, factor in change.items()}}
    found = faults(request, expected, got)
    assert any(text in f for f in found), found
    assert faults(request, expected, {**best, "lower_bound": 0.0}) == []  # a weak bound is none the less one


ALLOCATION = {
    "error": np.array([[4.0, 1.0, 0.0]] * 2),
    "cost": np.array([[1.0, 2.0, 3.0]] * 2),
    "budget": np.array(5.0),
}


@pytest.mark.parametrize(
    ("choices", "error", "text"),
    [
        ([1, 2], 1.0, ""),
        ([2, 1], 1.0, ""),  # as good
        ([2, 2], 0.0, "cost 6.0, the budget is 5.0"),
        ([1, 1], 2.0, "err 2.0, the best err 1.0"),
        ([1, 2], 0.5, "error: got 0.5, is 1.0"),
        ([1, 3], 1.0, "should be from 0 to 2"),
        ([-1, 2], 1.0, "should be from 0 to 2"),
        ([1], 1.0, "should be 2 integers"),
        ([1.0, 2.0], 1.0, "should be 2 integers"),
        ([1, 2], "little", "outputs choices, error"),
    ],
)
def test_allocations_fit_the_budget_and_err_least(choices: list[Any], error: Any, text: str) -> None:
    request = Request("allocate", rq.QuantSpec(8), ALLOCATION)
    found = faults(request, Expected(evaluate(request)), {"choices": np.array(choices), "error": error})
    assert (found == []) == (text == ""), found
    assert any(text in f for f in found) or not text
