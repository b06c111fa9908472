"""Scale and zero point together: against every zero point in rational arithmetic, and certificates."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refquant as rq
from refquant.arith.rounding import round_exact
from refquant.errors import ArgumentError
from refquant.solve import affine

SPECS = [
    rq.QuantSpec(2),
    rq.QuantSpec(3, signed=False),
    rq.QuantSpec(2, narrow=True),
    rq.QuantSpec(3, rounding="half_away"),
]


def exact_optimum(x: list[int], spec: rq.QuantSpec) -> Fraction:
    """The least squared error over all zero points and all segments between breakpoints, in rational arithmetic."""
    points = {Fraction(abs(v)) / (k + Fraction(1, 2)) for v in x for k in range(2 ** (spec.bits + 1))} - {Fraction(0)}
    middles = [(low + high) / 2 for low, high in pairwise([Fraction(0), *sorted(points)])]
    best = Fraction(sum(v * v for v in x))
    for z in range(spec.qmin, spec.qmax + 1):
        for alpha in middles:
            codes = [min(max(round_exact(v / alpha, "half_even") + z, spec.qmin), spec.qmax) - z for v in x]
            S2 = sum(c * c for c in codes)
            if S2:
                S1 = Fraction(sum(v * c for v, c in zip(x, codes, strict=True)))
                best = min(best, sum(v * v for v in x) - S1 * S1 / S2)
    return best


@pytest.mark.guarantee("Scale and zero point together equal exhaustive search in rational arithmetic", kind="sampled")
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s} {s.rounding}")
@given(st.lists(st.integers(-30, 30), min_size=1, max_size=6))
def test_equals_rational_arithmetic(spec: rq.QuantSpec, x: list[int]) -> None:
    solution = rq.solve_scale(x, spec=spec, zero_point=None)
    truth = exact_optimum(x, spec)
    allowed = Fraction(4 * (len(x) * 2 ** (spec.bits + 1) + 16), 2**53) * sum(v * v for v in x)
    assert abs(Fraction(float(solution.objective)) - truth) <= allowed
    assert Fraction(float(solution.lower_bound)) <= truth
    assert solution.certified


@pytest.mark.parametrize("rounding", ["half_even", "floor", "toward_zero"])
@pytest.mark.parametrize(("objective", "p"), [("mse", 2.0), ("power", 1.0), ("max", 2.0)])
def test_the_pair_is_the_best_of_all_zero_points_and_certified(rounding: str, objective: str, p: float) -> None:
    rng = np.random.default_rng(1)
    x, m = rng.normal(0.7, 1, (3, 40)), rng.uniform(0.5, 2, (3, 40))
    spec = rq.QuantSpec(3, rounding=rounding, granularity=rq.PerChannel(0))
    pair = rq.solve_scale(x, spec=spec, weights=m, objective=objective, p=p, zero_point=None)
    each = [
        rq.solve_scale(x, spec=spec, weights=m, objective=objective, p=p, zero_point=z)
        for z in range(spec.qmin, spec.qmax + 1)
    ]
    best = np.min([s.objective for s in each], axis=0)
    tolerance = {"mse": 1e-12, "power": 1e-6, "max": 1e-11}[objective]  # what the solver promises
    assert np.all(np.abs(pair.objective - best) <= 2 * tolerance * best)
    assert np.all(pair.lower_bound <= best)
    assert pair.certified
    pair.check(x, spec=spec, weights=m, objective=objective, p=p, zero_point=None)
    assert pair.zero_point is not None
    errors = x - rq.dequantize(
        rq.quantize(x, pair.value, pair.zero_point, spec=spec), pair.value, pair.zero_point, spec=spec, dtype=np.float64
    )
    if objective == "mse":
        assert np.allclose(np.sum(m * errors**2, axis=1), pair.objective, rtol=1e-13, atol=0)


def test_a_zero_point_moves_the_grid() -> None:
    """Codes 0..3 less 1 are -1..2: a shifted grid is solved as that grid, and solved only among scales."""
    x = np.random.default_rng(2).normal(size=50)
    shifted = rq.solve_scale(x, spec=rq.QuantSpec(2, signed=False), zero_point=2)
    signed = rq.solve_scale(x, spec=rq.QuantSpec(2))  # -2..1
    assert float(shifted.value) == float(signed.value)
    assert float(shifted.objective) == float(signed.objective)


def test_a_false_claim_about_zero_points_is_refuted() -> None:
    x, spec = np.random.default_rng(3).normal(2, 1, 30), rq.QuantSpec(3, signed=False)
    fixed = rq.solve_scale(x, spec=spec, zero_point=4)
    fixed.check(x, spec=spec, zero_point=4)
    with pytest.raises(rq.CertificateError, match="with objective"):
        fixed.check(x, spec=spec, zero_point=None)
    with pytest.raises(rq.CertificateError, match="zero points"):
        fixed.check(x, spec=spec, zero_point=3)


def test_a_planted_fault_in_the_relaxation_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relaxed grid that leaves out what its zero points reach discards the best pair."""
    x, spec = np.random.default_rng(4).normal(0.5, 1, 60), rq.QuantSpec(3, signed=False)
    honest = rq.solve_scale(x, spec=spec, zero_point=None)
    beside = int(np.asarray(honest.zero_point)) + 1
    monkeypatch.setattr(affine, "_first_guess", lambda X, spec: np.full(len(X), beside))
    assert float(rq.solve_scale(x, spec=spec, zero_point=None).objective) == float(honest.objective)
    monkeypatch.setattr("refquant.solve.affine.ends", lambda spec, low, high: np.full((len(low), 2), 1))
    assert float(rq.solve_scale(x, spec=spec, zero_point=None).objective) > float(honest.objective)


def test_granularity_and_zeros() -> None:
    x = np.zeros((2, 3, 2))
    x[0] += 1.0
    spec = rq.QuantSpec(4, granularity=rq.PerChannel(1))
    solution = rq.solve_scale(x, spec=spec, zero_point=None)
    assert solution.zero_point is not None
    assert solution.zero_point.shape == solution.value.shape == (3,)
    empty = rq.solve_scale(np.zeros((0,)), spec=rq.QuantSpec(4), zero_point=None)
    assert (float(empty.value), int(np.asarray(empty.zero_point))) == (1.0, 0)


@pytest.mark.parametrize("z", [9, 0.5, [1, 2], np.nan])
def test_refusals(z: object) -> None:
    with pytest.raises(ArgumentError, match="zero_point"):
        rq.solve_scale([1.0], spec=rq.QuantSpec(3), zero_point=z)  # type: ignore[arg-type]
