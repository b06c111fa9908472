"""Two independent exact evaluators: integers against Fractions."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refquant as rq
from refquant.arith.quotient import QUOTIENTS
from refquant.arith.rounding import AWAY, MODES
from refquant.errors import ArgumentError, RefquantError
from refquant.quant.integers import quantize_integers

ALL_FLOAT16 = np.arange(65536, dtype=np.uint16).view(np.float16)
NUMBERS = ALL_FLOAT16[~np.isnan(ALL_FLOAT16)].astype(float).tolist()

specs = st.builds(
    rq.QuantSpec,
    bits=st.sampled_from([1, 2, 4, 8, 16, 31, 32]),
    signed=st.booleans(),
    rounding=st.sampled_from(MODES),
    quotient=st.sampled_from(list(QUOTIENTS)),
    zero_point_order=st.sampled_from(["after", "before"]),
    overflow=st.sampled_from(["saturate", "wrap"]),
)


@pytest.mark.guarantee(
    "The definition on Fractions equals a second one that computes on integers alone, on every finite float16",
    kind="exhaustive",
    clauses="Q2 Q3 Q4 Q5 Q6",
)
@pytest.mark.parametrize("mode", MODES)
def test_all_float16_values(mode: str) -> None:
    spec = rq.QuantSpec(8, rounding=mode)
    wrong = [x for x in NUMBERS if quantize_integers(x, 0.1, 3, spec) != rq.quantize_exact(x, 0.1, 3, spec)]
    assert wrong == []


@given(x=st.floats(allow_nan=False), s=st.floats(2.0**-14, 2.0**15), z=st.integers(0, 1), spec=specs)
def test_the_evaluators_agree_everywhere(x: float, s: float, z: int, spec: rq.QuantSpec) -> None:
    z = min(z, spec.qmax)
    assert quantize_integers(x, s, z, spec) == rq.quantize_exact(x, s, z, spec)


@pytest.mark.guarantee("The two definitions agree next to ties of float32 and float64", kind="sampled", clauses="Q2 Q4")
@given(k=st.integers(-300, 300), s=st.floats(2.0**-10, 2.0**10, width=16), ulps=st.integers(-2, 2), spec=specs)
def test_the_evaluators_agree_next_to_ties(k: int, s: float, ulps: int, spec: rq.QuantSpec) -> None:
    for dtype in (np.float32, np.float64):
        x = dtype((k + 0.5) * s)
        for _ in range(abs(ulps)):
            x = np.nextafter(x, dtype(np.copysign(np.inf, ulps)))
        assert quantize_integers(float(x), s, 0, spec) == rq.quantize_exact(float(x), s, 0, spec)


@pytest.mark.guarantee(
    "The two definitions agree at extreme scales and for real zero points", kind="sampled", clauses="Q2 Q3"
)
@given(x=st.floats(allow_nan=False, allow_infinity=False), s=st.floats(5e-324, 1e308), z=st.floats(-1e6, 1e6))
def test_the_evaluators_agree_at_extreme_scales_and_real_zero_points(x: float, s: float, z: float) -> None:
    spec = rq.QuantSpec(8, zero_point_order="before")
    assert quantize_integers(x, s, z, spec) == rq.quantize_exact(x, s, z, spec)


def test_a_planted_fault_in_one_is_seen_by_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AWAY, "half_even", AWAY["half_away"])
    spec = rq.QuantSpec(8)
    assert quantize_integers(0.5, 1.0, 0, spec) != rq.quantize_exact(0.5, 1.0, 0, spec)


def outcome(make: Callable[[], Any]) -> Any:
    """The code, or the kind of error."""
    try:
        return int(make())
    except RefquantError as error:
        return type(error).__name__


@pytest.mark.guarantee(
    "Array form and both definitions agree in codes and in refusals: NaN, infinities, unusable scales, overflow",
    kind="sampled",
    clauses="Q1 Q2 Q3 Q5 Q6",
)
@given(
    x=st.one_of(st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 3e38, 1e16]), st.floats()),
    s=st.sampled_from([1.0, 0.1, 1e-9, 1e-40, 1e-300, 5e-324, 1e39, 1e300, 0.0, -1.0, math.inf, math.nan]),
    z=st.sampled_from([0, 1, -3, 2, 0.5, 300, -1e39, 1e-60, 1e16 + 2, math.nan, math.inf]),
    bits=st.sampled_from([2, 8, 32]),
    signed=st.booleans(),
    rounding=st.sampled_from(MODES),
    quotient=st.sampled_from(list(QUOTIENTS)),
    order=st.sampled_from(["after", "before"]),
    overflow=st.sampled_from(["saturate", "wrap", "raise"]),
    nan=st.sampled_from(["raise", "zero", "qmin", "qmax"]),
)
def test_all_three_give_one_outcome(
    x: float,
    s: float,
    z: float,
    bits: int,
    signed: bool,
    rounding: str,
    quotient: str,
    order: str,
    overflow: str,
    nan: str,
) -> None:
    spec = rq.QuantSpec(bits, signed, False, rounding, quotient, order, overflow, nan)
    expected = outcome(lambda: rq.quantize_exact(x, s, z, spec))
    assert outcome(lambda: quantize_integers(x, s, z, spec)) == expected
    assert outcome(lambda: rq.quantize(x, s, z, spec=spec)) == expected  # also of shape ()
    assert outcome(lambda: rq.quantize([[x]], s, z, spec=spec)[0, 0]) == expected


def test_refusals() -> None:
    with pytest.raises(ArgumentError, match="deterministic"):
        quantize_integers(1.0, 1.0, 0, rq.QuantSpec(8, rounding="stochastic"))
    with pytest.raises(ArgumentError, match="scale"):
        quantize_integers(1.0, 0.0, 0, rq.QuantSpec(8))
