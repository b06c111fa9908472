"""Fixed point against its definition on Fractions, and the public reports it reproduces."""

import math
from fractions import Fraction
from typing import Any

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
from refquant.errors import ArgumentError, CodeOverflowError
from refquant.quant.requantize import HOWS, requantize_exact

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


@pytest.mark.guarantee(
    "Exact requantization that wraps or raises equals the definition, whatever the size of the product",
    kind="sampled",
    clauses="N3 Q6",
)
@given(
    acc=int32,
    factor=st.one_of(st.floats(2.0**-100, 2.0**100), st.sampled_from([1.0, 2.0**52 + 1, 3.0**15, 2.0**-100])),
    z=st.integers(0, 1),
    spec=st.builds(
        rq.QuantSpec,
        bits=st.sampled_from([2, 8, 16, 31]),
        signed=st.booleans(),
        rounding=st.sampled_from(MODES),
        overflow=st.sampled_from(["saturate", "wrap", "raise"]),
    ),
)
def test_wrapping_and_raising_are_exact(acc: int, factor: float, z: int, spec: rq.QuantSpec) -> None:
    try:
        expected = requantize_exact(acc, factor, z, spec)
    except CodeOverflowError:
        with pytest.raises(CodeOverflowError, match="requantize"):
            rq.requantize([acc], factor, z, spec=spec)
    else:
        assert rq.requantize([acc], factor, z, spec=spec).tolist() == [expected]
        assert int(rq.requantize(acc, factor, z, spec=spec)) == expected


@pytest.mark.guarantee(
    "Fixed point that wraps keeps the low bits of the integer that its definition gives",
    kind="sampled",
    clauses="N3 Q6",
)
@given(x=int32, m=multipliers, shift=st.integers(-31, 30), signed=st.booleans())
def test_fixed_point_wraps_exactly(x: int, m: int, shift: int, signed: bool) -> None:
    spec = rq.QuantSpec(8, signed, overflow="wrap")
    k = round_exact(Fraction(x * m) * Fraction(2) ** (shift - 31), "half_up")
    got = rq.requantize([x], m, spec=spec, how="single-round", shift=shift)
    assert got.tolist() == [(k - spec.qmin) % 256 + spec.qmin]


def test_large_products_wrap_to_the_right_code() -> None:
    spec = rq.QuantSpec(8, overflow="wrap")
    assert int(rq.requantize(7, 2.0**52 + 1, spec=spec)) == 7
    assert int(rq.requantize(2147483645, 3.0**15, spec=spec)) == -65
    byte = rq.QuantSpec(8, signed=False, overflow="wrap")
    assert rq.requantize([2147483647], 2147483647, spec=byte, how="single-round", shift=30).tolist() == [1]
    assert rq.requantize([2**31 - 1], 2.0**99, spec=spec, how="float32").tolist() == [127]  # infinite: saturates


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("factor", [0.37, 2.5])
def test_a_code_depends_on_its_own_factor_alone(how: str, factor: float) -> None:
    """A factor of 1 changes nothing, though another channel's does: 2^24 + 1 is no float32, its shift overflows."""
    acc = np.array([[2**24 + 1, -(2**24) - 1, 2**31 - 1], [3, -5, 7]])
    spec = rq.QuantSpec(31, granularity=rq.PerChannel(0))
    together = rq.requantize(acc, [1.0, factor], spec=spec, how=how)
    assert np.array_equal(together[0], np.minimum(acc[0], spec.qmax))
    assert np.array_equal(together[1], rq.requantize(acc[1], factor, spec=rq.QuantSpec(31), how=how))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64, np.uint64, np.dtype(">i4")])
