"""Sums of terms against exact oracles: every cell, brute force, best codebooks; and the counts of terms."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refquant as rq
from refquant.errors import ArgumentError, NotANumberError
from refquant.quant.multiterm import encode_ladder, rest_of
from refquant.solve import sums
from refquant.solve.counts import digits_for_codes, fewest_terms, ladder_terms, slices_for_values
from refquant.solve.sums import best_sum, codebook_bound, two_terms_by_vertices

TERNARY, THREE = rq.QuantSpec(2, narrow=True), rq.QuantSpec(3, narrow=True)


def brute_force(x: np.ndarray, specs: tuple[rq.QuantSpec, ...]) -> float:
    """The least error over all code vectors: the best scales >= 0 for each, by least squares on every set of terms."""
    grid = sums.all_codes(specs)
    best = float(np.sum(x * x))
    for codes in itertools.product(range(len(grid)), repeat=len(x)):
        C = grid[list(codes)]
        for some in ([0], [1], [0, 1]):
            alpha = np.linalg.lstsq(C[:, some], x, rcond=None)[0]
            if np.all(alpha >= 0):
                best = min(best, float(np.sum((x - C[:, some] @ alpha) ** 2)))
    return best


@pytest.mark.guarantee(
    "The best sum of two terms: branch and bound, every cell and all code vectors agree", kind="sampled", clauses="M1"
)
@pytest.mark.parametrize("specs", [(TERNARY,) * 2, (rq.QuantSpec(2), TERNARY), (rq.QuantSpec(1, signed=False),) * 2])
def test_three_oracles_agree(specs: tuple[rq.QuantSpec, rq.QuantSpec]) -> None:
    rng = np.random.default_rng(1)
    for n in (2, 3):
        x = rng.normal(size=n)
        truth = brute_force(x, specs)
        solved, cells = best_sum(x, specs=specs, tol=1e-6), two_terms_by_vertices(x, specs)
        rounding = 1e-11 * float(np.sum(x * x))  # vertices move values by 1e-12 of themselves
        assert abs(float(cells.objective) - truth) <= rounding
        assert float(solved.lower_bound) <= truth + rounding
        assert truth - rounding <= float(solved.objective) <= truth * (1 + 1e-6) + rounding
        assert solved.certified


@pytest.mark.parametrize(("spec", "n"), [(TERNARY, 8), (rq.QuantSpec(2), 3)], ids=["ternary", "2 bits"])
def test_branch_and_bound_equals_every_cell(spec: rq.QuantSpec, n: int) -> None:
    x = np.random.default_rng(2).normal(size=n)
    solved, cells = best_sum(x, specs=(spec, spec), tol=1e-6), two_terms_by_vertices(x, (spec, spec))
    assert float(solved.objective) == pytest.approx(float(cells.objective), rel=2e-6, abs=1e-11)


def test_one_term_is_the_sweep() -> None:
    rng = np.random.default_rng(3)
    for spec in (TERNARY, rq.QuantSpec(3), rq.QuantSpec(3, signed=False)):
        x, m = rng.normal(size=60), rng.uniform(0.1, 2, 60)
        one, swept = best_sum(x, specs=(spec,), weights=m, tol=1e-6), rq.solve_scale(x, spec=spec, weights=m)
        assert float(one.objective) == pytest.approx(float(swept.objective), rel=2e-6)
        assert float(one.lower_bound) <= float(swept.objective)


def test_a_planted_fault_in_the_bound_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that is too high discards the best; without improvement by turns, branch and bound works alone."""
    monkeypatch.setattr(sums, "ROUNDS", 1)
    honest = sums._bounds
    rows = [np.random.default_rng(seed).normal(size=40) for seed in range(5)]
    truth = [float(best_sum(x, specs=(TERNARY, TERNARY), tol=1e-6).objective) for x in rows]
    monkeypatch.setattr(sums, "_bounds", lambda *args: honest(*args) + 0.5)
    wrong = [float(best_sum(x, specs=(TERNARY, TERNARY), tol=1e-6).objective) for x in rows]
    assert any(w > t * (1 + 1e-6) for w, t in zip(wrong, truth, strict=True))


