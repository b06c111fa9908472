"""Others' rules: against small definitions of their own, and never better than the certified optimum."""

import numpy as np
import pytest

import refquant as rq
from refquant.errors import ArgumentError
from refquant.solve.heuristics import RULES, compare, rule_scale

SPEC = rq.QuantSpec(4)


def error(x: np.ndarray, scale: float, p: float = 2.0) -> float:
    return float(np.sum(np.abs(x - scale * np.clip(np.rint(x / scale), -8, 7)) ** p))


@pytest.mark.guarantee("No rule of others beats the certified scale", kind="sampled")
@pytest.mark.parametrize("name", RULES)
def test_no_rule_beats_the_optimum(name: str) -> None:
    rng = np.random.default_rng(1)
    x = np.stack([rng.normal(size=40), rng.standard_t(3, 40), np.abs(rng.normal(size=40)), np.zeros(40)])
    spec = rq.QuantSpec(4, granularity=rq.PerChannel(0))
    (row,) = compare(x, spec=spec, solution=rq.solve_scale(x, spec=spec), rules=[name])
    assert row["source"]
    assert 0 - 1e-12 <= row["median_excess"] <= row["greatest_excess"] < np.inf


@pytest.mark.parametrize("name", RULES)
def test_scales_move_with_the_values(name: str) -> None:
    x = np.random.default_rng(2).normal(size=60)
    assert rule_scale(4 * x, name, spec=SPEC) == pytest.approx(4 * rule_scale(x, name, spec=SPEC), rel=0.02)
    assert rule_scale(np.zeros(3), name, spec=SPEC) == 1.0
    assert rule_scale(np.array([3.0]), name, spec=SPEC) > 0


@pytest.mark.parametrize(
    ("name", "candidates", "p"),
    [
        ("mqbench", [1 - 0.01 * i for i in range(80)], 2.0),
        ("brecq", [1 - 0.01 * i for i in range(80)], 2.4),
        ("neural-compressor", [1 - 0.005 * i for i in range(40)], 2.0),
    ],
)
def test_grids_take_the_best_of_their_candidates(name: str, candidates: list[float], p: float) -> None:
    for seed in range(5):
        x = np.random.default_rng(seed).normal(size=50)
        best = min(candidates, key=lambda r: error(x, r * np.abs(x).max() / 7.5, p))
        assert rule_scale(x, name, spec=SPEC) == pytest.approx(best * np.abs(x).max() / 7.5, rel=1e-12)


def test_patience_stops_the_search() -> None:
    """Errors that fall only from the eighth range on: five without gain end it before."""
    for seed in range(40):
        x = np.random.default_rng(seed).normal(size=30)
        shares = [1 - 0.01 * i for i in range(20)]
        errors = [error(x, r * np.abs(x).max() / 7.5, 2.4) for r in shares]
        best, since = 0, 0
        for i in range(1, 20):
            best, since = (i, 0) if errors[i] < errors[best] else (best, since + 1)
            if since == 5:
                break
        expected = shares[best] * np.abs(x).max() / 7.5
        assert rule_scale(x, "llm-compressor", spec=SPEC) == pytest.approx(expected, rel=1e-12)


def test_oscar_minimises_its_surrogate() -> None:
    x = np.random.default_rng(3).standard_t(3, 80)
    a = np.abs(x)

    def surrogate(c: float) -> float:
        return float(len(a) * c * c / (12 * 49) + np.sum(np.maximum(a - c, 0) ** 2))

    c = 7 * rule_scale(x, "oscar", spec=SPEC)
    assert surrogate(c) <= min(surrogate(v) for v in np.linspace(1e-3, a.max(), 5000)) * (1 + 1e-9)


def test_octav_is_at_its_fixed_point() -> None:
    x = np.random.default_rng(4).normal(size=5000)
    c = 7 * rule_scale(x, "octav", spec=SPEC)
    over = np.abs(x) > c
    assert np.abs(x[over]).sum() / (4.0**-4 / 3 * (~over).sum() + over.sum()) == pytest.approx(c, rel=1e-6)


def test_refusals() -> None:
    x = np.array([1.0, 0.3, -0.2])
    solution = rq.solve_scale(x, spec=SPEC)
    with pytest.raises(ArgumentError, match="rounding=floor"):
        compare(x, spec=rq.QuantSpec(4, rounding="floor"), solution=solution)
    with pytest.raises(ArgumentError, match="another objective"):
        compare(x, spec=SPEC, solution=rq.solve_scale(x, spec=SPEC, objective="max"))
