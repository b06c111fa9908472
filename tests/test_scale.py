"""The certified scale: against exact rationals, dense grids, closed forms; its bound; its two routes."""

import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refquant as rq
from refquant.arith.rounding import round_exact
from refquant.errors import ArgumentError, NotANumberError
from refquant.solve import scale as scale_module
from refquant.solve import search, sweep

DIRECTED = ["floor", "ceil", "toward_zero", "away_from_zero"]


def exact_optimum(x: list[int], m: list[int], spec: rq.QuantSpec) -> Fraction:
    """The least squared error over all scales: every segment between breakpoints, in rational arithmetic."""
    points = {Fraction(abs(v)) / (k + Fraction(1, 2)) for v in x for k in range(2**spec.bits)} - {Fraction(0)}
    edges = [Fraction(0), *sorted(points)]
    best = Fraction(sum(w * v * v for v, w in zip(x, m, strict=True)))
    for low, high in pairwise(edges):
        alpha = (low + high) / 2
        codes = [max(spec.qmin, min(spec.qmax, round_exact(v / alpha, "half_even"))) for v in x]
        S2 = sum(w * c * c for c, w in zip(codes, m, strict=True))
        if S2:
            S1 = Fraction(sum(w * v * c for v, c, w in zip(x, codes, m, strict=True)))
            best = min(best, sum(w * v * v for v, w in zip(x, m, strict=True)) - S1 * S1 / S2)
    return best


SPECS = [
    rq.QuantSpec(2),
    rq.QuantSpec(3),
    rq.QuantSpec(3, narrow=True),
    rq.QuantSpec(3, signed=False),
    rq.QuantSpec(4, rounding="half_away"),
    rq.QuantSpec(1, signed=False),
]


def assert_exactly_optimal(x: list[int], m: list[int], spec: rq.QuantSpec) -> None:
    solution = rq.solve_scale(x, spec=spec, weights=m)
    truth = exact_optimum(x, m, spec)
    # the solver's sums have at most len(x) * codes terms: gamma of that many roundings of the energy
    energy = sum(w * v * v for v, w in zip(x, m, strict=True))
    allowed = Fraction(4 * (len(x) * 2**spec.bits + 16), 2**53) * energy
    assert abs(Fraction(float(solution.objective)) - truth) <= allowed
    assert Fraction(float(solution.lower_bound)) <= truth
    assert solution.certified


problem = st.lists(st.tuples(st.integers(-60, 60), st.integers(0, 5)), min_size=1, max_size=8)


@pytest.mark.guarantee(
    "The certified scale equals exhaustive search in rational arithmetic on small integer rows", kind="sampled"
)
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s} {s.rounding}")
@given(problem)
def test_equals_rational_arithmetic(spec: rq.QuantSpec, pairs: list[tuple[int, int]]) -> None:
    assert_exactly_optimal([v for v, _ in pairs], [w for _, w in pairs], spec)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s} {s.rounding}")
@given(problem)
def test_the_route_for_long_rows_equals_it_too(spec: rq.QuantSpec, pairs: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale_module, "SHORT", 0)
        assert_exactly_optimal([v for v, _ in pairs], [w for _, w in pairs], spec)


