"""Boxes: an interval for every element of a tensor, in float64, rounded outwards."""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .rounding_error import sum_down, sum_up

__all__ = ["Box", "around", "certain", "choose", "hull", "meet", "point"]

Reals = NDArray[np.float64]


class Box(NamedTuple):
    """All tensors between low and high, element by element; both of one shape, images first."""

    low: Reals
    high: Reals

    @property
    def middle(self) -> Reals:
        """A tensor about halfway, inside or not: `radius` is taken from it."""
        return (self.low + self.high) / 2

    @property
    def radius(self) -> Reals:
        """No element of the box is farther than this from `middle`."""
        m = self.middle
        return np.maximum(sum_up(self.high, -m), sum_up(m, -self.low))

    @property
    def magnitude(self) -> Reals:
        """The largest |x|."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def known(self) -> bool:
        """Whether every interval is a single number."""
        return bool(np.array_equal(self.low, self.high))

    def __add__(self, other: object) -> "Box":  # not the concatenation of two tuples
        """All sums, outwards."""
        assert isinstance(other, Box)
        return Box(sum_down(self.low, other.low), sum_up(self.high, other.high))

    def __sub__(self, other: "Box") -> "Box":
        """All differences, outwards."""
        return self + Box(-other.high, -other.low)

    def widened(self, r: Reals | float) -> "Box":
        """The box and all that is within r >= 0 of it, outwards."""
        return Box(sum_down(self.low, np.asarray(-r)), sum_up(self.high, np.asarray(r)))

    def reshape(self, *shape: int) -> "Box":
        """The same numbers in another shape."""
        return Box(self.low.reshape(shape), self.high.reshape(shape))


def point(x: NDArray[np.floating]) -> Box:
    """The box of one tensor.

    >>> point(np.ones(2, np.float32)).known
    True
    """
    wide = np.asarray(x, np.float64)
    return Box(wide, wide)


def around(middle: Reals, radius: Reals) -> Box:
    """The box of all that is within the radius of the middle, outwards.

    >>> around(np.array([1.0]), np.array([0.5]))
    Box(low=array([0.5]), high=array([1.5]))
    """
    return Box(sum_down(middle, -radius), sum_up(middle, radius))


def meet(a: Box, b: Box) -> Box:
    """What two boxes that hold the same unknown tensor have in common.

    >>> meet(Box(np.array([0.0]), np.array([2.0])), Box(np.array([1.0]), np.array([3.0])))
    Box(low=array([1.]), high=array([2.]))
    """
    return Box(np.maximum(a.low, b.low), np.minimum(a.high, b.high))


def choose(first: NDArray[np.bool_], a: Box, b: Box) -> Box:
    """The intervals of a where `first` is true, and those of b elsewhere.

    >>> choose(np.array([True, False]), point(np.array([1.0, 2.0])), point(np.array([3.0, 4.0]))).low.tolist()
    [1.0, 4.0]
    """
    return Box(np.where(first, a.low, b.low), np.where(first, a.high, b.high))


def hull(some: Iterable[Reals]) -> Box:
    """The least box around some tensors.

    >>> hull([np.array([1.0]), np.array([-1.0])])
    Box(low=array([-1.]), high=array([1.]))
    """
    kept = list(some)
    return Box(reduce(np.minimum, kept), reduce(np.maximum, kept))


def certain(a: Box) -> Box:
    """The box, infinite where an end is NaN: after overflow nothing is known.

    >>> certain(Box(np.array([np.nan]), np.array([1.0])))
    Box(low=array([-inf]), high=array([1.]))
    """
    return Box(np.where(np.isnan(a.low), -np.inf, a.low), np.where(np.isnan(a.high), np.inf, a.high))
