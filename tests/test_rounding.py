"""Clause Q4: the table against independent definitions, and arrays against fractions."""

import decimal
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refquant.arith.rounding import AWAY, MODES, _round_by_table, round_array, round_exact
from refquant.errors import ArgumentError

HALF = Fraction(1, 2)

# A second definition of each mode, in closed form, sharing nothing with the table.
CLOSED_FORM: dict[str, Callable[[Fraction], int]] = {
    "toward_zero": math.trunc,
    "away_from_zero": lambda x: -math.floor(-x) if x > 0 else math.floor(x),
    "floor": math.floor,
    "ceil": math.ceil,
    "half_even": round,
    "half_away": lambda x: math.floor(x + HALF) if x >= 0 else math.ceil(x - HALF),
    "half_toward_zero": lambda x: math.ceil(x - HALF) if x >= 0 else math.floor(x + HALF),
    "half_up": lambda x: math.floor(x + HALF),
    "half_down": lambda x: math.ceil(x - HALF),
}

DECIMAL = {
    "toward_zero": decimal.ROUND_DOWN,
    "away_from_zero": decimal.ROUND_UP,
    "floor": decimal.ROUND_FLOOR,
    "ceil": decimal.ROUND_CEILING,
    "half_even": decimal.ROUND_HALF_EVEN,
    "half_away": decimal.ROUND_HALF_UP,  # decimal's HALF_UP is away from zero
    "half_toward_zero": decimal.ROUND_HALF_DOWN,
}

ALL_FLOAT16 = np.arange(65536, dtype=np.uint16).view(np.float16)
FINITE_FLOAT16 = ALL_FLOAT16[np.isfinite(ALL_FLOAT16)]


def test_there_are_nine_modes_and_each_has_a_second_definition() -> None:
    assert len(MODES) == 9
    assert set(MODES) == set(CLOSED_FORM)


@pytest.mark.guarantee(
    "The nine rounding modes on arrays equal a second closed form of each, in float16, float32 and float64",
    kind="exhaustive",
    clauses="Q4",
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_all_finite_float16_values(mode: str, dtype: type[np.floating]) -> None:
    x = FINITE_FLOAT16.astype(dtype)
    rounded = round_array(x, mode)
    assert rounded.dtype == dtype
    expected = [CLOSED_FORM[mode](Fraction(v)) for v in x.tolist()]
    assert [round_exact(Fraction(v), mode) for v in x.tolist()] == expected
    assert rounded.astype(np.int64).tolist() == expected
    assert np.array_equal(np.signbit(rounded), np.signbit(x))


@pytest.mark.parametrize("mode", MODES)
def test_every_fast_form_equals_the_table(mode: str) -> None:
    with np.errstate(invalid="ignore"):
        by_table = _round_by_table(ALL_FLOAT16, mode)
    assert np.array_equal(by_table, round_array(ALL_FLOAT16, mode), equal_nan=True)


@pytest.mark.guarantee("Rounding agrees with Python's decimal where it has the mode", kind="sampled", clauses="Q4")
@pytest.mark.parametrize("mode", DECIMAL)
@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=64))
def test_decimal_agrees(mode: str, x: Fraction) -> None:
    x = Fraction(round(x * 64), 64)  # dyadic, so that the decimal is exact
    exact = decimal.Decimal(x.numerator) / decimal.Decimal(x.denominator)
    assert round_exact(x, mode) == int(exact.quantize(decimal.Decimal(1), rounding=DECIMAL[mode]))


@pytest.mark.guarantee(
    "The nine rounding modes are right on ties and the floats next to them", kind="sampled", clauses="Q4"
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(st.integers(-(2**20), 2**20), st.integers(-3, 3))
def test_on_and_next_to_every_tie(mode: str, dtype: type[np.floating], k: int, ulps: int) -> None:
    x = dtype(k / 2)
    for _ in range(abs(ulps)):
        x = np.nextafter(x, dtype(math.copysign(math.inf, ulps)))
    assert int(round_array(np.array([x]), mode)[0]) == CLOSED_FORM[mode](Fraction(float(x)))


@pytest.mark.parametrize("mode", MODES)
def test_false_tie_infinities_nan_and_empty(mode: str) -> None:
    x = np.array([-0.49999999999999994, np.inf, -np.inf, np.nan])
    rounded = round_array(x, mode)
    assert rounded[0] == CLOSED_FORM[mode](Fraction(-0.49999999999999994))
    assert rounded[1:3].tolist() == [np.inf, -np.inf]
    assert np.isnan(rounded[3])
    assert round_array(np.empty((0, 3)), mode).shape == (0, 3)


@pytest.mark.parametrize("mode", MODES)
def test_a_planted_fault_is_found(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negate the mode's answer: the second definition notices."""
    original = AWAY[mode]
    monkeypatch.setitem(AWAY, mode, lambda f: (not original(f)) if isinstance(f.odd, bool) else ~original(f))
    x = Fraction(5, 4)
    assert round_exact(x, mode) != CLOSED_FORM[mode](x)


def test_unknown_mode_names_the_known_ones() -> None:
    with pytest.raises(ArgumentError, match="half_even"):
        round_exact(Fraction(1, 2), "half-even")
    with pytest.raises(ArgumentError, match="half_even"):
        round_array(np.zeros(1), "nearest")