def test_shifts_of_any_integer_type(how: str, dtype: Any) -> None:
    spec = rq.QuantSpec(8)
    for shift in (1, 0, 3):
        wide = rq.requantize([25, -9], 2**30, spec=spec, how=how, shift=shift)
        assert np.array_equal(rq.requantize([25, -9], 2**30, spec=spec, how=how, shift=np.array(shift, dtype)), wide)
        away = 1 if how in HOWS[2:] and shift == 0 else 0  # 12.5: fixed point rounds it up
        assert wide[0] == (12 + away, 25, 0, 100)[shift]
    assert int(rq.requantize(100, 2**30, spec=spec, shift=np.int8(-98))) == 0
    each = rq.QuantSpec(8, granularity=rq.PerChannel(0))
    codes = rq.requantize([[8], [8]], np.array([2**30, 2**30]), spec=each, how=how, shift=np.array([0, 2], np.uint8))
    assert codes.tolist() == [[4], [16]]


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
    for how in HOWS:
        assert rq.requantize(np.empty((0, 3), int), 0.5, spec=rq.QuantSpec(8), how=how).shape == (0, 3)
        assert rq.requantize([], 1.0, spec=rq.QuantSpec(8), how=how).shape == (0,)
        assert rq.requantize([], 2**30, spec=rq.QuantSpec(8), how=how, shift=0).dtype == np.int32


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
        (([2], 2**30), {"how": "double-round", "shift": 64}, r"shift from 64 to 64.*-31\.\.30"),
        (([2], 2**30), {"how": "single-round", "shift": 31}, r"shift from 31 to 31.*-31\.\.30"),
        (([2], 2**30), {"how": "double-round", "shift": -32}, "shift from -32 to -32"),
        (([2], 2**30), {"shift": 2**40}, "shift from .*integers of 32 bits"),
        (([2], 2**30), {"shift": 0.5}, "shift of type float64"),
        (([2], 2**40), {"shift": 0}, "multiplier from .*integers of 32 bits"),
        (([2], 0.5), {"shift": 0}, "multiplier of type float64"),
        (([2], 2**30), {"shift": [1, 2]}, r"shift of shape \(2,\)"),
        (([2, 3], [2**30, 2**30]), {"shift": [1, 2, 3]}, r"multiplier of shape \(2,\)"),
        (([1], 0.0), {}, r"multiplier=0.0, but should be finite and > 0 \[requantize\(spec=int8\)\]"),
        (([1], 0), {"shift": 0}, r"multiplier 2\^\(shift - 31\)=0.0"),
        (([1], 1j), {}, "multiplier of type complex128"),
        (([1], "1"), {}, "multiplier of type <U1"),
        (([1], 0.5, 0.5), {}, r"zero_point=0.5.*\[requantize"),
        (([1], 0.5), {"how": []}, r"how=\[\], but should be one of exact"),
        (([1], 0.5), {"spec": None}, "spec=None"),
    ],
)
def test_refusals(arguments: tuple[object, ...], keywords: dict[str, object], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        rq.requantize(*arguments, **{"spec": rq.QuantSpec(8), **keywords})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: requantize_exact(1, 0.0, 0, rq.QuantSpec(8)), "factor=0.0"),
        (lambda: requantize_exact(1, 0.5, 300, rq.QuantSpec(8)), "zero_point=300"),
        (lambda: requantize_exact(0.5, 0.5, 0, rq.QuantSpec(8)), "accumulator=0.5"),
        (lambda: requantize_exact(1, 0.5, 0, rq.QuantSpec(32)), "at most 31"),
        (lambda: rq.quantize_bias([1.0], 0.0, 0.5, spec=rq.IntegerSpec()), r"input_scale=0.0.*\[quantize_bias\]"),
        (lambda: rq.quantize_bias([1.0], 0.5, [-1.0], spec=rq.IntegerSpec()), r"weight_scale=-1.0.*\[quantize_bias\]"),
        (lambda: rq.quantize_bias([1.0], 1e300, 1e300, spec=rq.IntegerSpec()), "input_scale weight_scale=inf"),
        (lambda: rq.quantize_bias(["a"], 1.0, 1.0, spec=rq.IntegerSpec()), r"bias of type.*\[quantize_bias\]"),
        (lambda: rq.quantize_bias([1.0], 1.0, 1.0, spec=None), r"spec=None.*IntegerSpec"),  # type: ignore[arg-type]
        (lambda: rq.IntegerSpec(pool=[]), r"pool=\[\]"),  # type: ignore[arg-type]
    ],
)
def test_refusals_of_the_definition_and_of_biases(call: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        call()
