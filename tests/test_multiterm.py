"""Sums of terms: bit slicing, decay, the lossless end, storage."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refquant as rq
from refquant.arith.rounding import round_exact
from refquant.errors import ArgumentError, NotANumberError
from refquant.quant.multiterm import absmax_scale, encode_greedy, encode_ladder, rest_of, sound, with_counts

ALL_FLOAT16 = np.arange(65536, dtype=np.uint16).view(np.float16)
FINITE_FLOAT16 = ALL_FLOAT16[np.isfinite(ALL_FLOAT16)]

finite32 = st.floats(-1e6, 1e6, width=32)
scales32 = st.floats(2.0**-20, 2.0**20, width=32)


def ladder_code(terms: rq.MultiTerm, L: int) -> np.ndarray:
    return np.asarray(sum(q.astype(np.int64) * L ** (terms.terms - 1 - t) for t, q in enumerate(terms.codes)))


def assert_bit_slicing(x: np.ndarray, alpha: float, bits: int, T: int) -> None:
    spec = rq.QuantSpec(bits, rounding="floor")
    ladder = encode_ladder(x, alpha, spec=spec, terms=T, rest=rest_of(spec))
    one = rq.quantize(
        x.astype(np.float64) * 2.0 ** (bits * (T - 1)), alpha, spec=rq.QuantSpec(bits * T, rounding="floor")
    )
    assert np.array_equal(ladder_code(ladder, 2**bits), one)


@pytest.mark.guarantee(
    "A floor ladder of T terms of b bits is one quantizer of T b bits", kind="exhaustive", clauses="M1"
)
@pytest.mark.parametrize(("bits", "T"), [(1, 4), (2, 2), (2, 3), (3, 2), (4, 2), (4, 3)])
@pytest.mark.parametrize("alpha", [1.0, 0.1])
def test_a_floor_ladder_is_one_wide_quantizer_for_all_float16(bits: int, T: int, alpha: float) -> None:
    assert_bit_slicing(FINITE_FLOAT16, alpha, bits, T)


@given(x=st.lists(finite32, min_size=1, max_size=20), alpha=scales32, bits=st.integers(2, 8), T=st.integers(1, 3))
def test_a_floor_ladder_is_one_wide_quantizer(x: list[float], alpha: float, bits: int, T: int) -> None:
    assert_bit_slicing(np.array([*x, 0.0, alpha, -alpha, 1e6 * alpha], np.float32), alpha, bits, T)


@given(u=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20), alpha=scales32, T=st.integers(1, 3))
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_nearest_ladder_leaves_at_most_half_its_last_step(u: list[float], alpha: float, bits: int, T: int) -> None:
    spec = rq.QuantSpec(bits, narrow=True)
    L = 2 * spec.qmax + 1
    x = np.array([v * (spec.qmax + 0.5) * alpha for v in u], np.float32)
    limit = (spec.qmax + Fraction(1, 2)) * Fraction(alpha)
    x = x[[abs(Fraction(float(v))) <= limit for v in x]]
    codes = ladder_code(encode_ladder(x, alpha, spec=spec, terms=T, rest=spec), L).tolist()
    step = Fraction(alpha) / L ** (T - 1)
    assert all(abs(Fraction(float(v)) - step * q) <= step / 2 for v, q in zip(x, codes, strict=True))


def exact_greedy(w: list[Fraction], qmax: int, T: int) -> list[Fraction]:
    """The greedy residual with scale |r|_inf / qmax, in exact arithmetic."""
    for _ in range(T):
        alpha = max(map(abs, w)) / qmax or Fraction(1)
        w = [r - alpha * max(-qmax, min(qmax, round_exact(r / alpha, "half_even"))) for r in w]
    return w


rows = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12)


@pytest.mark.guarantee("Greedy sums err by at most max|w| / (2 qmax)^T", kind="sampled", clauses="M1")
@given(w=rows, bits=st.integers(2, 4), T=st.integers(1, 4))
def test_exact_greedy_decays_by_twice_qmax_a_term(w: list[float], bits: int, T: int) -> None:
    qmax = 2 ** (bits - 1) - 1
    exact = [Fraction(v) for v in w]
    assert max(map(abs, exact_greedy(exact, qmax, T))) <= max(map(abs, exact)) / (2 * qmax) ** T


def float_residual(w: np.ndarray, sums: rq.MultiTerm) -> Fraction:
    parts = [[Fraction(float(s)) * q for q in codes.tolist()] for s, codes in zip(sums.scales, sums.codes, strict=True)]
    sums_of = [sum(p, Fraction(0)) for p in zip(*parts, strict=True)]
    return max(abs(Fraction(float(v)) - p) for v, p in zip(w, sums_of, strict=True))


@given(w=rows, bits=st.integers(2, 4), T=st.integers(1, 4))
def test_float32_scales_cost_one_rounding_a_term(w: list[float], bits: int, T: int) -> None:
    x = np.array(w, np.float32)
    x[np.abs(x) < 2.0**-40] = 0  # scales stay normal numbers, whose relative error is 2^-24
    spec = rq.QuantSpec(bits, narrow=True)
    sums = encode_greedy(x, spec=spec, terms=T, rest=spec)
    bound = Fraction(float(np.abs(x).max())) / (2 * spec.qmax) ** T * (1 + Fraction(1, 2**24)) ** T
    assert float_residual(x, sums) <= bound


def test_without_the_factor_the_float32_bound_fails() -> None:
    spec = rq.QuantSpec(3, narrow=True)
    x = np.array([1.0, np.float32(1 / 3) / 2], np.float32)
    residual = float_residual(x, encode_greedy(x, spec=spec, terms=1, rest=spec))
    assert residual > Fraction(1, 6)
    assert residual <= Fraction(1, 6) * (1 + Fraction(1, 2**24))


@pytest.mark.guarantee("Enough terms give the float32 tensor back bit for bit", kind="sampled", clauses="M1 M2")
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("rounding", ["half_even", "floor"])
def test_enough_terms_are_lossless(bits: int, rounding: str) -> None:
    rng = np.random.default_rng(bits)
    # floor turns a small negative x into alpha - |x|, which float64 keeps only to 2^-53 of alpha
    tiny = 1e-6 if rounding == "floor" else 1e-12
    x = np.concatenate([rng.normal(size=500), rng.standard_t(3, 500), [0.0, tiny, -tiny, 1e3]]).astype(np.float32)
    spec = rq.QuantSpec(bits, rounding=rounding)
    sums = encode_greedy(x, spec=spec, terms=80 // bits + 8, rest=rest_of(spec))
    assert sums.decode().tobytes() == x.tobytes()


def test_truncation_keeps_the_first_terms_and_selection_the_right_sums() -> None:
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    spec = rq.QuantSpec(3, granularity=rq.PerChannel(0))
    sums = [encode_greedy(x, spec=spec, terms=t, rest=rest_of(spec)) for t in (1, 2, 3)]
    counts = np.array([1, 3, 2])
    cut, chosen = sums[2].truncated(counts), with_counts(sums, counts)
    for row, count in enumerate(counts):
        expected = sums[2].partial_sums()[count - 1, row].astype(np.float32)
        assert np.array_equal(cut.decode()[row], expected)
        assert np.array_equal(chosen.decode()[row], expected)
    assert cut.storage_bits == chosen.storage_bits == (5 * 3 + 32) * (1 + 3 + 2)


def test_ladders_of_32_bits_keep_their_codes() -> None:
    spec = rq.QuantSpec(32, signed=False)
    codes = encode_ladder([3e9, 4294967295.0, 1e10], 1.0, spec=spec, terms=1, rest=rest_of(spec)).codes
    assert codes.tolist() == [[3000000000, 4294967295, 4294967295]]


def test_a_zero_points_order_says_nothing_to_sums() -> None:
    x = np.arange(-20, 20, dtype=np.float32) / 8
    specs = [rq.QuantSpec(3, narrow=True, zero_point_order=order) for order in ("after", "before")]
    a, b = (encode_ladder(x, 0.5, spec=spec, terms=2, rest=rest_of(spec)).codes for spec in specs)
    assert np.array_equal(a, b)


def test_sums_that_do_not_belong_together_are_refused() -> None:
    spec = rq.QuantSpec(3, granularity=rq.PerChannel(0))
    good = rq.MultiTerm(np.array([[[3], [-4]]]), np.array([[0.5, 1.0]]), (spec,), np.array([1, 1]))
    assert sound(good, "here") is good
    unused = replace(good, codes=np.array([[[3], [1]], [[1], [0]]]), scales=np.ones((2, 2)), specs=(spec, spec))
    assert sound(replace(unused, counts=np.array([2, 1])), "here").terms == 2
    bad: list[tuple[dict[str, object], str]] = [
        ({"codes": good.codes + 1}, "codes of term 1 from -3 to 4"),
        ({"codes": good.codes + 0.0}, "codes of type float64"),
        ({"codes": good.codes.repeat(2, 0)}, "shapes"),
        ({"scales": np.array([[0.5, np.nan]])}, "scale=nan"),
        ({"scales": np.array([[0.5, -1.0]])}, "scale=-1.0"),
        ({"scales": np.array([[0.5]])}, "shapes"),
        ({"counts": np.array([1, 2])}, "counts from 1 to 2"),
        ({"specs": ()}, "0 specs"),
    ]
    for change, text in bad:
        with pytest.raises(ArgumentError, match=rf"{text}.*\[here\]"):
            sound(replace(good, **change), "here")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="codes of term 2"):
        sound(replace(unused, counts=np.array([1, 1])), "here")


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: rq.encode_terms([1.0], spec=rq.QuantSpec(3), terms=0), ArgumentError, "terms=0"),
        (lambda: rq.encode_terms([np.nan], spec=rq.QuantSpec(3), terms=1), NotANumberError, "finite"),
        (lambda: rq.encode_terms([1.0], spec=rq.QuantSpec(3), terms=1).truncated(2), ArgumentError, "1..1"),
        (
            lambda: encode_ladder([1.0], 1.0, spec=rq.QuantSpec(3), terms=40, rest=rq.QuantSpec(3, narrow=True)),
            ArgumentError,
            "exact in float64",
        ),
        *(
            (
                lambda s=scale: encode_ladder([1.0], s, spec=rq.QuantSpec(3), terms=2, rest=rq.QuantSpec(3)),
                ArgumentError,
                text,
            )
            for scale, text in (
                (np.nan, "scale=nan, but should be finite and > 0 .encode_ladder"),
                (-1.0, "scale=-1.0"),
                (0.0, "scale=0.0"),
                ([1.0, 2.0], r"scale of shape \(2,\)"),
                ("a", "scale of type <U1"),
            )
        ),
        (
            lambda: encode_ladder([0.0], 5e-324, spec=rq.QuantSpec(3), terms=2, rest=rq.QuantSpec(3)),
            ArgumentError,
            r"scale / L\^\(T-1\)=0.0",
        ),
        (lambda: absmax_scale(np.ones(3), rq.QuantSpec(1)), ArgumentError, r"qmax=0 \(int1\).*absmax_scale"),
    ],
)
def test_refusals(call: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()  # type: ignore[operator]
