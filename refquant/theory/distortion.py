"""The error of one quantizer on one tensor: in closed form for a law of its values, by cells, and as measured.

Letters: x the value, x^ its value on the grid, d = x^ - x, alpha the step, r the levels in steps, t the thresholds.

For x of a law, E d = alpha E r - E x with E r = r_0 + sum of P(x > alpha t) over all thresholds, and E d^2 is
`solve.density.distortion`: both exact, clipping included.  For x spread evenly over a cell, d is uniform over a step:
E d = mu alpha, E d^2 = alpha^2 / 12 + mu^2 alpha^2, mu = 0 for rounding to nearest and -1/2 for floor: alpha^2 / 3,
four times as much, 6.02 dB or a bit.  Both are models of a tensor, as good as the law is that of its values.

The bias is not noise: a constant added to all takes it off, and leaves the variance.  Values on the grid, as the zeros
of a ReLU, have no error, and so no bias: with a share p of them, what a constant leaves of floor's error is

    (1 - p) alpha^2 / 12 + p (1 - p) alpha^2 / 4,

up to 4/3 times alpha^2 / 12, at p = 1/3; nearest has (1 - p) alpha^2 / 12 without any constant.

Proofs: proofs/07_accumulation.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log10
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ..errors import ArgumentError, complaint, one_of
from ..quant.quantizer import fake_quantize
from ..quant.spec import QuantSpec
from ..solve.density import distortion, levels_of

__all__ = ["FITS", "MU", "Distortion", "distortion_of_cells", "distortion_of_law", "fitted", "measured_distortion"]

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Distortion:
    """E d and E d^2 of a quantizer's error d, in reals and their squares."""

    bias: float
    mse: float

    @property
    def variance(self) -> float:
        """E (d - E d)^2: what is left when a constant takes off the bias."""
        return self.mse - self.bias**2

    @property
    def bias_cost_db(self) -> float:
        """10 log10 of mse / variance: what the bias costs; 0 where there is no error, infinite where it is all bias.

        >>> round(Distortion(-0.5, 1 / 3).bias_cost_db, 2)
        6.02
        """
        if not self.mse:
            return 0.0
        return 10 * log10(self.mse / self.variance) if self.variance > 0 else float("inf")

    def beside(self, share: float) -> "Distortion":
        """Where a share of the values lies on the grid and has no error, and these are the rest.

        >>> Distortion(-0.5, 0.375).beside(0.5)
        Distortion(bias=-0.25, mse=0.1875)
        """
        return Distortion((1 - share) * self.bias, (1 - share) * self.mse)


# ---- three ways -----------------------------------------------------------------------------------------------

MU: dict[str, float] = {
    **dict.fromkeys(("half_even", "half_away", "half_toward_zero", "half_up", "half_down"), 0.0),
    "floor": -0.5,
    "ceil": 0.5,
    "toward_zero": -0.5,
    "away_from_zero": 0.5,
}
"""The mean error in steps by rounding mode, of values above 0; below 0 those of the last two are the other way."""


def distortion_of_cells(alpha: float, *, rounding: str, sign: int = 1) -> Distortion:
    """For values spread evenly over whole cells that are not clipped, above 0 (sign 1), below (-1) or both alike (0).

    Raises ArgumentError for a rounding that has no mean error of its own.

    >>> distortion_of_cells(1.0, rounding="floor").mse, distortion_of_cells(6.0, rounding="half_even")
    (0.3333333333333333, Distortion(bias=0.0, mse=3.0))
    """
    mu = MU[one_of(rounding, MU, "rounding", "distortion_of_cells")]
    turns = rounding in ("toward_zero", "away_from_zero")
    return Distortion(alpha * mu * (sign if turns else 1), alpha**2 * (1 / 12 + mu**2))


def distortion_of_law(law: Any, alpha: float, *, spec: QuantSpec, zero_point: float = 0.0) -> Distortion:
    """For values of a frozen continuous `scipy.stats` law: exact, as far as the law's own functions are.

    spec: that of any profile.  Its quotient is taken as exact: a quotient of p bits moves only values that lie within
    |x| 2^(1 - p) of a threshold.  Other arguments and errors as `solve.density.distortion`.

    >>> floor = QuantSpec(8, rounding="floor")
    >>> found = distortion_of_law(stats.uniform(-1, 2), 1 / 64, spec=floor)
    >>> round(found.bias * 64, 9), round(found.mse * 64**2, 9), round(found.bias_cost_db, 2)
    (-0.5, 0.333333333, 6.02)
    """
    exact = replace(spec, quotient="exact")
    mse = float(distortion(law, alpha, spec=exact, zero_point=zero_point))
    r, t = levels_of(exact, zero_point)
    return Distortion(float(alpha * (r[0] + np.sum(law.sf(alpha * t))) - law.mean()), mse)


def measured_distortion(x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = 0, *, spec: QuantSpec) -> Distortion:
    """Means over the elements of a tensor, float32 or float64; arguments and errors as `fake_quantize`.

    No elements have no error.

    >>> measured_distortion(np.array([0.25, 0.5]), 0.5, spec=QuantSpec(4, rounding="floor"))
    Distortion(bias=-0.125, mse=0.03125)
    """
    values = np.asarray(x)
    d = fake_quantize(values, scale, zero_point, spec=spec).astype(np.float64) - values
    return Distortion(float(d.mean()), float(np.mean(d * d))) if d.size else Distortion(0.0, 0.0)


# ---- laws of tensors ------------------------------------------------------------------------------------------


def _normal(x: Reals) -> Any:
    return stats.norm(x.mean(), x.std())


def _laplace(x: Reals) -> Any:
    return stats.laplace(np.median(x), np.abs(x - np.median(x)).mean())


def _uniform(x: Reals) -> Any:
    return stats.uniform(x.min(), np.ptp(x))


def _half_normal(x: Reals) -> Any:
    return stats.halfnorm(0, np.sqrt(np.mean(x * x)))


FITS: dict[str, Callable[[Reals], Any]] = {
    "normal": _normal,
    "laplace": _laplace,
    "uniform": _uniform,
    "half-normal": _half_normal,
}
"""Laws by the likeliest parameters for some values; the last for values above 0, as a ReLU leaves them."""


def fitted(x: ArrayLike) -> tuple[str, Any, float]:
    """The likeliest law for the values of a tensor that are not 0: its name, the law, and the share of zeros.

    Raises ArgumentError for fewer than two distinct values.

    >>> x = np.maximum(stats.norm().ppf((np.arange(2000) + 0.5) / 2000), 0)
    >>> name, law, share = fitted(x)
    >>> name, round(float(law.std() / stats.halfnorm().std()), 2), share
    ('half-normal', 1.0, 0.5)
    """
    values = np.asarray(x, np.float64).ravel()
    nonzero = values[values != 0]
    if nonzero.size < 2 or np.ptp(nonzero) == 0:
        raise ArgumentError(complaint(f"{nonzero.size} values that are not 0", "two that differ", "fitted"))
    laws = {name: fit(nonzero) for name, fit in FITS.items() if name != "half-normal" or nonzero.min() > 0}
    likely = {name: float(np.mean(law.logpdf(nonzero))) for name, law in laws.items()}
    name = max(likely, key=likely.__getitem__)
    return name, laws[name], 1 - nonzero.size / values.size
