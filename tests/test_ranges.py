"""Range rules: by their defining property, and step by step in exact arithmetic with one rounding a step."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refquant as rq
from refquant.errors import ArgumentError
from refquant.quant.ranges import RULES
from refquant.quant.ranges_exact import range_parameters_exact

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


# ---- every rule again, by its definition on Fractions -------------------------------------------------------------


SPECS = [
    rq.QuantSpec(8),
    rq.QuantSpec(8, False),
    rq.QuantSpec(4, narrow=True),
    rq.QuantSpec(4, False, narrow=True),
    rq.QuantSpec(32),  # float32 holds neither qmax nor the number of steps
    rq.QuantSpec(32, False),
]
TINY = [(0.0, 1e-44), (-1e-44, 0.0), (0.0, 1e-46), (-3e-310, 1e-310), (-5e-324, 0.0), (0.0, 5e-324), (1e-45, 2e-45)]


@pytest.mark.guarantee(
    "Every range rule equals its definition on Fractions, one rounding a step",
    kind="sampled",
    clauses="R1 R2 R3 R4 R5 R6 R7 R8 R9 R10 R11 R12 R13 R14 R15",
)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_rule_is_its_definition(rule: str, spec: rq.QuantSpec) -> None:
    rng = np.random.default_rng(0)
    middle, width = rng.normal(0, 1, 400), np.abs(rng.normal(0, 1, 400))
    size = 10.0 ** rng.integers(-6, 7, 400)
    lo, hi = ((middle + side * width) * size for side in (-1, 1))
    steps = rng.integers(0, 20, 400)  # ends at and next to multiples of half a step: ties of the zero point
    hi[:200] = (spec.qmax - spec.qmin - steps[:200] / 2) * size[:200]
    lo[:200] = -steps[:200] / 2 * size[:200]
    hard = [(0.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (2.0, 3.0), (-3.0, -2.0), (-1e-44, 2e-45), (-3e38, 3e37), (-1.0, 1.0)]
    lo, hi = (np.append(v, [pair[i] for pair in hard]).astype(np.float32) for i, v in enumerate((lo, hi)))
    lo, hi = (np.append(v.astype(np.float64), [pair[i] for pair in TINY]) for i, v in enumerate((lo, hi)))
    scale, zero_point = rq.range_parameters(lo, hi, spec=spec, rule=rule)
    for i, (a, b) in enumerate(zip(lo.tolist(), hi.tolist(), strict=True)):
        assert (float(scale[i]), int(zero_point[i])) == range_parameters_exact(a, b, spec, rule), (a, b)


def test_what_public_reports_say_of_rules() -> None:
    """Scales of about 0.362 and 0.338 for one range at 4 bits; zero points that differ by one."""
    four = rq.QuantSpec(4)
    scales = [float(rq.range_parameters(-1.149, 2.533, spec=four, rule=r)[0]) for r in ("symmetric", "symmetric-half")]
    assert [round(s, 4) for s in scales] == [0.3619, 0.3377]
    byte = rq.QuantSpec(8, signed=False)
    points = {r: int(rq.range_parameters(-1.0, 1.0, spec=byte, rule=r)[1]) for r in ("affine", "affine-away", "tflite")}
    assert points == {"affine": 128, "affine-away": 128, "tflite": 128}
    nudged = {r: int(rq.range_parameters(-2.5, 252.5, spec=byte, rule=r)[1]) for r in ("affine", "affine-away")}
    assert nudged == {"affine": 2, "affine-away": 3}
    odd = rq.QuantSpec(4, narrow=True)  # qmin = -7 is odd: rounding lo / s alone goes another way
    apart = {r: int(rq.range_parameters(-2.5, 11.5, spec=odd, rule=r)[1]) for r in ("affine-float32", "torch-affine")}
    assert apart == {"affine-float32": -4, "torch-affine": -5}
    kept = {r: int(rq.range_parameters(2.0, 3.0, spec=byte, rule=r)[1]) for r in ("affine", "affine-as-given")}
    assert kept == {"affine": 0, "affine-as-given": 0}
    assert rq.range_parameters(2.0, 3.0, spec=byte, rule="affine-as-given")[0] == np.float32(1 / 255)


@pytest.mark.parametrize("rule", RULES)
def test_only_a_range_without_extent_has_scale_1(rule: str) -> None:
    smallest = float(np.finfo(np.float32).smallest_subnormal)
    least = RULES[rule].least
    lo, hi = np.array(TINY).T
    scale, _ = rq.range_parameters(lo, hi, spec=rq.QuantSpec(16), rule=rule)
    assert set(scale.tolist()) == {least or smallest}
    assert rq.range_parameters(0.0, 0.0, spec=rq.QuantSpec(16), rule=rule)[0] == (least or 1.0)


def test_zero_points_of_32_bits_stay_on_the_grid() -> None:
    """float32 rounds 2^32 - 1 up to 2^32: bringing z into range is not a step of the rule's arithmetic."""
    for rule in RULES:
        for spec in (rq.QuantSpec(32, False), rq.QuantSpec(32), rq.QuantSpec(31)):
            for lo, hi in ((-1.0, 0.0), (0.0, 1.0), (-1.0, 1e-3), (-3.0, -2.0)):
                scale, z = rq.range_parameters(lo, hi, spec=spec, rule=rule)
                rq.quantize([lo, hi], scale, z, spec=spec)
                assert spec.qmin <= int(z) <= spec.qmax


