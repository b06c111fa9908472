"""Clauses Q1 to Q6 and D1, D2: the array form against the definition on Fractions."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refquant as rq
from refquant.arith.formats import FORMATS, round_fraction
from refquant.arith.quotient import QUOTIENTS
from refquant.arith.rounding import MODES
from refquant.errors import ArgumentError, CodeOverflowError, NotANumberError
from refquant.quant.quantizer import dequantize_exact
from refquant.quant.spec import CHOICES

ALL_FLOAT16 = np.arange(65536, dtype=np.uint16).view(np.float16)
FINITE_FLOAT16 = ALL_FLOAT16[np.isfinite(ALL_FLOAT16)]

finite = st.floats(allow_nan=False, allow_infinity=False)
finite32 = st.floats(allow_nan=False, allow_infinity=False, width=32)
finite16 = st.floats(allow_nan=False, allow_infinity=False, width=16)


def assert_same_as_definition(x: Any, s: float, z: float, spec: rq.QuantSpec, bits: Any = None) -> None:
    x = np.asarray(x)
    codes = rq.quantize(x, s, z, spec=spec, random_bits=bits)
    rows = bits.tolist() if bits is not None else itertools.repeat(None)
    width = 0 if bits is None else 8 * bits.dtype.itemsize
    expected = [
        rq.quantize_exact(v, s, z, spec, None if u is None else (u, width))
        for v, u in zip(x.tolist(), rows, strict=False)
    ]
    wrong = np.flatnonzero(codes != np.array(expected))
    assert wrong.size == 0, [(x[i].item().hex(), codes[i], expected[i]) for i in wrong[:3]]


def grid_of_specs() -> Iterator[rq.QuantSpec]:
    for rounding in MODES:
        yield rq.QuantSpec(8, rounding=rounding)
    for quotient in QUOTIENTS:
        yield rq.QuantSpec(4, signed=False, quotient=quotient)
        yield rq.QuantSpec(16, quotient=quotient, zero_point_order="before", rounding="half_up")
    yield rq.QuantSpec(3, narrow=True)
    yield rq.QuantSpec(8, overflow="wrap")
    yield rq.QuantSpec(32, overflow="wrap", rounding="floor")
    yield rq.QuantSpec(1, signed=False)


@pytest.mark.guarantee(
    "Codes of every finite float16 equal the definition on Fractions, for a grid of specs over all quotients",
    kind="exhaustive",
    clauses="Q1 Q2 Q3 Q4 Q5 Q6",
)
@pytest.mark.parametrize("spec", list(grid_of_specs()), ids=lambda s: f"{s} {s.rounding} {s.quotient} {s.overflow}")
def test_all_float16_values(spec: rq.QuantSpec) -> None:
    assert_same_as_definition(FINITE_FLOAT16, 0.1, 1, spec)


@pytest.mark.guarantee(
    "The exact quotient of any two float64 is placed exactly among the multiples of 1/2", kind="sampled", clauses="Q2"
)
@given(
    x=st.lists(st.one_of(finite, finite32, st.sampled_from([math.inf, -math.inf, 0.0, -0.0])), min_size=1, max_size=8),
    s=st.floats(min_value=5e-324, max_value=1.7e308),
    spec=st.builds(
        rq.QuantSpec,
        bits=st.sampled_from([2, 4, 8, 16, 31, 32]),
        signed=st.booleans(),
        rounding=st.sampled_from(MODES),
        zero_point_order=st.sampled_from(["after", "before"]),
        overflow=st.sampled_from(["saturate", "wrap"]),
    ),
    z=st.integers(0, 1),
)
def test_exact_quotient_of_any_float64(x: list[float], s: float, spec: rq.QuantSpec, z: int) -> None:
    assert_same_as_definition(x, s, z, spec)


def neighbours(tie: float, dtype: type[np.floating], ulps: int) -> np.ndarray:
    x = dtype(tie)
    for _ in range(abs(ulps)):
        x = np.nextafter(x, dtype(math.copysign(math.inf, ulps)))
    return np.array([x, -x])


@pytest.mark.guarantee("Codes next to ties equal the definition, float32 and float64", kind="sampled", clauses="Q2 Q4")
@pytest.mark.parametrize("quotient", QUOTIENTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    s=st.floats(2.0**-10, 2.0**10, width=16),
    k=st.integers(0, 300),
    ulps=st.integers(-2, 2),
    rounding=st.sampled_from(MODES),
    z=st.sampled_from([0, 1, -3]),
    order=st.sampled_from(["after", "before"]),
)
def test_near_ties(
    quotient: str, dtype: type[np.floating], s: float, k: int, ulps: int, rounding: str, z: int, order: str
) -> None:
    spec = rq.QuantSpec(16, quotient=quotient, rounding=rounding, zero_point_order=order)
    assert_same_as_definition(neighbours((k + 0.5) * s, dtype, ulps), s, z, spec)


@given(x=finite, s=st.floats(1e-300, 1e300), z=st.floats(-1e6, 1e6), rounding=st.sampled_from(MODES))
def test_real_zero_point_before_rounding(x: float, s: float, z: float, rounding: str) -> None:
    spec = rq.QuantSpec(8, rounding=rounding, zero_point_order="before")
    assert_same_as_definition([x, z * s, -z * s, (0.5 - z) * s], s, z, spec)


@pytest.mark.guarantee("Stochastic rounding is floor(q + u / 2^width), exactly", kind="sampled", clauses="Q4")
@pytest.mark.parametrize("quotient", ["exact", "float32", "float16"])
@given(x=finite16, s=st.floats(2.0**-8, 2.0**8, width=16), u=st.integers(0, 255))
def test_stochastic_rounding_is_exactly_the_formula(quotient: str, x: float, s: float, u: int) -> None:
    for dtype, k in ((np.uint8, 1), (np.uint16, 257), (np.uint32, 16843009)):
        for order in ("after", "before"):
            spec = rq.QuantSpec(16, rounding="stochastic", quotient=quotient, zero_point_order=order)
            assert_same_as_definition(np.array([x]), s, 1, spec, np.array([u * k], dtype))


def test_double_division_fails_where_theory_says_and_exact_does_not() -> None:
    spec = rq.QuantSpec(32)
    x, s = np.float32(9331076.0 * 2.0**7), np.float32(8497725.0 * 2.0**-22)  # |x/s| > 2^29: a false tie in float64
    assert_same_as_definition(np.array([x]), float(s), 0, spec)
    assert_same_as_definition(np.array([13433909.0 * 2.0**30]), 8928143.0, 0, replace(spec, rounding="floor"))


@pytest.mark.guarantee("Every code of 2 to 8 bits dequantizes as defined", kind="exhaustive", clauses="D1 D2")
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("rule", CHOICES["dequantize"])
def test_every_code_dequantizes_as_defined(bits: int, signed: bool, rule: str) -> None:
    spec = rq.QuantSpec(bits, signed=signed, dequantize=rule)
    codes = np.arange(spec.qmin, spec.qmax + 1)
    for to in FORMATS:
        for s, z in ((0.1, 1), (float(np.float32(1 / 3)), 0), (1e-7, 1)):
            values = rq.dequantize(codes, s, z, spec=spec, dtype=to)
            assert values.tolist() == [dequantize_exact(q, s, z, spec, to) for q in codes.tolist()]


@given(q=st.integers(-(2**31), 2**31 - 1), s=st.floats(1e-300, 1e300), to=st.sampled_from(list(FORMATS)))
def test_wide_codes_dequantize_with_one_rounding(q: int, s: float, to: str) -> None:
    spec = rq.QuantSpec(32)
    assert float(rq.dequantize([q], s, 1, spec=spec, dtype=to)[0]) == dequantize_exact(q, s, 1, spec, to)


@pytest.mark.guarantee("Conversions to float16, bfloat16 and float32 round once", kind="sampled", clauses="Q2 D2")
@given(x=finite, to=st.sampled_from(list(FORMATS)))
def test_formats_round_once(x: float, to: str) -> None:
    from fractions import Fraction

    assert float(FORMATS[to](np.array(x))) == float(round_fraction(Fraction(x), to))


@given(s=finite32.filter(lambda v: 2.0**-100 < v < 2.0**100), bits=st.integers(2, 16))
def test_nearest_rounding_is_idempotent(s: float, bits: int) -> None:
    spec = rq.QuantSpec(bits)
    codes = np.unique(np.linspace(spec.qmin, spec.qmax, 64).astype(int))
    x = rq.dequantize(codes, s, spec=spec, dtype=np.float32)
    assert np.array_equal(rq.quantize(x, s, spec=spec), codes)


def test_the_seeds_floor_is_not_idempotent() -> None:
    alpha = np.float32(0.77551985)
    spec = rq.profile("seed-floor@1")
    x = rq.dequantize([-119], alpha, spec=spec)
    assert rq.quantize(x, alpha, spec=spec).tolist() == [-120]


@pytest.mark.guarantee("Channels and groups are quantized as their parts are", kind="sampled", clauses="Q1")
def test_channels_and_groups_equal_their_parts() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(3, 5, 4)).astype(np.float32)
    s = rng.uniform(0.1, 0.5, 5).astype(np.float32)
    z = np.array([0, 1, -1, 2, 3])
    spec = rq.QuantSpec(4, granularity=rq.PerChannel(1))
    codes = rq.quantize(x, s, z, spec=spec)
    one = rq.QuantSpec(4)
    for c in range(5):
        assert np.array_equal(codes[:, c], rq.quantize(x[:, c], s[c], z[c], spec=one))
    grouped = rq.QuantSpec(4, granularity=rq.PerGroup(1, 2))
    s = rng.uniform(0.1, 0.5, (3, 3, 4)).astype(np.float32)
    codes = rq.quantize(x, s, spec=grouped)
    for i, c, j in itertools.product(range(3), range(5), range(4)):
        assert codes[i, c, j] == rq.quantize(x[i, c, j], s[i, c // 2, j], spec=one)


def test_edges_of_the_domain() -> None:
    spec = rq.QuantSpec(8)
    assert rq.quantize([math.inf, -math.inf, -0.0], 1.0, 3, spec=spec).tolist() == [127, -128, 3]
    assert rq.quantize(np.empty((0, 2)), 1.0, spec=spec).shape == (0, 2)
    assert rq.quantize(np.float32(1.5), 1.0, spec=spec).shape == ()
    with pytest.raises(NotANumberError, match="Q1"):
        rq.quantize([math.nan], 1.0, spec=spec)
    for policy, code in (("zero", 3), ("qmin", -128), ("qmax", 127)):
        assert rq.quantize([math.nan, 1.0], 1.0, 3, spec=replace(spec, nan=policy)).tolist() == [code, 4]
    with pytest.raises(CodeOverflowError, match="2 values"):
        rq.quantize([200.0, 300.0, 1.0], 1.0, spec=replace(spec, overflow="raise"))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: rq.quantize([1.0], 0.0, spec=rq.QuantSpec(8)), "scale=0.0, but should be finite and > 0"),
        (lambda: rq.quantize([1.0], math.nan, spec=rq.QuantSpec(8)), "scale=nan"),
        (lambda: rq.quantize([1.0], 1.0, 300, spec=rq.QuantSpec(8, signed=False)), "zero_point=300"),
        (lambda: rq.quantize([1.0], 1.0, 0.5, spec=rq.QuantSpec(8)), "zero_point=0.5"),
        (lambda: rq.quantize([1.0], [1.0, 2.0], spec=rq.QuantSpec(8)), r"scale of shape \(2,\)"),
        (lambda: rq.quantize([1.0], 1e-9, spec=rq.QuantSpec(8, quotient="float16")), "becomes 0.0 in float16"),
        (lambda: rq.quantize([1j], 1.0, spec=rq.QuantSpec(8)), "complex"),
        (lambda: rq.quantize([1.0], 1.0, spec=rq.QuantSpec(8, rounding="stochastic")), "random_bits=None"),
        (lambda: rq.dequantize([9], 1.0, spec=rq.QuantSpec(3)), "codes from 9 to 9"),
        (lambda: rq.dequantize([0.5], 1.0, spec=rq.QuantSpec(3)), "codes of type float64"),
        (lambda: rq.QuantSpec(0), "bits=0"),
        (lambda: rq.QuantSpec(1, narrow=True), "single code"),
        (lambda: rq.QuantSpec(8, rounding="nearest"), "rounding='nearest'"),
        (lambda: rq.QuantSpec(8, granularity="channel"), "granularity='channel'"),  # type: ignore[arg-type]
        (lambda: rq.QuantSpec.from_json('{"bits": 8}'), "exactly"),
        (lambda: rq.PerGroup(0, 0), "size=0"),
        (lambda: rq.quantize([[1.0]], [1.0], spec=rq.QuantSpec(8, granularity=rq.PerChannel(2))), "axis=2"),
        (lambda: rq.profile("seed"), "seed-floor@1"),
    ],
)
def test_bad_arguments_say_what_they_should_be(call: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        call()


def test_spec_round_trips_and_digests_differ() -> None:
    specs = [rq.QuantSpec(8), rq.QuantSpec(8, granularity=rq.PerChannel(0)), rq.QuantSpec(8, narrow=True)]
    assert [rq.QuantSpec.from_json(s.to_json()) for s in specs] == specs
    assert len({s.digest for s in specs}) == 3