@pytest.mark.guarantee("Joint sums are near the certified best: two ternary terms", kind="sampled", clauses="M1")
@pytest.mark.parametrize("n", [9, 64, 300])
def test_joint_against_the_certified_best(n: int) -> None:
    """The best sum cannot be worse than any; how near the joint one comes is the docs' figure, here bounded loosely."""
    ratios = []
    for seed in range(6):
        x = np.random.default_rng(seed).normal(size=n)
        joint = rq.encode_terms(x, spec=TERNARY, terms=2)
        error = float(np.sum((x - joint.decode(np.float64)) ** 2))
        best = best_sum(x, specs=(TERNARY, TERNARY), start=joint.scales)
        assert best.certified
        assert float(best.lower_bound) <= error * (1 + 1e-12)
        assert float(best.objective) <= error * (1 + 1e-12)
        ratios.append(error / float(best.objective))
    assert np.median(ratios) < 1.01  # greedy: 1.5 to 1.8


@pytest.mark.guarantee("More joint terms never err more", kind="sampled", clauses="M1")
@given(seed=st.integers(0, 2**32), bits=st.integers(2, 4), n=st.integers(1, 40))
def test_more_terms_never_err_more(seed: int, bits: int, n: int) -> None:
    x = np.random.default_rng(seed).standard_t(3, n).astype(np.float32)
    errors = [
        float(np.sum((x - rq.encode_terms(x, spec=rq.QuantSpec(bits), terms=t).decode(np.float64)) ** 2))
        for t in (1, 2, 3)
    ]
    assert errors == sorted(errors, reverse=True)


