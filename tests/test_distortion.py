"""Distortion of one tensor: closed forms against samples for all profiles, against exact integrals, against tensors."""

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import refquant as rq
from refquant import ArgumentError, QuantSpec
from refquant.arith.rounding import MODES
from refquant.quant.profiles import PROFILES
from refquant.solve.density import asymptotic_distortion, levels_of
from refquant.theory import distortion as module
from refquant.theory.distortion import (
    FITS,
    MU,
    Distortion,
    distortion_of_cells,
    distortion_of_law,
    fitted,
    measured_distortion,
)

LAWS = {"normal": stats.norm(0.1, 1.0), "laplace": stats.laplace(), "half-normal": stats.halfnorm(0, 1.5)}
NORMAL = 5.0  # standard errors: a mean of many lies beyond once in two millions; some 300 are compared


def compared(law: Any, scale: float, zero_point: float, spec: QuantSpec, seed: int, n: int = 60_000) -> float:
    """How many standard errors a sample's bias and mse lie from the closed forms: the greater of both."""
    x = law.rvs(n, random_state=np.random.default_rng(seed))
    closed = distortion_of_law(law, scale, spec=spec, zero_point=zero_point)
    d = rq.fake_quantize(x, scale, zero_point, spec=spec) - x
    errors = [(np.std(v, ddof=1) / n**0.5, v.mean() - e) for v, e in ((d, closed.bias), (d * d, closed.mse))]
    found = measured_distortion(x, scale, zero_point, spec=spec)
    assert (found.bias, found.mse) == (d.mean(), np.mean(d * d))
    return float(max(abs(off) / error for error, off in errors))


# ---- closed forms against measured ----------------------------------------------------------------------------


@pytest.mark.guarantee(
    "For every profile, bias and mean squared error in closed form are those of samples, clipping included",
    kind="sampled",
)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", PROFILES)
def test_every_profile(name: str, law: str) -> None:
    """The float32 quotients of most profiles move one value in a million over a threshold: no sample shows it."""
    row = PROFILES[name]
    for i, bits in enumerate(b for b in (2, 4, 8) if not row.bits or b in row.bits):
        for signed in (True, False):
            dtype = "float32" if "float32" in row.dtypes or not row.dtypes else row.dtypes[0]
            spec = rq.profile(name, bits=bits, signed=signed, dtype=dtype)
            steps = 2**bits - 1
            middle = -0.5 if signed else steps / 2
            zero_point = (
                middle if name.startswith("lapq") else round(middle + 0.5) if law != "half-normal" else spec.qmin
            )
            scale = float(np.float32((3.0 if law == "half-normal" else 4.5) / steps))  # some values are clipped
            assert compared(LAWS[law], scale, zero_point, spec, seed=i) <= NORMAL, (bits, signed)


def test_another_rounding_is_noticed() -> None:
    """Floor taken for nearest, and the reverse; a threshold that is off by a tenth of a step."""
    law, floor, nearest = LAWS["normal"], rq.profile("seed-floor@1", bits=4), rq.profile("seed-nearest@1", bits=4)
    x = law.rvs(60_000, random_state=np.random.default_rng(0))
    for meant, done in ((floor, nearest), (nearest, floor)):
        closed, found = distortion_of_law(law, 0.4, spec=meant), measured_distortion(x, 0.4, spec=done)
        assert abs(found.bias - closed.bias) > 0.1
        assert abs(found.mse - closed.mse) > 0.02
    shifted = measured_distortion(x + 0.04, 0.4, spec=nearest)
    assert abs(shifted.mse - distortion_of_law(law, 0.4, spec=nearest).mse) < 0.01  # mse hardly sees it
    assert compared(law, 0.4, 0, nearest, 0) <= NORMAL


def by_integration(
    low: Fraction, high: Fraction, alpha: Fraction, z: int, spec: QuantSpec
) -> tuple[Fraction, Fraction]:
    """E d and E d^2 of x uniform on [low, high]: codes are constant between multiples of alpha / 2."""
    first, last = (low / alpha * 2).__floor__(), (high / alpha * 2).__ceil__()
    edges = sorted({low, high, *(alpha * k / 2 for k in range(first, last + 1) if low < alpha * k / 2 < high)})
    bias = mse = Fraction(0)
    for a, b in pairwise(edges):
        level = alpha * (rq.quantize_exact((a + b) / 2, alpha, z, spec) - z)
        bias += level * (b - a) - (b * b - a * a) / 2
        mse += ((b - level) ** 3 - (a - level) ** 3) / 3
    return bias / (high - low), mse / (high - low)


