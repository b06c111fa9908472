"""Distortion of densities: the published table, integrals cell by cell, and samples."""

import math

import numpy as np
import pytest
from scipy import stats

import refquant as rq
from refquant.solve.density import (
    aciq_scale,
    asymptotic_distortion,
    distortion,
    octav_scale,
    optimal_scale,
    overload_distortion,
)

NORMAL = stats.norm()
SYMMETRIC = {  # levels: step and distortion for N(0, 1); Max 1960 has the first of them to fewer digits
    2: (1.595769, 0.363380),
    3: (1.224006, 0.190174),
    4: (0.995687, 0.118846),
    7: (0.650770, 0.046860),
    8: (0.586019, 0.037440),
    15: (0.353411, 0.012889),
    16: (0.335201, 0.011543),
    32: (0.188139, 0.003495),
    64: (0.104063, 0.001040),
    128: (0.056868, 0.000304),
    256: (0.030762, 0.0000877),
}
TWOS_COMPLEMENT = {4: (1.048385, 0.149431), 8: (0.601824, None), 16: (0.338608, None)}


def symmetric(levels: int) -> tuple[rq.QuantSpec, float]:
    """Odd: narrow, with 0; even: mid-rise, half a step beside it."""
    if levels % 2:
        return rq.QuantSpec(int(math.log2(levels + 1)), narrow=True), 0.0
    return rq.QuantSpec(int(math.log2(levels)), zero_point_order="before"), -0.5


@pytest.mark.guarantee("Optimal steps of the normal law for 2 to 256 levels equal the known table", kind="checked")
@pytest.mark.parametrize("levels", SYMMETRIC)
def test_the_table_of_symmetric_grids(levels: int) -> None:
    spec, z = symmetric(levels)
    solution = optimal_scale(NORMAL, spec=spec, zero_point=z, tol=1e-4)
    alpha, D = SYMMETRIC[levels]
    assert solution.certified
    assert abs(float(solution.value) - alpha) <= 0.6e-6
    assert abs(float(solution.objective) - D) <= (0.6e-6 if levels < 256 else 0.6e-7)


@pytest.mark.parametrize("levels", TWOS_COMPLEMENT)
def test_the_table_of_twos_complement(levels: int) -> None:
    solution = optimal_scale(NORMAL, spec=rq.QuantSpec(int(math.log2(levels))), tol=1e-4)
    alpha, D = TWOS_COMPLEMENT[levels]
    assert abs(float(solution.value) - alpha) <= 0.6e-6
    assert D is None or abs(float(solution.objective) - D) <= 0.6e-6


LAWS = {
    "normal": stats.norm(0.3, 1.2),
    "Laplace": stats.laplace(-0.2, 0.7),
    "uniform": stats.uniform(-0.8, 2.0),
    "half-normal": stats.halfnorm(0.1, 0.9),
    "Student": stats.t(5),
    "beta": stats.beta(2, 5),
}
GRIDS = {
    "narrow": (rq.QuantSpec(3, narrow=True), 0.0),
    "full": (rq.QuantSpec(3), 0.0),
    "unsigned": (rq.QuantSpec(3, signed=False), 0.0),
    "zero point": (rq.QuantSpec(3, signed=False), 3.0),
    "mid-rise": (rq.QuantSpec(3, zero_point_order="before"), -0.5),
    "floor": (rq.QuantSpec(3, rounding="floor"), 0.0),
    "ceil": (rq.QuantSpec(3, rounding="ceil"), 1.0),
    "toward zero": (rq.QuantSpec(3, rounding="toward_zero"), 0.0),
    "away from zero": (rq.QuantSpec(3, rounding="away_from_zero"), -1.0),
}


@pytest.mark.guarantee(
    "Distortions of six laws on nine grids equal cell-by-cell integrals of the quantizer", kind="sampled"
)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("grid", GRIDS)
def test_distortion_is_the_integral_of_the_quantizers_error(law: str, grid: str) -> None:
    """Breaks of the quantizer lie at multiples of alpha / 2, that of Laplace at its median; all else is smooth."""
    p, (spec, z), alpha = LAWS[law], GRIDS[grid], 0.37
    far = np.geomspace(15, 20_000, 60)  # the law of the heaviest tail, t with 5 degrees, leaves 1e-12 beyond
    breaks = np.concatenate([-far, np.arange(-80, 81) * alpha / 2, far, [p.median()]])
    breaks = np.unique(np.append(np.clip(breaks, *p.support()), np.clip(p.support(), -20_000, 20_000)))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    middle, half = (breaks[1:] + breaks[:-1]) / 2, np.diff(breaks) / 2
    v = middle[:, None] + half[:, None] * nodes
    errors = (v - rq.fake_quantize(v, alpha, z, spec=spec)) ** 2 * p.pdf(v)
    total = float(half @ errors @ weights)
    assert abs(total - float(distortion(p, alpha, spec=spec, zero_point=z))) <= 2e-9 * max(1.0, total)


