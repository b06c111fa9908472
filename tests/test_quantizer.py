"""Clauses Q1 to Q6 and D1, D2: the array form against the definition on Fractions."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
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
from refquant.quant.requantize import requantize_exact
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
    assert float(FORMATS[to](np.array(x))) == float(round_fraction(Fraction(x), to))


@given(s=finite32.filter(lambda v: 2.0**-100 < v < 2.0**100), bits=st.integers(2, 16))
def test_nearest_rounding_is_idempotent(s: float, bits: int) -> None:
    spec = rq.QuantSpec(bits)
    codes = np.unique(np.linspace(spec.qmin, spec.qmax, 64).astype(int))
    x = rq.dequantize(codes, s, spec=spec, dtype=np.float32)
    assert np.array_equal(rq.quantize(x, s, spec=spec), codes)


@pytest.mark.parametrize("to", ["float32", "float16", "bfloat16"])
@given(
    q=st.integers(-128, 127),
    s=st.floats(5e-324, 1.7e308),
    z=st.one_of(st.just(0.0), st.floats(-1.7e308, 1.7e308)),
    rule=st.sampled_from(CHOICES["dequantize"]),
)
def test_products_of_any_size_are_rounded_once(q: int, s: float, z: float, rule: str, to: str) -> None:
    spec = rq.QuantSpec(8, zero_point_order="before", dequantize=rule)
    got, expected = float(rq.dequantize(q, s, z, spec=spec, dtype=to)), dequantize_exact(q, s, z, spec, to)
    assert got == expected or (math.isnan(got) and math.isnan(expected))


def test_a_product_of_huge_and_tiny_is_rounded_once() -> None:
    """Splitting the huge factor overflowed, so that the rest below the last bit was lost and a tie broke wrongly."""
    s, z = float.fromhex("0x1.1ef52026cb06cp+1000"), float.fromhex("0x1.013509ca50d35p-1000")
    x = rq.dequantize(0, s, z, spec=rq.QuantSpec(8, zero_point_order="before"))
    assert float(x).hex() == "-0x1.204f8a0000000p+0"


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


@pytest.mark.parametrize("order", ["after", "before"])
@pytest.mark.parametrize("overflow", ["saturate", "wrap", "raise"])
def test_nan_becomes_the_code_of_zero(order: str, overflow: str) -> None:
    spec = rq.QuantSpec(4, nan="zero", zero_point_order=order, overflow=overflow)
    for z in (3, -8) if order == "after" else (2.5, -1.5, 3):
        code = int(rq.quantize(0.0, 0.3, z, spec=spec))
        assert rq.quantize([math.nan, 0.0], 0.3, z, spec=spec).tolist() == [code, code]
        assert rq.quantize_exact(math.nan, 0.3, z, spec) == code


def test_the_code_of_nan_is_on_the_grid_or_refused() -> None:
    spec = rq.QuantSpec(4, nan="zero", zero_point_order="before")
    assert rq.quantize(math.nan, 1.0, 100, spec=spec) == 7
    assert rq.quantize(math.nan, 1.0, 100, spec=replace(spec, overflow="wrap")) == 4
    for refuse in (rq.quantize, rq.quantize_exact):
        with pytest.raises(CodeOverflowError):
            refuse(math.nan, 1.0, 100, spec=replace(spec, overflow="raise"))
        for policy, code in (("qmin", -8), ("qmax", 7)):  # a policy is no overflow, wherever 0 would go
            named = replace(spec, overflow="raise", nan=policy)
            assert refuse(math.nan, 1.0, 100, spec=named) == code


@pytest.mark.parametrize("x", [1e16, -1e16, 3.0, math.inf])
def test_tensors_without_axes(x: float) -> None:
    wrap = rq.QuantSpec(8, overflow="wrap")
    assert rq.quantize(x, 1.0, spec=wrap).shape == ()
    assert int(rq.quantize(x, 1.0, spec=wrap)) == rq.quantize_exact(x, 1.0, 0, wrap)
    drawn = rq.QuantSpec(8, rounding="stochastic", zero_point_order="before")
    code = rq.quantize(x, 1.0, 0.5, spec=drawn, random_bits=np.uint8(200))
    assert int(code) == rq.quantize_exact(x, 1.0, 0.5, drawn, (200, 8))


def test_stochastic_codes_before_their_zero_point_are_no_overflow() -> None:
    spec = rq.QuantSpec(8, rounding="stochastic", zero_point_order="before", overflow="raise")
    assert rq.quantize([200.0], 1.0, -100, spec=spec, random_bits=np.array([3], np.uint8)).tolist() == [100]
    with pytest.raises(CodeOverflowError):
        rq.quantize([100.0], 1.0, 100, spec=spec, random_bits=np.array([3], np.uint8))


@pytest.mark.parametrize("number", [np.float32, np.float16, np.float64, np.longdouble, Fraction, np.array])
def test_single_numbers_of_any_type_are_the_rationals_they_are(number: Any) -> None:
    spec = rq.QuantSpec(8)
    x, s = number(2.5), number(0.099609375)
    assert rq.quantize_exact(x, s, np.int8(100), spec) == rq.quantize_exact(2.5, 0.099609375, 100, spec) == 125
    assert dequantize_exact(np.int8(100), s, np.int8(-100), spec) == 200 * 0.099609375  # int8 arithmetic would wrap
    assert requantize_exact(np.int32(2**31 - 1), s, np.int8(1), spec) == 127


def test_single_numbers_of_any_size() -> None:
    spec, huge = rq.QuantSpec(8), Fraction(10) ** 400
    assert rq.quantize_exact(huge, huge / 3, 0, spec) == 3
    assert rq.quantize_exact(np.int64(2**62 + 1), np.int64(2**40), 0, spec) == 127
    assert dequantize_exact(3, 1 / huge, 0, spec) == 0.0
    assert rq.quantize_exact(-huge, 1, 0, rq.QuantSpec(8, overflow="wrap")) == 0
    with pytest.raises(ArgumentError, match="becomes inf in float32"):
        rq.quantize_exact(1.0, huge, 0, rq.QuantSpec(8, quotient="float32"))


@pytest.mark.parametrize("order", [">", "<", "="])
def test_any_order_of_bytes(order: str) -> None:
    spec = rq.QuantSpec(8, rounding="stochastic")
    x, s = np.array([2.5, -3.5], f"{order}f4"), np.array(0.5, f"{order}f8")
    codes = rq.quantize(x, s, np.array(1, f"{order}i4"), spec=spec, random_bits=np.array([5, 9], f"{order}u2"))
    assert codes.tolist() == [6, -6]
    back = rq.dequantize(codes.astype(f"{order}i4"), s, 1, spec=spec, dtype=f"{order}f4")
    assert back.tolist() == [2.5, -3.5]
    assert rq.requantize(codes.astype(f"{order}i4"), s, spec=rq.QuantSpec(8)).tolist() == [3, -3]
    assert rq.range_parameters(x[1], x[0], spec=rq.QuantSpec(8))[0] == np.float32(6 / 255)


def test_integers_that_float64_cannot_hold_are_refused() -> None:
    for x in (2**53 + 1, -(2**53) - 1, 2**63 - 1):
        with pytest.raises(ArgumentError, match="up to 2\\^53"):
            rq.quantize(np.array([x]), 1.0, spec=rq.QuantSpec(8))
    assert rq.quantize(np.array([2**53, -(2**53)]), 2.0**50, spec=rq.QuantSpec(8)).tolist() == [8, -8]


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
        (lambda: rq.quantize_exact(1.0, 1.0, 300, rq.QuantSpec(8)), r"zero_point=300.*integer in \[-128, 127\]"),
        (lambda: rq.quantize_exact(1.0, 1.0, 0.5, rq.QuantSpec(8)), "zero_point=0.5"),
        (lambda: rq.quantize_exact(1.0, 1.0, math.inf, rq.profile("qonnx@1")), "zero_point=inf.*finite"),
        (lambda: rq.quantize_exact(1.0, 1.0, 0, rq.QuantSpec(8, rounding="stochastic"), (256, 8)), "u < 2"),
        (lambda: rq.quantize_exact(1.0, 1.0, 0, rq.QuantSpec(8, rounding="stochastic"), (-1, 8)), "u < 2"),
        (lambda: rq.quantize_exact(1.0, 1.0, 0, rq.QuantSpec(8, rounding="stochastic"), 3), "random_bits=3"),  # type: ignore[arg-type]
        (lambda: rq.quantize_exact(math.inf, 1.0, 0, rq.QuantSpec(8, rounding="stochastic")), "random_bits=None"),
        (lambda: rq.quantize_exact("1", 1.0, 0, rq.QuantSpec(8)), "x='1'.*a real number"),  # type: ignore[arg-type]
        (lambda: rq.quantize_exact(math.inf, 1e-9, 0, rq.QuantSpec(8, quotient="float16")), "becomes 0.0 in float16"),
        (lambda: dequantize_exact(128, 1.0, 0, rq.QuantSpec(8)), "code=128"),
        (lambda: dequantize_exact(1, 1.0, 0, rq.QuantSpec(8), "float8"), "dtype='float8'"),
        (lambda: rq.dequantize([1], 0.0, spec=rq.QuantSpec(8)), r"scale=0.0.*\[dequantize\(spec=int8\)\]"),
        (lambda: rq.dequantize([1], 1.0, spec=rq.QuantSpec(8), dtype="float8"), "dtype='float8'.*one of float64"),
        (lambda: rq.dequantize([1], 1.0, spec=rq.QuantSpec(8), dtype=[]), "dtype='void"),
        (lambda: rq.quantize([1.0], 1.0, spec=None), r"spec=None.*QuantSpec \[quantize\]"),  # type: ignore[arg-type]
        (lambda: rq.dequantize([1], 1.0, spec=None), r"spec=None.*QuantSpec \[dequantize\]"),  # type: ignore[arg-type]
        (lambda: rq.fake_quantize([1.0], 1.0, spec=None), "spec=None"),  # type: ignore[arg-type]
        (lambda: rq.quantize_exact(1.0, 1.0, 0, None), "spec=None"),  # type: ignore[arg-type]
        (lambda: rq.quantize([[1.0], [1.0, 2.0]], 1.0, spec=rq.QuantSpec(8)), "x: .*inhomogeneous"),
        (lambda: rq.profile([]), r"profile=\[\], but should be one of"),  # type: ignore[arg-type]
        (lambda: rq.QuantSpec(8, rounding={}), "rounding={}"),  # type: ignore[arg-type]
        (lambda: rq.QuantSpec.from_json("[" * 100_000), "QuantSpec.from_json"),
        (lambda: rq.QuantSpec.from_json("[" * 900 + "]" * 900), "QuantSpec.from_json"),
        (lambda: rq.IntegerSpec.from_json("[" * 100_000), "IntegerSpec.from_json"),
        (lambda: rq.QuantSpec.from_json(_nested("bits")), "bits="),
        (lambda: rq.QuantSpec.from_json(_nested("rounding")), "rounding="),
        (lambda: rq.QuantSpec.from_json(_nested("granularity")), "granularity"),
        (lambda: rq.PerChannel(True), r"axis=True, but should be an integer \[PerChannel\]"),
        (lambda: rq.PerChannel(0.0), "axis=0.0"),  # type: ignore[arg-type]
        (lambda: rq.PerChannel("0"), "axis='0'"),  # type: ignore[arg-type]
        (lambda: rq.PerGroup(0, 2.0), "size=2.0"),  # type: ignore[arg-type]
        (lambda: rq.PerGroup(np.bool_(True), 2), "axis="),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_say_what_they_should_be(call: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        call()


def _nested(field: str) -> str:
    """The JSON of a spec with so many lists in one field that writing them down would go too deep."""
    data = {**json.loads(rq.QuantSpec(8).to_json()), field: 0}
    return json.dumps(data).replace(f'"{field}": 0', f'"{field}": ' + "[" * 900 + "]" * 900)


def test_equal_granularities_have_equal_digests() -> None:
    kinds: list[Any] = [np.int64, np.uint8, np.int16]
    for kind in kinds:
        for plain, other in (
            (rq.PerChannel(1), rq.PerChannel(kind(1))),
            (rq.PerGroup(1, 4), rq.PerGroup(kind(1), kind(4))),
        ):
            a, b = (rq.QuantSpec(8, granularity=g) for g in (plain, other))
            assert a == b
            assert a.digest == b.digest
            assert rq.QuantSpec.from_json(b.to_json()) == a


def test_spec_round_trips_and_digests_differ() -> None:
    specs = [rq.QuantSpec(8), rq.QuantSpec(8, granularity=rq.PerChannel(0)), rq.QuantSpec(8, narrow=True)]
    assert [rq.QuantSpec.from_json(s.to_json()) for s in specs] == specs
    assert len({s.digest for s in specs}) == 3