@pytest.mark.guarantee(
    "Bias and mean squared error of a uniform law are the exact integrals, for every rounding, width and zero point",
    kind="sampled",
)
@settings(max_examples=150)
@given(
    low=st.integers(-40, 20),
    width=st.integers(1, 60),
    alpha=st.integers(1, 24),
    z=st.integers(-3, 3),
    bits=st.integers(1, 5),
    signed=st.booleans(),
    rounding=st.sampled_from(sorted(MODES)),
)
def test_uniform_laws(low: int, width: int, alpha: int, z: int, bits: int, signed: bool, rounding: str) -> None:
    """Everything in eighths: floats hold it exactly, so only the sums of the closed form round."""
    spec = QuantSpec(bits, signed, rounding=rounding)
    z = max(spec.qmin, min(spec.qmax, z))
    a, b, s = Fraction(low, 8), Fraction(low + width, 8), Fraction(alpha, 8)
    bias, mse = by_integration(a, b, s, z, spec)
    found = distortion_of_law(stats.uniform(float(a), float(b - a)), float(s), spec=spec, zero_point=z)
    largest = max(abs(float(a)), abs(float(b)), float(s) * 2 ** (bits + 3))
    allowed = 2**bits * 64 * 2.0**-53 * largest
    assert abs(found.bias - float(bias)) <= allowed
    assert abs(found.mse - float(mse)) <= allowed * largest


# ---- cells ----------------------------------------------------------------------------------------------------


@pytest.mark.guarantee(
    "Over whole cells the error is alpha^2 / 12 for rounding to nearest, alpha^2 / 3 for floor: exactly", kind="checked"
)
@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("sign", [1, -1, 0])
def test_cells(rounding: str, sign: int) -> None:
    spec, alpha = QuantSpec(8, rounding=rounding), Fraction(3, 8)
    low, high = {1: (0, 20), -1: (-20, 0), 0: (-20, 20)}[sign]
    bias, mse = by_integration(low * alpha, high * alpha, alpha, 0, spec)
    if rounding.startswith("half_"):  # cells of nearest are not those of floor; 20 of them all the same
        assert bias == 0
    found = distortion_of_cells(float(alpha), rounding=rounding, sign=sign)
    assert abs(found.bias - float(bias)) <= 1e-15
    assert abs(found.mse - float(mse)) <= 1e-15
    assert set(MU) == set(MODES)


def test_high_resolution_is_the_limit_of_the_law() -> None:
    """From 3 bits' to 8 bits' steps, without clipping, the law's distortion tends to that of cells."""
    for rounding in ("half_even", "floor"):
        off = []
        for alpha in (3.0, 1.5, 0.75):
            law = distortion_of_law(stats.norm(), alpha, spec=QuantSpec(8, rounding=rounding))
            cells = distortion_of_cells(alpha, rounding=rounding)
            off.append(max(abs(law.mse / cells.mse - 1), abs(law.bias - cells.bias) / alpha))
        assert off[0] > 0.02
        assert off[0] > 10 * off[1]
        assert off[2] < 1e-10
    nearest = QuantSpec(4, narrow=True)
    for alpha, least, most in ((0.5, 0.0, 0.01), (0.3, 0.1, 0.3)):  # the textbook's split, and where it departs
        law = distortion_of_law(stats.norm(), alpha, spec=nearest)
        off_by = abs(asymptotic_distortion(stats.norm(), alpha, spec=nearest) / law.mse - 1)
        assert least <= off_by < most


# ---- what floor costs -----------------------------------------------------------------------------------------