def test_no_scale_of_a_dense_grid_is_better() -> None:
    for name, law in LAWS.items():
        quick = name not in ("Student", "beta")  # these go by quadrature
        for spec, z in [GRIDS[grid] for grid in ("narrow", "full", "floor", "zero point")][: 4 if quick else 1]:
            solution = optimal_scale(law, spec=spec, zero_point=z, tol=1e-4)
            scan = np.geomspace(1e-3, 20, 150 if quick else 40)
            values = distortion(law, scan, spec=spec, zero_point=z)
            assert float(values.min()) >= float(solution.objective) * (1 - 1e-12)
            assert float(values.min()) >= float(solution.lower_bound)
            assert solution.certified == (quick and spec.rounding == "half_even"), (name, spec)


def test_floor_costs_a_bit() -> None:
    """At many levels D is alpha^2 / 3 for floor and alpha^2 / 12 for nearest: 6.02 dB, up to the ends of the range."""
    law = stats.uniform(-1, 2)
    alpha = 2.0 / 256
    nearest, floor = (float(distortion(law, alpha, spec=rq.QuantSpec(8, rounding=r))) for r in ("half_even", "floor"))
    assert abs(floor / nearest - 4) < 0.1


def test_the_sample_optimum_converges() -> None:
    """At the law's own best scale the sample error is a mean of terms in [0, B]: by Hoeffding above D by at most
    B sqrt(ln(1 / d) / 2 n) but with probability d = 1e-9, and the sample's best is not above that.
    """
    law, spec = stats.uniform(-1, 2), rq.QuantSpec(3, narrow=True)
    best = optimal_scale(law, spec=spec)
    alpha = float(best.value)
    B = max(alpha / 2, 1 - 3 * alpha) ** 2
    distances = []
    for n in (300, 30_000):
        x = np.random.default_rng(1).uniform(-1, 1, n)
        found = rq.solve_scale(x, spec=spec)
        assert float(found.objective) / n <= float(best.objective) + B * math.sqrt(math.log(1e9) / (2 * n))
        distances.append(abs(float(found.value) - alpha))
    assert distances[1] < distances[0] / 3


def test_published_clips_of_aciq() -> None:
    clips = [1.24, 1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92]
    for bits, clip in enumerate(clips, 1):
        ours = aciq_scale(NORMAL, bits=bits) * 2 ** (bits - 1)
        assert abs(ours - clip) <= 0.01  # printed with two digits, rounded down here and there
    for bits, clip in ((2, 2.83), (3, 3.89), (4, 5.03), (8, 9.89)):
        assert abs(aciq_scale(stats.laplace(), bits=bits) * 2 ** (bits - 1) - clip) <= 0.02


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_approximations_are_never_better_than_the_optimum(bits: int) -> None:
    spec = rq.QuantSpec(bits, zero_point_order="before")
    best = float(optimal_scale(NORMAL, spec=spec, zero_point=-0.5, tol=1e-3).objective)
    excess = {}
    for name, scale in (("aciq", aciq_scale(NORMAL, bits=bits)), ("octav", octav_scale(NORMAL, bits=bits))):
        excess[name] = float(distortion(NORMAL, scale, spec=spec, zero_point=-0.5)) / best - 1
        assert 0 <= excess[name] < 0.2
    assert excess["octav"] <= excess["aciq"] + 1e-9  # it leaves out the clipped part's granular error


def test_the_asymptotic_form_tends_to_the_distortion() -> None:
    for bits, within in ((3, 0.2), (6, 0.02), (8, 0.005)):
        spec = rq.QuantSpec(bits, narrow=True)
        alpha = 4.0 / spec.qmax
        exact = float(distortion(NORMAL, alpha, spec=spec))
        assert abs(asymptotic_distortion(NORMAL, alpha, spec=spec) / exact - 1) < within
    assert overload_distortion(stats.uniform(-1, 2), 1.0) == 0.0


@pytest.mark.parametrize(
    ("law", "keywords", "text"),
    [
        (stats.norm, {}, "frozen"),
        (stats.cauchy(), {}, "variance"),
        (stats.poisson(3), {}, "variance|frozen"),
        (NORMAL, {"alpha": 0.0}, "alpha"),
        (NORMAL, {"zero_point": 0.5}, "before"),
        (NORMAL, {"spec": rq.QuantSpec(8, overflow="wrap")}, "saturate"),
    ],
)
def test_refusals(law: object, keywords: dict[str, object], text: str) -> None:
    arguments: dict[str, object] = {"alpha": 1.0, "spec": rq.QuantSpec(8), **keywords}
    with pytest.raises(rq.ArgumentError, match=text):
        distortion(law, **arguments)  # type: ignore[arg-type]
