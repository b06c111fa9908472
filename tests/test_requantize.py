"""Fixed point against its definition on Fractions, and the public reports it reproduces."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refquant as rq
from refquant.arith.fixedpoint import (
    double_round,
    doubling_high_product,
    quantize_multiplier,
    rounding_shift,
    single_round,
)
from refquant.arith.rounding import MODES, round_exact
from refquant.errors import ArgumentError
from refquant.quant.requantize import requantize_exact

int32 = st.integers(-(2**31), 2**31 - 1)
multipliers = st.integers(2**30, 2**31 - 1)


@given(a=int32, b=int32)
def test_the_high_product_rounds_half_up(a: int, b: int) -> None:
    expected = min(round_exact(Fraction(a * b, 2**31), "half_up"), 2**31 - 1)
    assert int(doubling_high_product(a, b)) == expected


@given(a=st.integers(-(2**10), 2**10), b=st.sampled_from([2**30, -(2**30), 2**29, 3 * 2**29, 1, -1]))
def test_the_high_product_on_ties(a: int, b: int) -> None:
    assert int(doubling_high_product(a, b)) == round_exact(Fraction(a * b, 2**31), "half_up")


@given(x=int32, e=st.integers(0, 31))
def test_the_rounding_shift_rounds_half_away(x: int, e: int) -> None:
    assert int(rounding_shift(x, e)) == round_exact(Fraction(x, 2**e), "half_away")


@pytest.mark.guarantee(
    "Single and double rounding in fixed point equal their definitions on Fractions", kind="sampled", clauses="N3"
)
@given(x=st.integers(-(2**24), 2**24), m=multipliers, shift=st.integers(-20, 6))
def test_single_and_double_rounding_are_their_definitions(x: int, m: int, shift: int) -> None:
    exact = Fraction(x * m) * Fraction(2) ** (shift - 31)
    assert int(single_round(x, m, shift)) == round_exact(exact, "half_up")
    high = round_exact(Fraction((x << max(shift, 0)) * m, 2**31), "half_up")
    assert int(double_round(x, m, shift)) == round_exact(Fraction(high, 2 ** max(-shift, 0)), "half_away")
    assert abs(int(double_round(x, m, shift)) - int(single_round(x, m, shift))) <= 1


@pytest.mark.guarantee("A fixed-point multiplier is within 2^-31 of its factor", kind="sampled", clauses="N3")
@given(st.floats(2.0**-30, 2.0**29))
def test_multipliers_are_the_nearest(factor: float) -> None:
    m, shift = map(int, quantize_multiplier(factor))
    assert 2**30 <= m < 2**31
    assert abs(Fraction(m) * Fraction(2) ** (shift - 31) - Fraction(factor)) <= Fraction(factor) / 2**31


@pytest.mark.parametrize("rounding", MODES)
@given(acc=st.lists(int32, min_size=1, max_size=10), factor=st.floats(2.0**-40, 2.0**10), z=st.integers(-8, 7))
def test_exact_requantization_is_exact(rounding: str, acc: list[int], factor: float, z: int) -> None:
    spec = rq.QuantSpec(4, rounding=rounding)
    codes = rq.requantize(acc, factor, z, spec=spec)
    assert codes.tolist() == [requantize_exact(a, factor, z, spec) for a in acc]


@pytest.mark.guarantee("Exact requantization is exact on and next to ties", kind="sampled", clauses="N3")
@pytest.mark.parametrize("rounding", MODES)
@given(n=st.integers(-100, 100), d=st.integers(1, 2**20), ulps=st.integers(-2, 2))
def test_exact_requantization_next_to_ties(rounding: str, n: int, d: int, ulps: int) -> None:
    factor = (abs(n) + 0.5) / d
    for _ in range(abs(ulps)):
        factor = math.nextafter(factor, math.copysign(math.inf, ulps))
    spec = rq.QuantSpec(8, rounding=rounding)
    for acc in (d, -d):
        assert int(rq.requantize(acc, factor, spec=spec)) == requantize_exact(acc, factor, 0, spec)


def test_the_public_report_of_two_roundings() -> None:
    """tensorflow#25087: 7984 times 1583594044 with shift -9; the real product is 11.4991."""
    codes = {
        how: int(rq.requantize(7984, 1583594044, spec=rq.QuantSpec(8), how=how, shift=-9))
        for how in ("exact", "float32", "single-round", "double-round", "SINGLE_ROUND", "DOUBLE_ROUND")
    }
    assert codes == {
        "exact": 11,
        "float32": 11,
        "single-round": 11,
        "double-round": 12,
        "SINGLE_ROUND": 11,
        "DOUBLE_ROUND": 12,
    }


def test_channels_and_empty() -> None:
    acc = np.arange(-6, 6).reshape(2, 6)
    spec = rq.QuantSpec(8, granularity=rq.PerChannel(0))
    codes = rq.requantize(acc, [0.5, 2.0], [0, 1], spec=spec)
    assert codes.tolist() == [[-3, -2, -2, -2, -1, 0], [1, 3, 5, 7, 9, 11]]
    assert rq.requantize(np.empty((0, 3), int), 0.5, spec=rq.QuantSpec(8)).shape == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "keywords", "text"),
    [
        (([1], 0.5), {"how": "nearest"}, "how='nearest'"),
        (([0.5], 0.5), {}, "float64"),
        (([2**31], 0.5), {}, "32 bits"),
        (([1], 0.0), {}, "finite and > 0"),
        (([1], 1e-40), {}, "2\\^-100"),
        (([1], 0.5), {"spec": rq.QuantSpec(8, rounding="stochastic")}, "stochastic"),
        (([2**30], 2.0), {"how": "double-round"}, "beyond 32 bits"),
    ],
)
def test_refusals(arguments: tuple[object, object], keywords: dict[str, object], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        rq.requantize(*arguments, **{"spec": rq.QuantSpec(8), **keywords})  # type: ignore[arg-type]