@pytest.mark.guarantee(
    "Floor costs 6.02 dB against nearest; a constant recovers all of it where no value lies on the grid, and leaves "
    "(1 - p) alpha^2 / 12 + p (1 - p) alpha^2 / 4 where a share p does",
    kind="checked",
)
def test_what_the_bias_of_floor_costs_and_what_a_constant_leaves() -> None:
    floor, nearest = (distortion_of_cells(1.0, rounding=r) for r in ("floor", "half_even"))
    assert abs(10 * np.log10(floor.mse / nearest.mse) - 20 * np.log10(2)) <= 1e-12
    assert abs(floor.bias_cost_db - 20 * np.log10(2)) <= 1e-12
    assert abs(floor.variance - nearest.variance) <= 1e-16
    rng = np.random.default_rng(1)
    for p in (0.0, 1 / 3, 0.5, 0.9):
        kept = floor.beside(p)
        assert abs(kept.variance - ((1 - p) / 12 + p * (1 - p) / 4)) <= 1e-15
        x = np.where(np.arange(300_000) < p * 300_000, 0.0, rng.uniform(0, 200, 300_000))
        found = measured_distortion(x, 1.0, spec=QuantSpec(8, signed=False, rounding="floor"))
        assert abs(found.bias - kept.bias) <= 0.005
        assert abs(found.variance - kept.variance) <= 0.002
        assert kept.variance >= nearest.beside(p).mse - 1e-16
    worst = max((floor.beside(p / 300).variance, p / 300) for p in range(301))
    assert abs(worst[0] - 4 / 3 / 12) <= 1e-12
    assert abs(worst[1] - 1 / 3) <= 1e-12


def test_no_error_and_all_bias() -> None:
    assert Distortion(0.0, 0.0).bias_cost_db == 0
    assert Distortion(0.5, 0.25).bias_cost_db == np.inf
    assert measured_distortion(np.zeros(0), 1.0, spec=QuantSpec(4)) == Distortion(0.0, 0.0)


# ---- tensors of networks --------------------------------------------------------------------------------------


@pytest.mark.guarantee(
    "On tensors of the zoo that are not clipped, values on the grid apart, the error at 8 bits is that of cells within "
    "0.7 dB, for floor and for nearest",
    kind="checked",
)
@pytest.mark.parametrize("profile", ["seed-floor@1", "seed-nearest@1"])
def test_tensors_of_the_zoo(profile: str) -> None:
    """A model: fitted laws do as well where their tails end with the tensor's, and else count clipping that is none."""
    graph, x = rq.load_network("cnn"), rq.load_data("fashion-mnist").test.x[:4]
    _, trace = rq.forward(graph, x, trace=True)
    names = ("conv2", "gemm1", "gemm2")
    tensors = [graph.arrays[graph.node(name).params["weight"]] for name in names]
    tensors += [trace[graph.node(name).inputs[0]] for name in names]
    off = []
    for tensor in tensors:
        _, law, share = fitted(tensor)
        spec = rq.profile(profile, bits=8, signed=bool(tensor.min() < 0))
        scale = float(np.abs(tensor).max() / spec.qmax)
        found = measured_distortion(tensor, scale, spec=spec)
        cells = distortion_of_cells(scale, rounding=spec.rounding).beside(share)
        assert abs(10 * np.log10(cells.mse / found.mse)) <= 0.7
        off.append(10 * np.log10(distortion_of_law(law, scale, spec=spec).beside(share).mse / found.mse))
    assert np.median(np.abs(off)) <= 0.7
    assert max(off) > 10  # a half-normal that reaches beyond what the tensor has


def test_laws_are_found_again() -> None:
    rng = np.random.default_rng(2)
    for name, law in {
        "normal": stats.norm(0.5, 2),
        "laplace": stats.laplace(0, 3),
        "uniform": stats.uniform(-1, 3),
        "half-normal": stats.halfnorm(0, 2),
    }.items():
        x = law.rvs(20_000, random_state=rng)
        found, fit, share = fitted(np.concatenate([x, np.zeros(5000)]))
        assert (found, round(share, 12)) == (name, 0.2)
        assert abs(fit.mean() - law.mean()) <= 0.1
        assert abs(fit.std() / law.std() - 1) <= 0.05
    assert set(FITS) == {"normal", "laplace", "uniform", "half-normal"}


# ---- what is refused, what is noticed -------------------------------------------------------------------------


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ArgumentError, match="rounding"):
        distortion_of_cells(1.0, rounding="stochastic")
    with pytest.raises(ArgumentError, match="saturate"):
        distortion_of_law(stats.norm(), 1.0, spec=QuantSpec(4, overflow="wrap"))
    with pytest.raises(ArgumentError, match="two that differ"):
        fitted([0.0, 1.0, 1.0])


def test_a_wrong_threshold_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "levels_of", lambda *a: levels_of(*a)._replace(t=levels_of(*a).t + 0.05))
    assert compared(LAWS["normal"], 0.4, 0, QuantSpec(4), 0) > NORMAL