def numbers(parameters: tuple[Any, Any]) -> list[float]:
    return [float(v) for v in parameters]


def test_torch_and_tflite_on_the_empty_range() -> None:
    for rule, bits in (("torch-affine", -128), ("torch-symmetric", 0)):
        for hi in (0.0, 1e-44):
            assert numbers(rq.range_parameters(0.0, hi, spec=rq.QuantSpec(8), rule=rule)) == [2.0**-23, bits]
    for signed in (True, False):
        assert numbers(rq.range_parameters(0.0, 0.0, spec=rq.QuantSpec(8, signed), rule="tflite")) == [1, 0]


def test_one_bit_with_a_sign_has_no_positive_code_to_divide_by() -> None:
    one = rq.QuantSpec(1)
    for rule in ("symmetric", "power-of-two-up", "power-of-two-nearest", "power-of-two-floor"):
        for lo, hi in ((-2.0, 0.0), (0.0, 0.0), (-1.0, 1.0)):
            with pytest.raises(ArgumentError, match=r"qmax=0 \(int1\), but should be > 0"):
                rq.range_parameters(lo, hi, spec=one, rule=rule)
    assert numbers(rq.range_parameters(-2.0, 0.0, spec=one, rule="symmetric-full")) == [2, 0]
    with pytest.raises(ArgumentError, match="qmax=0"):
        rq.range_parameters(-2.0, 1.0, spec=one, rule="symmetric-full")
    for rule in ("affine", "symmetric-half", "torch-symmetric", "tflite"):
        rq.range_parameters(-2.0, 1.0, spec=one, rule=rule)


def test_symmetric_rules_give_the_code_nearest_to_0() -> None:
    for rule in (rule for rule in RULES if "symmetric" in rule or "power" in rule):
        for spec in SPECS:
            z = int(rq.range_parameters(-1.0, 2.0, spec=spec, rule=rule)[1])
            assert z == (1 if spec.narrow and not spec.signed else 0)


@pytest.mark.parametrize(
    ("lo", "hi", "text"),
    [
        ("a", 1.0, r"lo of type <U1.*\[range_parameters\(affine\)\]"),
        ([0.0, 0.0], [1.0, 2.0, 3.0], r"lo of shape \(2,\), hi of shape \(3,\)"),
        ([0.0, 2.0], 1.0, r"range \[2.0, 1.0\]"),
    ],
)
def test_bad_ends_are_named(lo: Any, hi: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        rq.range_parameters(lo, hi, spec=rq.QuantSpec(8))
    with pytest.raises(ArgumentError, match=r"rule=\[\]"):
        rq.range_parameters(0.0, 1.0, spec=rq.QuantSpec(8), rule=[])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="spec=None"):
        rq.range_parameters(0.0, 1.0, spec=None)  # type: ignore[arg-type]


def test_scales_beyond_float32_are_refused() -> None:
    with pytest.raises(ArgumentError, match="float32"):
        rq.range_parameters(-1e300, 1e300, spec=rq.QuantSpec(8))


def test_every_rule_says_where_it_is_from() -> None:
    assert all(rule.source and rule.quirk for rule in RULES.values())
