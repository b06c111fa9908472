"""What a quantizer's error is taken for: a mean that is known, and white noise about it.  A model, not a bound.

Letters: x the value, x^ = Q(x), d = x^ - x, alpha the step.

Where x lies off the grid and inside the range, d is taken for uniform noise of the width of a step, independent from
element to element and of x: mean mu alpha, mu = 0 for rounding to nearest and -1/2 for floor, variance alpha^2 / 12.
Where x lies on the grid, as the exact zeros of a ReLU do, it carries no noise; where it is clipped, d is what it is
seen to be at x.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..arith.rounding import MODES
from ..net.op import Array

__all__ = ["CENTRES", "Noise", "known_noise", "noise_of"]


class Noise(NamedTuple):
    """Mean and variance of an error, elementwise; errors of two elements are independent."""

    mean: Array
    variance: Array


def _nearest(x: Array) -> Array:
    return np.zeros_like(x)


CENTRES: dict[str, Callable[[Array], Array]] = {
    **dict.fromkeys((mode for mode in MODES if mode.startswith("half_")), _nearest),
    "floor": lambda x: np.full_like(x, -0.5),
    "ceil": lambda x: np.full_like(x, 0.5),
    "toward_zero": lambda x: -np.sign(x) / 2,
    "away_from_zero": lambda x: np.sign(x) / 2,
}
"""mu, the mean of the error in steps, by rounding mode; errors reach half a step to both sides of it."""

ON_GRID = 2.0**-22
"""A value within so much of max|x| of a grid point is on it: images come in float32, after three roundings."""


def known_noise(d: Array) -> Noise:
    """An error that does not depend on any other: its mean is what it is, its variance 0.

    >>> known_noise(np.array([0.25]))
    Noise(mean=array([0.25]), variance=array([0.]))
    """
    return Noise(d, np.zeros_like(d))


def noise_of(x: Array, quantized: Array, step: Array, rounding: str) -> Noise:
    """The model's mean and variance of the errors of a quantizer at values near x.

    quantized: Q(x), of the same shape; step: broadcastable.  rounding: a deterministic mode.

    >>> noise_of(np.array([0.0, 0.8, 9.0]), np.array([0.0, 1.0, 3.0]), np.array(1.0), "half_even")
    Noise(mean=array([ 0.,  0., -6.]), variance=array([0.        , 0.08333333, 0.        ]))
    """
    d, centre = quantized - x, CENTRES[rounding](x) * step
    on_grid = np.abs(d) <= ON_GRID * np.abs(x).max(initial=0.0)
    inside = np.abs(d - centre) <= step / 2 * (1 + ON_GRID)
    noisy = inside & ~on_grid
    return Noise(np.where(noisy, centre, d), np.where(noisy, step**2 / 12, 0.0))
