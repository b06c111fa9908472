"""Range rules: by their defining property, in exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refquant as rq
from refquant.errors import ArgumentError
from refquant.quant.ranges import RULES

reals = st.floats(-1e6, 1e6, width=32)


@given(a=reals, b=reals, bits=st.integers(2, 8))
def test_affine_steps_span_the_range_with_zero_on_the_grid(a: float, b: float, bits: int) -> None:
    spec = rq.QuantSpec(bits, signed=False)
    lo, hi = min(a, b, 0.0), max(a, b, 0.0)
    scale, zero_point = rq.range_parameters(min(a, b), max(a, b), spec=spec, rule="affine")
    assert spec.qmin <= zero_point <= spec.qmax
    if hi > lo:
        exact = (Fraction(hi) - Fraction(lo)) / spec.qmax
        # float64 rounds twice, float32 once more; subnormal results err by half the least subnormal
        assert abs(Fraction(float(scale)) - exact) <= exact * Fraction(2) ** -23 + Fraction(2) ** -149
        assert abs(int(zero_point) + Fraction(lo) / exact) <= Fraction(1, 2) + Fraction(1, 2**40)
    else:
        assert float(scale) == 1.0


@given(a=reals, b=reals, bits=st.integers(2, 8), rule=st.sampled_from(["symmetric", "symmetric-full"]))
def test_symmetric_rules_cover_the_range_without_a_zero_point(a: float, b: float, bits: int, rule: str) -> None:
    spec = rq.QuantSpec(bits)
    lo, hi = min(a, b), max(a, b)
    scale, zero_point = rq.range_parameters(lo, hi, spec=spec, rule=rule)
    assert zero_point == 0
    s = Fraction(float(scale)) * (1 + Fraction(2) ** -23) + Fraction(2) ** -149
    assert spec.qmin * s <= lo
    assert hi <= spec.qmax * s
    if rule == "symmetric" and max(-lo, hi) > 0:
        assert abs(Fraction(float(scale)) * spec.qmax - Fraction(max(-lo, hi))) <= 2**-23 * max(-lo, hi) + 1e-40


def test_parameters_keep_the_shape_and_type() -> None:
    scale, zero_point = rq.range_parameters(np.zeros((2, 3)), np.ones((2, 3)), spec=rq.QuantSpec(8), rule="affine")
    assert scale.shape == (2, 3)
    assert scale.dtype == np.float32
    assert zero_point.dtype == np.int64


@pytest.mark.parametrize(
    ("lo", "hi", "rule", "text"),
    [(1.0, 0.0, "affine", "lo <= hi"), (0.0, np.inf, "affine", "finite"), (0.0, 1.0, "best", "rule='best'")],
)
def test_refusals(lo: float, hi: float, rule: str, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        rq.range_parameters(lo, hi, spec=rq.QuantSpec(8), rule=rule)
    assert "affine" in RULES