@given(seed=st.integers(0, 2**32), n=st.integers(1, 7), count=st.integers(1, 4))
def test_the_best_codebook_equals_brute_force(seed: int, n: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    x, m = rng.integers(-9, 10, n).astype(float), rng.integers(1, 4, n).astype(float)
    best = np.inf
    for groups in itertools.product(range(min(count, n)), repeat=n):
        g = np.array(groups)
        parts = [g == k for k in range(count) if np.any(g == k)]
        best = min(best, sum(float(np.sum(m[p] * (x[p] - np.average(x[p], weights=m[p])) ** 2)) for p in parts))
    bound = codebook_bound(x, count, weights=m)
    assert bound <= best + 1e-12 * float(np.sum(m * x * x))
    assert bound >= best - 1e-9 * max(1.0, float(np.sum(m * x * x)))


def test_a_codebook_is_below_every_sum() -> None:
    x = np.random.default_rng(6).normal(size=80)
    assert codebook_bound(x, 9) <= float(best_sum(x, specs=(TERNARY, TERNARY)).lower_bound) * (1 + 1e-9)


def test_ladder_with_its_own_first_scale_is_the_best_of_ladders() -> None:
    x = np.random.default_rng(7).normal(size=100).astype(np.float32)
    for spec in (TERNARY, rq.QuantSpec(2, rounding="floor")):
        rest = rest_of(spec)
        mine = rq.encode_terms(x, spec=spec, terms=3, method="ladder")
        error = float(np.sum((x - mine.decode(np.float64)) ** 2))
        for scale in np.geomspace(0.3, 3, 200):
            other = encode_ladder(x, float(np.float32(scale)), spec=spec, terms=3, rest=rest)
            assert error <= float(np.sum((x - other.decode(np.float64)) ** 2)) * (1 + 1e-12)


# ---- counts ---------------------------------------------------------------------------------------------------


@given(eps=st.floats(1e-6, 1), scale=st.floats(0.01, 10), bits=st.integers(2, 4), floor=st.booleans())
def test_ladder_terms_are_enough_and_no_fewer(eps: float, scale: float, bits: int, floor: bool) -> None:
    spec = rq.QuantSpec(bits, rounding="floor") if floor else rq.QuantSpec(bits, narrow=True)
    rest = rest_of(spec)
    T, L = ladder_terms(eps, scale, spec=spec), rest.qmax - rest.qmin + 1
    radius = [Fraction(scale) / (1 if floor else 2) / L ** (t - 1) for t in range(1, T + 1)]
    assert radius[-1] <= Fraction(eps)
    assert all(r > Fraction(eps) for r in radius[:-1])


@pytest.mark.guarantee("Bit slices hold every value of a float tensor", kind="sampled", clauses="M1")
@given(seed=st.integers(0, 2**32), bits=st.integers(1, 5))
def test_slices_hold_every_value_and_one_less_does_not(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-40, 41, 12) * 2.0 ** int(rng.integers(-9, 5))
    T = int(slices_for_values(x, bits=bits).value)
    spec = rq.QuantSpec(bits, rounding="floor")
    k = min((int(np.frexp(v)[1]) - 60 for v in x if v), default=0)
    step = max((2.0**e for e in range(k, 60) if np.all(x == np.round(x / 2.0**e) * 2.0**e)), default=1.0)

    def held(terms: int) -> bool:
        ladder = encode_ladder(x, step * 2.0 ** (bits * (terms - 1)), spec=spec, terms=terms, rest=rest_of(spec))
        return np.array_equal(ladder.decode(np.float64), x)

    assert held(T)
    assert T == 1 or not held(T - 1)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(
    "grid", [rq.QuantSpec(8), rq.QuantSpec(8, signed=False), rq.QuantSpec(4), rq.QuantSpec(6)], ids=str
)
def test_digits_hold_every_code_and_one_less_does_not(grid: rq.QuantSpec, bits: int) -> None:
    codes = np.arange(grid.qmin, grid.qmax + 1) - (0 if grid.signed else 1 << (grid.bits - 1))
    T = int(digits_for_codes(grid, bits=bits, signed=True).value)

    def reached(terms: int) -> set[int]:
        digit = range(-(1 << (bits - 1)), 1 << (bits - 1))
        return {sum(d << (bits * i) for i, d in enumerate(ds)) for ds in itertools.product(digit, repeat=terms)}

    assert set(codes.tolist()) <= reached(T)
    assert T == 1 or not set(codes.tolist()) <= reached(T - 1)


def test_counts_that_are_proved() -> None:
    signed, unsigned = (digits_for_codes(rq.QuantSpec(8), bits=4, signed=s) for s in (True, False))
    assert (int(signed.value), signed.certified, int(unsigned.value), unsigned.certified) == (3, True, 2, True)
    x = np.random.default_rng(8).normal(size=60)
    three = fewest_terms(x, 0.9 * float(best_sum(x, specs=(TERNARY, TERNARY)).lower_bound), spec=TERNARY)
    assert (int(three.value), three.certified) == (3, True)
    assert int(slices_for_values([], bits=4).value) == int(slices_for_values([0.0], bits=4).value) == 1
    assert int(slices_for_values(np.array([5e-324, 1.7e308]), bits=8).value) == 263  # 2,099 bits


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: ladder_terms(0.0, 1.0, spec=TERNARY), ArgumentError),
        (lambda: ladder_terms(0.1, 1.0, spec=rq.QuantSpec(2, rounding="ceil")), ArgumentError),
        (lambda: slices_for_values([np.inf], bits=2), NotANumberError),
        (lambda: fewest_terms([1.0], -1.0, spec=TERNARY), ArgumentError),
        (lambda: best_sum([np.nan], specs=(TERNARY,)), NotANumberError),
        (lambda: best_sum([1.0], specs=(TERNARY,), weights=[-1.0]), ArgumentError),
        (lambda: best_sum([1.0], specs=(rq.QuantSpec(8),) * 2), ArgumentError),
    ],
)
def test_refusals(call: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        call()  # type: ignore[operator]
