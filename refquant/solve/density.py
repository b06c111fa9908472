"""Distortion of a quantizer on a probability density, and the scale that makes it least.

Letters: p the density of x, alpha the scale, r the levels q - z in steps, t the thresholds between them in steps,
M0(u) = P(x > u) and M1(u) = E[x; x > u] the upper partial moments (on the other side those of -x).

D(alpha) = E (x - alpha r(x))^2 = E x^2 - 2 alpha S1 + alpha^2 S2 with S1 = E x r and S2 = E r^2.  Going up a
level at each threshold, r(x) = r_0 + sum of 1[x > t alpha] over t >= 0, less the same for t < 0: so S1 is a sum of
M1 and S2 a sum of M0 times differences of r^2, which is `sweep` with sums over elements replaced by moments.
The sums have no cancellation; D itself loses the digits by which it is smaller than E x^2.

The textbook splits (granular alpha^2 / 12, overload beyond the last level) stand beside it, for comparison.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, optimize, special

from ..errors import ArgumentError, complaint
from ..quant.spec import QuantSpec
from .search import below_chord
from .solution import Solution

__all__ = [
    "aciq_scale",
    "asymptotic_distortion",
    "distortion",
    "levels_of",
    "octav_scale",
    "optimal_scale",
    "overload_distortion",
]

Array = NDArray[np.float64]
Moment = Callable[[Array], Array]


# ---- partial moments ------------------------------------------------------------------------------------------


def _phi(v: Array) -> Array:
    return np.asarray(np.exp(-v * v / 2) / np.sqrt(2 * np.pi))


def _norm(loc: float, scale: float) -> Moment:
    return lambda u: loc * special.ndtr((loc - u) / scale) + scale * _phi((u - loc) / scale)


def _laplace(loc: float, scale: float) -> Moment:
    def moment(u: Array) -> Array:
        tail = np.exp(-np.abs(u - loc) / scale) / 2
        return np.where(u >= loc, (u + scale) * tail, loc - (u - scale) * tail)

    return moment


def _uniform(loc: float, scale: float) -> Moment:
    high = loc + scale
    return lambda u: (high**2 - np.clip(u, loc, high) ** 2) / (2 * scale)


def _half_normal(loc: float, scale: float) -> Moment:
    def moment(u: Array) -> Array:
        v = np.maximum((u - loc) / scale, 0.0)
        return np.asarray(loc * 2 * special.ndtr(-v) + 2 * scale * _phi(v))

    return moment


UPPER: dict[str, Callable[[float, float], Moment]] = {
    "norm": _norm,
    "laplace": _laplace,
    "uniform": _uniform,
    "halfnorm": _half_normal,
}
"""scipy.stats name -> M1 of its location and scale, in closed form; others by quadrature."""

MIRRORED = {"norm": (-1.0, 0.0), "laplace": (-1.0, 0.0), "uniform": (-1.0, -1.0)}
"""Laws whose mirror image is one of them: its location is a loc + b scale."""


class Moments(NamedTuple):
    """A law as its moments: mean, E x^2, and M0, M1 above u and, mirrored, below -u."""

    mean: float
    energy: float
    above: tuple[Moment, Moment]
    below: tuple[Moment, Moment]
    closed: bool


def _by_quadrature(law: Any, low: float, high: float, power: int) -> float:
    found = integrate.quad(lambda v: v**power * law.pdf(v), low, high, limit=200, epsabs=1e-13, epsrel=1e-11)
    return float(found[0])


def _moments(law: Any) -> Moments:
    """The moments of a frozen scipy.stats law.

    Raises ArgumentError for what is none, or has no finite variance.
    """
    try:
        name, mean, variance = law.dist.name, float(law.mean()), float(law.var())
        lowest, highest = map(float, law.support())
    except (AttributeError, TypeError):
        got = f"density of type {type(law).__name__}"
        raise ArgumentError(complaint(got, "a frozen continuous scipy.stats distribution", "density")) from None
    if not (np.isfinite(mean) and np.isfinite(variance) and variance > 0 and hasattr(law.dist, "pdf")):
        raise ArgumentError(complaint(f"mean {mean}, variance {variance}", "finite and > 0", f"density {name}"))
    _, loc, scale = law.dist._parse_args(*law.args, **law.kwds)
    closed = name in UPPER
    if closed:
        first = UPPER[name](float(loc), float(scale))
    else:
        first = np.vectorize(lambda u: _by_quadrature(law, max(u, lowest), highest, 1) if u < highest else 0.0, [float])
    if name in MIRRORED:
        a, b = MIRRORED[name]
        mirrored = UPPER[name](a * float(loc) + b * float(scale), float(scale))
    elif closed:
        mirrored = lambda u: np.maximum(first(-u) - mean, 0.0)  # noqa: E731 (E[-x; x < -u])
    else:
        mirrored = np.vectorize(
            lambda u: -_by_quadrature(law, lowest, min(-u, highest), 1) if -u > lowest else 0.0, [float]
        )
    below = (lambda u: np.asarray(law.cdf(-u)), mirrored)
    return Moments(mean, variance + mean * mean, (lambda u: np.asarray(law.sf(u)), first), below, closed)


# ---- the grid -------------------------------------------------------------------------------------------------


class Levels(NamedTuple):
    """Levels r ascending, and the threshold above each but the last, in steps."""

    r: Array
    t: Array


def levels_of(spec: QuantSpec, zero_point: float) -> Levels:
    """The levels of a grid, and where one gives way to the next.

    >>> levels_of(QuantSpec(2, rounding="floor"), 0)
    Levels(r=array([-2., -1.,  0.,  1.]), t=array([-1.,  0.,  1.]))
    """
    if spec.rounding == "stochastic" or spec.overflow != "saturate" or spec.quotient != "exact" or spec.bits > 16:
        got = f"rounding={spec.rounding}, overflow={spec.overflow}, quotient={spec.quotient}, bits={spec.bits}"
        raise ArgumentError(complaint(got, "deterministic, saturate, exact, at most 16", "density"))
    if spec.zero_point_order == "after" and zero_point != round(zero_point):
        should = "an integer, or zero_point_order='before'"
        raise ArgumentError(complaint(f"zero_point={zero_point}", should, "density"))
    q = np.arange(spec.qmin, spec.qmax + 1.0)
    r = q - zero_point
    rounded = q if spec.zero_point_order == "before" else r  # what the rounding mode sees
    half = np.full(len(q) - 1, 0.5)
    up = (rounded[:-1] >= 0).astype(float)
    step = {"floor": half + 0.5, "ceil": half - 0.5, "toward_zero": up, "away_from_zero": 1 - up}
    return Levels(r, r[:-1] + step.get(spec.rounding, half))


def _sums(m: Moments, levels: Levels, alpha: Array) -> tuple[Array, Array]:
    """S1 and S2 for each alpha."""
    r, t = levels
    up, down = t >= 0, t < 0
    start = r[np.count_nonzero(down)]
    gain = np.diff(r * r)
    a = alpha[:, None]
    S1 = start * m.mean + m.above[1](t[up] * a).sum(axis=1) + m.below[1](-t[down] * a).sum(axis=1)
    S2 = start**2 + m.above[0](t[up] * a) @ gain[up] - m.below[0](-t[down] * a) @ gain[down]
    return S1, S2


def _distortions(m: Moments, levels: Levels, alpha: Array) -> Array:
    S1, S2 = _sums(m, levels, alpha)
    return np.asarray(np.maximum(m.energy - 2 * alpha * S1 + alpha * alpha * S2, 0.0))


def _alphas(alpha: ArrayLike) -> Array:
    a = np.asarray(alpha, np.float64)
    if not np.all(np.isfinite(a) & (a > 0)):
        raise ArgumentError(complaint(f"alpha={a}", "finite and > 0", "density"))
    return a


def distortion(law: Any, alpha: ArrayLike, *, spec: QuantSpec, zero_point: float = 0.0) -> Array:
    """E (x - x^)^2 for x of a law and x^ its value on the spec's grid at scale alpha; shape of alpha.

    law: a frozen continuous `scipy.stats` distribution of finite variance; normal, Laplace, uniform and
    half-normal in closed form, others by quadrature.  alpha: reals per step.  zero_point: in codes; with
    `zero_point_order="before"` any real: -1/2 on a two's complement grid is the mid-rise grid of as many levels.

    Raises ArgumentError for another law, a scale not finite and > 0, and a spec that is stochastic, does not
    saturate, has more than 16 bits or no exact quotient.

    >>> from scipy import stats
    >>> two = QuantSpec(2, narrow=True)  # -1, 0, 1
    >>> round(float(distortion(stats.norm(), 1.224006, spec=two)), 6)
    0.190174
    """
    a = _alphas(alpha)
    return _distortions(_moments(law), levels_of(spec, zero_point), a.ravel()).reshape(a.shape)


# ---- the best scale -------------------------------------------------------------------------------------------

SCAN = 400
"""Scales looked at before refining, on a logarithmic axis."""

INTERVALS = 200_000


def _least_scale(m: Moments, levels: Levels) -> float:
    """A scale below which none is the best: E (|x| - c)_+^2 >= (sqrt(E x^2) - c)^2 for c = alpha rmax (Minkowski)."""
    deviation, largest = m.energy**0.5, float(np.abs(levels.r).max())
    root = float(_distortions(m, levels, np.geomspace(0.1, 10, 9) * deviation / largest).min()) ** 0.5
    least: float = max((deviation - root) / largest, 1e-9 * deviation / largest)
    return least


def optimal_scale(law: Any, *, spec: QuantSpec, zero_point: float = 0.0, tol: float = 1e-5) -> Solution:
    """The scale of least distortion of a law, with a proved lower bound where one is known.

    Arguments and errors as `distortion`.  With rounding to nearest, S1 - alpha S2 / 2 is convex, so on an interval
    the gain is below that of its chord (`search`), and branch and bound certifies the relative gap `tol`; from 40 root
    mean squares on, the gain is at most E x^2 over |x| > 10 of them, since the least level is at most 1/2 from 0.
    D is a float, so bounds hold up to its rounding, about 1e-14 E x^2.  Other modes, laws by quadrature and grids
    without 0 between their levels are not certified: there the answer is the best of a scan, refined.

    >>> from scipy import stats
    >>> solution = optimal_scale(stats.norm(), spec=QuantSpec(2, narrow=True))
    >>> round(float(solution.value), 5), solution.certified
    (1.22401, True)
    """
    m, levels = _moments(law), levels_of(spec, zero_point)
    nearest = spec.rounding.startswith("half_") and bool(levels.r[0] <= 0 <= levels.r[-1])
    low, high = _least_scale(m, levels), 40 * m.energy**0.5
    low = low if nearest else low * 1e-2
    count = SCAN if m.closed else SCAN // 8
    scan = np.geomspace(low, high, count)
    values = _distortions(m, levels, scan)
    i = int(values.argmin())
    found = optimize.minimize_scalar(
        lambda a: float(_distortions(m, levels, np.array([a]))[0]),
        bounds=(scan[max(i - 1, 0)], scan[min(i + 1, count - 1)]),
        method="bounded",
        options={"xatol": 1e-10 * scan[i]},
    )
    alpha = float(found.x) if found.fun <= values[i] else float(scan[i])
    best = float(_distortions(m, levels, np.array([alpha]))[0])
    bound, certified = 0.0, False
    if nearest and m.closed:
        bound, looked = _lower_bound(m, levels, low, high, best, tol)
        count += looked
        bound = min(bound, m.energy - _second_above(law, high / 4, 0.0))
        certified = best - bound <= tol * best + 1e-14 * m.energy
    return Solution(np.array(alpha), np.array(best), np.array(bound), certified, count + int(found.nfev))


def _lower_bound(m: Moments, levels: Levels, low: float, high: float, best: float, tol: float) -> tuple[float, int]:
    """A bound below D on [low, high]: halve every interval whose own bound is not yet within tol of the best."""

    def convex(alpha: Array) -> Array:
        S1, S2 = _sums(m, levels, alpha)
        return np.asarray(S1 - alpha * S2 / 2)

    edges = np.geomspace(low, high, SCAN)
    at = convex(edges)
    left, right, at_left, at_right = edges[:-1], edges[1:], at[:-1], at[1:]
    looked, settled = edges.size, best
    while left.size:
        least = m.energy - below_chord(left, right, at_left, at_right)
        done = (least >= best * (1 - tol)) | (looked >= INTERVALS)
        settled = min(settled, float(least[done].min(initial=best)))
        left, right, at_left, at_right = (v[~done] for v in (left, right, at_left, at_right))
        middle = (left + right) / 2
        at, looked = convex(middle), looked + middle.size
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
        at_left, at_right = np.concatenate([at_left, at]), np.concatenate([at, at_right])
    return max(settled, 0.0), looked


# ---- the textbook's approximations ----------------------------------------------------------------------------


def _second_above(law: Any, c: float, less: float) -> float:
    """E (|x| - less)^2 over |x| > c, by quadrature."""
    lowest, highest = map(float, law.support())
    over = integrate.quad(lambda v: (v - less) ** 2 * law.pdf(v), max(c, lowest), max(highest, c), limit=200)[0]
    under = integrate.quad(lambda v: (v + less) ** 2 * law.pdf(v), min(lowest, -c), min(-c, highest), limit=200)[0]
    return float(over + under)


def overload_distortion(law: Any, clip: float) -> float:
    """E (|x| - clip)^2 over |x| > clip: what clipping alone costs.

    >>> from scipy import stats
    >>> round(overload_distortion(stats.uniform(-1, 2), 0.5), 6)
    0.041667
    """
    _moments(law)
    c = float(_alphas(clip))
    return _second_above(law, c, c)


def asymptotic_distortion(law: Any, alpha: float, *, spec: QuantSpec) -> float:
    """alpha^2 / 12 and the overload beyond alpha (qmax + 1/2): the high-resolution split, not D itself.

    It takes every cell as filled evenly and the granular error as that of all x, also those that are clipped.

    >>> from scipy import stats
    >>> round(asymptotic_distortion(stats.uniform(-1, 2), 2 / 15, spec=QuantSpec(4, narrow=True)) * 15**2, 9)
    0.333333333
    """
    return float(alpha) ** 2 / 12 + overload_distortion(law, float(alpha) * (spec.qmax + 0.5))


def aciq_scale(law: Any, *, bits: int) -> float:
    """ACIQ's scale: the clip c that minimises c^2 / (3 4^bits) + overload(c), over c = alpha 2^(bits - 1).

    Source: Banner et al. 2019, section 3; the published clips per bit are roots of this for normal and Laplace.

    >>> from scipy import stats
    >>> round(aciq_scale(stats.laplace(), bits=4) * 8, 2)  # published: 5.03
    5.03
    """
    deviation = _moments(law).energy ** 0.5
    found = optimize.minimize_scalar(
        lambda c: c * c / (3 * 4.0**bits) + _second_above(law, c, c), bounds=(0.0, 40 * deviation), method="bounded"
    )
    return float(found.x) / 2.0 ** (bits - 1)


def octav_scale(law: Any, *, bits: int) -> float:
    """OCTAV's scale: the fixed point c = E[|x|; |x| > c] / (4^-bits / 3 P(|x| <= c) + P(|x| > c)), over 2^(bits - 1).

    Source: Sakr et al. 2022, its recursion, run to a standstill.

    >>> from scipy import stats
    >>> abs(octav_scale(stats.norm(), bits=4) / aciq_scale(stats.norm(), bits=4) - 1) < 0.01
    True
    """
    m = _moments(law)
    c = m.energy**0.5
    for _ in range(200):
        u = np.array(c)
        beyond = float(m.above[0](u) + m.below[0](u))
        magnitude = float(m.above[1](u) + m.below[1](u))
        following = magnitude / (4.0**-bits / 3 * (1 - beyond) + beyond)
        if abs(following - c) <= 1e-13 * c:
            break
        c = following
    return float(c / 2.0 ** (bits - 1))
