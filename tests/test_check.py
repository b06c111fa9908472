"""Certificates: true ones pass, and every kind of false one is refuted."""

from dataclasses import replace

import numpy as np
import pytest

import refquant as rq

SPECS = [
    rq.QuantSpec(2, narrow=True),
    rq.QuantSpec(3),
    rq.QuantSpec(3, signed=False),
    rq.QuantSpec(4, rounding="half_away"),
    rq.QuantSpec(3, rounding="floor"),
]


@pytest.mark.guarantee(
    "Certificates of scales hold by a checker with another evaluator and another bound", kind="sampled"
)
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s} {s.rounding}")
@pytest.mark.parametrize(("objective", "p"), [("mse", 2.0), ("power", 1.0), ("power", 3.0), ("max", 2.0)])
def test_what_the_solver_says_holds(spec: rq.QuantSpec, objective: str, p: float) -> None:
    rng = np.random.default_rng(0)
    rows = replace(spec, granularity=rq.PerChannel(0))
    for n in (1, 6, 50):
        x, m = rng.normal(size=(4, n)), rng.uniform(0.1, 2, (4, n))
        found = rq.solve_scale(x, spec=rows, objective=objective, weights=m, p=p)
        found.check(x, spec=rows, objective=objective, weights=m, p=p)


@pytest.mark.parametrize(
    "fault",
    [
        {"value": 1.03},
        {"objective": 1.0001},
        {"objective": 0.9999, "lower_bound": 0.9},
        {"lower_bound": 1.2, "objective": 1.0},
    ],
    ids=["value", "objective above", "objective below", "bound above the objective"],
)
def test_tampered_solutions_are_refuted(fault: dict[str, float]) -> None:
    x, spec = np.random.default_rng(1).normal(size=40), rq.QuantSpec(3)
    found = rq.solve_scale(x, spec=spec)
    figures = {name: getattr(found, name) * factor for name, factor in fault.items()}
    with pytest.raises(rq.CertificateError):
        replace(found, **figures).check(x, spec=spec)


@pytest.mark.parametrize("rounding", ["half_even", "floor"])
def test_a_worse_scale_with_a_false_bound_is_refuted(rounding: str) -> None:
    """The objective is honest, but the bound claims that nothing is better."""
    x, spec = np.random.default_rng(2).normal(size=40), rq.QuantSpec(3, rounding=rounding)
    best = rq.solve_scale(x, spec=spec)
    scale = float(best.value) * 1.5
    worse = float(np.sum((x - scale * rq.quantize(x, scale, spec=spec)) ** 2))
    false = replace(best, value=np.array(scale), objective=np.array(worse), lower_bound=np.array(worse))
    with pytest.raises(rq.CertificateError, match=r"scale .* with objective"):
        false.check(x, spec=spec)


def test_other_weights_are_seen() -> None:
    x, m, spec = np.array([0.4, 1.0, -2.2]), np.array([1.0, 2.0, 1.0]), rq.QuantSpec(3)
    found = rq.solve_scale(x, spec=spec, weights=m)
    found.check(x, spec=spec, weights=m)
    with pytest.raises(rq.CertificateError, match="objective"):
        found.check(x, spec=spec)


def test_zeros_need_no_proof() -> None:
    rq.solve_scale(np.zeros(3), spec=rq.QuantSpec(3)).check(np.zeros(3), spec=rq.QuantSpec(3))