@pytest.mark.guarantee("Discarding intervals by convexity finds what listing every breakpoint finds", kind="sampled")
@pytest.mark.parametrize("rounding", list(sweep.OFFSETS))
def test_both_routes_agree(rounding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    for n, bits in ((1, 2), (3, 4), (10, 2), (100, 4), (2000, 3), (300, 8)):
        x, m = rng.standard_t(3, (4, n)), rng.integers(0, 3, (4, n))
        x[0, : n // 2] = np.round(x[0, : n // 2])  # ties, repeated values and zeros
        spec = rq.QuantSpec(bits, rounding=rounding, granularity=rq.PerChannel(0))
        found = []
        for name in ("SHORT", "AT_ONCE"):
            monkeypatch.setattr(scale_module, name, 2**30)
        found.append(rq.solve_scale(x, spec=spec, weights=m))
        for name in ("SHORT", "AT_ONCE"):
            monkeypatch.setattr(scale_module, name, 0)
        found.append(rq.solve_scale(x, spec=spec, weights=m))
        a, b = found
        assert a.certified
        assert b.certified
        energy = np.sum(m * x * x, axis=1)
        assert np.all(np.abs(a.objective - b.objective) <= 1e-12 * energy)  # (n codes + 16) roundings: 4e-13 at most
        assert np.all(np.maximum(a.lower_bound, b.lower_bound) <= np.minimum(a.objective, b.objective))


def test_a_planted_fault_in_the_chord_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound below the truth discards the optimum."""
    honest = search._most_gains
    monkeypatch.setattr(search, "_most_gains", lambda on, steps: 0.98 * honest(on, steps))
    x = np.random.default_rng(3).normal(size=3000)
    wrong = rq.solve_scale(x, spec=rq.QuantSpec(4))
    monkeypatch.setattr(scale_module, "SHORT", 2**30)
    assert float(rq.solve_scale(x, spec=rq.QuantSpec(4)).objective) < float(wrong.objective) * (1 - 1e-6)


@pytest.mark.parametrize("rounding", DIRECTED)
def test_the_shortest_rows(rounding: str) -> None:
    """Fewer segments than candidates: the first reach to infinity and are no answer."""
    rng = np.random.default_rng(4)
    for n in (1, 2, 3):
        solution = rq.solve_scale(
            rng.normal(size=(20, n)), spec=rq.QuantSpec(2, rounding=rounding, granularity=rq.PerChannel(0))
        )
        assert solution.certified
        assert np.all(np.isfinite(solution.value) & (solution.value > 0))


def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sweep.OFFSETS, "half_even", (0.9, 0.9))
    with pytest.raises(AssertionError):
        assert_exactly_optimal([10, 20, 33, -7], [1, 1, 1, 1], rq.QuantSpec(2))


def channels(count: int) -> list[tuple[int, np.ndarray]]:
    rng = np.random.default_rng(20)
    draws: list[Any] = [
        rng.normal,
        rng.laplace,
        lambda size: rng.standard_t(3, size),
        lambda size: rng.uniform(-1, 1, size),
    ]
    sizes = [9, 9, 27, 64, 64, 144, 288, 576, 9, 1152, 27, 4608]
    made = []
    for i in range(count):
        x = draws[i % 4](size=sizes[i % len(sizes)])
        if i % 5 == 4:
            x[0] = 10 * np.abs(x).max()  # one outlier
        made.append(((2, 3, 4, 8)[i // 4 % 4], x))
    return made


def grid_error(x: np.ndarray, alpha: np.ndarray, spec: rq.QuantSpec) -> float:
    """The least squared error over a grid of scales, by rounding float64 quotients."""
    step: Any = {"floor": np.floor, "ceil": np.ceil, "toward_zero": np.trunc}.get(spec.rounding, np.rint)
    best = np.inf
    for part in np.array_split(alpha, max(1, alpha.size * x.size // 2**21)):
        q = x / part[:, None]
        codes = step(q) if spec.rounding != "away_from_zero" else np.copysign(np.ceil(np.abs(q)), q)
        codes = np.clip(codes, spec.qmin, spec.qmax)
        best = min(best, float(((x - part[:, None] * codes) ** 2).sum(axis=1).min()))
    return best


@pytest.mark.guarantee(
    "No scale of a dense grid beats the certified one, 300 channels by 20,000 scales", kind="sampled"
)
@pytest.mark.parametrize("part", range(6))
def test_no_dense_grid_beats_it_on_300_channels(part: int) -> None:
    for bits, x in channels(300)[part::6]:
        spec = rq.QuantSpec(bits)
        solution = rq.solve_scale(x, spec=spec)
        top = 2 * np.abs(x).max()
        grid = grid_error(x, np.linspace(top / 20_000, top, 20_000), spec)
        allowed = (x.size + 16) * 2.0**-52 * float(np.sum(x * x))  # rounding of two sums of squares
        assert float(solution.objective) <= grid + allowed
        assert float(solution.lower_bound) <= grid + allowed
        assert solution.certified


@pytest.mark.parametrize("rounding", DIRECTED)
def test_no_dense_grid_beats_it_for_directed_modes(rounding: str) -> None:
    for bits, x in channels(24):
        spec = rq.QuantSpec(bits, rounding=rounding)
        solution = rq.solve_scale(x, spec=spec)
        top = 2 * np.abs(x).max()
        grid = grid_error(x, np.linspace(top / 4000, top, 4000), spec)
        # the infimum may lie on the open side of a breakpoint, one float away: 2 u of each residual
        allowed = (x.size + 16) * 2.0**-50 * float(np.sum(x * x))
        assert float(solution.objective) <= grid + allowed
        assert float(solution.lower_bound) <= grid + allowed


@given(w=st.lists(st.floats(-10, 10, width=16), min_size=1, max_size=30))
def test_ternary_closed_form(w: list[float]) -> None:
    a = np.sort(np.abs(w))[::-1]
    gain = max(np.cumsum(a)[k] ** 2 / (k + 1) for k in range(len(a)))
    solution = rq.solve_scale(w, spec=rq.QuantSpec(2, narrow=True))
    assert float(solution.objective) == pytest.approx(float(np.sum(a * a) - gain), abs=1e-13 * float(np.sum(a * a)))


def test_granularities_equal_their_rows_and_scales_move_with_powers_of_two() -> None:
    x = np.random.default_rng(1).normal(size=(3, 7)).astype(np.float32)
    whole = rq.solve_scale(x, spec=rq.QuantSpec(3, granularity=rq.PerChannel(0)))
    groups = rq.solve_scale(x, spec=rq.QuantSpec(3, granularity=rq.PerGroup(1, 3)))
    for i in range(3):
        assert float(whole.value[i]) == float(rq.solve_scale(x[i], spec=rq.QuantSpec(3)).value)
        for j in range(3):
            assert float(groups.value[i, j]) == float(
                rq.solve_scale(x[i, 3 * j : 3 * j + 3], spec=rq.QuantSpec(3)).value
            )
    times = rq.solve_scale(x * np.float32(2**20), spec=rq.QuantSpec(3, granularity=rq.PerChannel(0)))
    assert np.array_equal(times.value, whole.value * 2**20)
    weighted = rq.solve_scale([1.0, 2.0, 50.0], weights=[1, 1, 0], spec=rq.QuantSpec(3))
    assert float(weighted.value) == float(rq.solve_scale([1.0, 2.0], spec=rq.QuantSpec(3)).value)


def test_long_rows_agree_with_short_ones_and_stop_early_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(2).standard_t(4, 20_000)
    long, loose = (rq.solve_scale(x, spec=rq.QuantSpec(6), tol=tol) for tol in (0.0, 1e-2))
    monkeypatch.setattr(scale_module, "SHORT", 2**30)
    short = rq.solve_scale(x, spec=rq.QuantSpec(6))
    assert float(long.objective) == pytest.approx(float(short.objective), abs=float(short.gap + long.gap))
    assert float(loose.lower_bound) <= float(short.objective) <= float(loose.objective)
    assert float(loose.objective) <= 1.01 * float(short.objective)


def test_a_million_weights_at_8_bits_stay_below_a_gigabyte() -> None:
    program = (
        "import resource, numpy as np, refquant as rq\n"
        "x = np.random.default_rng(0).normal(size=10**6).astype(np.float32)\n"
        "solution = rq.solve_scale(x, spec=rq.QuantSpec(8))\n"
        "assert solution.certified and solution.gap < 1e-4 * solution.objective\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**20  # kilobytes


def test_zeros_and_nothing() -> None:
    for x in ([], [0.0, -0.0]):
        solution = rq.solve_scale(x, spec=rq.QuantSpec(4))
        assert (float(solution.value), float(solution.objective), solution.certified) == (1.0, 0.0, True)


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"x": [np.nan]}, NotANumberError, "NaN"),
        ({"x": [np.inf]}, NotANumberError, "infinity"),
        ({"weights": [-1.0]}, ArgumentError, "weights"),
        ({"weights": [1.0, 2.0]}, ArgumentError, "shape"),
        ({"objective": "kl"}, ArgumentError, "objective='kl'"),
        ({"method": "grid"}, ArgumentError, "method='grid'"),
        ({"tol": -1.0}, ArgumentError, "tol"),
        ({"spec": rq.QuantSpec(8, quotient="float32")}, ArgumentError, "quotient=float32"),
        ({"spec": rq.QuantSpec(8, rounding="stochastic")}, ArgumentError, "stochastic"),
        ({"spec": rq.QuantSpec(32)}, ArgumentError, "bits=32"),
    ],
)
def test_refusals(keywords: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        rq.solve_scale(**{"x": [1.0], "spec": rq.QuantSpec(8), **keywords})  # type: ignore[arg-type]
