"""Objectives solved by branch and bound: against dense grids, the sweep, and what can be done by hand."""

import numpy as np
import pytest

import refquant as rq
from refquant.solve import branch

SPECS = [
    rq.QuantSpec(2, narrow=True),
    rq.QuantSpec(3),
    rq.QuantSpec(4, signed=False),
    rq.QuantSpec(3, rounding="floor"),
    rq.QuantSpec(3, rounding="ceil"),
    rq.QuantSpec(3, rounding="toward_zero"),
    rq.QuantSpec(3, rounding="away_from_zero"),
    rq.QuantSpec(3, rounding="half_up"),
]


def measured(x: np.ndarray, alpha: float, spec: rq.QuantSpec, m: np.ndarray, p: float) -> float:
    e = np.abs(x - alpha * rq.quantize(x, alpha, spec=spec))
    return float(e[m > 0].max()) if np.isinf(p) else float(np.sum(m * e**p))


@pytest.mark.guarantee(
    "Scales of least |error|^p and least largest error: no dense grid is below their bound", kind="sampled"
)
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s} {s.rounding}")
@pytest.mark.parametrize(("objective", "p"), [("power", 1.0), ("power", 1.5), ("power", 4.0), ("max", np.inf)])
def test_no_dense_grid_is_better(spec: rq.QuantSpec, objective: str, p: float) -> None:
    rng = np.random.default_rng(int(p) if np.isfinite(p) else 9)
    for n in (1, 2, 7, 40):
        x = rng.normal(size=n)
        m = rng.integers(0, 3, n).astype(float)
        m[0] = 1.0
        found = rq.solve_scale(x, spec=spec, objective=objective, weights=m, p=min(p, 4.0))
        assert found.certified
        grid = np.concatenate([np.geomspace(1e-3, 10, 1500), np.abs(x) / 1.0, np.abs(x) / 2.0, np.abs(x) / 1.5])
        values = [measured(x, float(a), spec, m, p) for a in grid if a > 0]
        assert min(values) >= float(found.lower_bound) * (1 - 1e-12)
        assert float(found.objective) == pytest.approx(measured(x, float(found.value), spec, m, p), rel=1e-12)
        assert float(found.objective) <= min(values) * (1 + 2e-6) + 1e-15


@pytest.mark.parametrize("spec", SPECS[:4], ids=str)
def test_the_square_is_the_sweeps(spec: rq.QuantSpec) -> None:
    x = np.random.default_rng(1).normal(size=(5, 30))
    rows = rq.QuantSpec(**{**spec.__dict__, "granularity": rq.PerChannel(0)})
    a, b = rq.solve_scale(x, spec=rows), rq.solve_scale(x, spec=rows, objective="power", p=2.0)
    assert np.all(b.lower_bound <= a.objective)
    assert np.all(np.abs(a.objective - b.objective) <= 2e-6 * a.objective)


def test_the_largest_error_by_hand() -> None:
    """Codes -1, 0, 1: whatever serves 3 to less than 1 is above 2, and leaves 1 at 0; scales from 2 to 4 miss by 1."""
    found = rq.solve_scale([1.0, 3.0], spec=rq.QuantSpec(2, narrow=True), objective="max")
    assert 2 <= float(found.value) <= 4
    assert float(found.objective) == pytest.approx(1.0, rel=1e-11)


def test_weights_leave_elements_out_and_zeros_cost_nothing() -> None:
    spec = rq.QuantSpec(2, narrow=True)
    left_out = rq.solve_scale([1.0, 100.0], spec=spec, objective="max", weights=[1.0, 0.0])
    assert float(left_out.objective) <= 1e-11
    zeros = rq.solve_scale(np.zeros(4), spec=spec, objective="power", p=1.0)
    assert (float(zeros.value), float(zeros.objective), zeros.certified) == (1.0, 0.0, True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s} {s.rounding}")
@pytest.mark.parametrize(("objective", "p"), [("power", 1.0), ("power", 3.0), ("max", 1.0)])
def test_zeros_among_others_change_nothing_and_warn_of_nothing(spec: rq.QuantSpec, objective: str, p: float) -> None:
    """As a pruned weight has them."""
    x = np.array([1.0, 2.3, 0.7])
    without, found = (rq.solve_scale(v, spec=spec, objective=objective, p=p) for v in (x, np.append(x, [0.0, 0.0])))
    assert found.certified
    assert found.objective == pytest.approx(without.objective, rel=2e-6)
    assert found.lower_bound <= without.objective


@pytest.mark.parametrize("objective", ["power", "max"])
def test_groups_are_solved_one_by_one(objective: str) -> None:
    """The last group of each row is shorter."""
    x = np.random.default_rng(3).normal(size=(2, 10))
    found = rq.solve_scale(x, spec=rq.QuantSpec(3, granularity=rq.PerGroup(1, 4)), objective=objective, p=3.0)
    alone = [
        [
            float(rq.solve_scale(row[i : i + 4], spec=rq.QuantSpec(3), objective=objective, p=3.0).objective)
            for i in (0, 4, 8)
        ]
        for row in x
    ]
    assert found.value.shape == (2, 3)
    assert found.objective == pytest.approx(np.array(alone), rel=2e-6)


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that forgets that a code may hit x inside the interval prunes the optimum."""
    x, spec = np.random.default_rng(2).normal(size=30), rq.QuantSpec(3)
    best = float(rq.solve_scale(x, spec=spec, objective="power", p=1.0).objective)
    honest = branch._least_errors
    monkeypatch.setattr(branch, "_least_errors", lambda row, low, high: honest(row, low, high) * 3 + 0.05)
    wrong = rq.solve_scale(x, spec=spec, objective="power", p=1.0)
    assert float(wrong.objective) > best or not wrong.certified or float(wrong.lower_bound) > best


@pytest.mark.parametrize("p", [0.5, 5.0, np.nan])
def test_other_powers_are_refused(p: float) -> None:
    with pytest.raises(rq.ArgumentError, match="from 1 to 4"):
        rq.solve_scale([1.0], spec=rq.QuantSpec(3), objective="power", p=p)
