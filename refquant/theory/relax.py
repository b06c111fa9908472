"""The pieces of ops that are not linear: for each element a slope, and a rest that is certain.

Letters: as in `pieces`; phi(a, e) = f(a + e) - f(a) what an error becomes in f.

- Relu, Relu6: phi - slope e is piecewise linear in e, so its extremes are at ends of its pieces: they are tried, all.
  The slope is 0 or 1, and the rest 0, where a and a + e are surely on one side of every kink; else it is that of the
  chord.
- MaxPool: with w the place of the reference's maximum, e_out - e_w is 0 where the quantized run's maximum is surely
  there too, and else at most as much as another place may be ahead.
- Quantize: slope 1 and the quantizer's error for rest; or, if its codes are as specified and few come into question,
  slope 0 and those codes.
- Softmax: slope 0, and the range by monotonicity.

Proofs: proofs/08_bounds.py.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..arith.exact import UNIT
from ..net.op import Point
from ..net.ops import OPS
from ..net.ops_pool import taps
from .box import Box, certain, choose, hull, meet, point
from .linear_maps import LINEAR
from .pieces import Piece, Place, Step, linear_piece
from .quantizer_error import noise_radius, quantizer_error, quantizer_image
from .rounding_error import TINY, UNITS, gamma, sum_up

__all__ = ["PIECES", "softmax_rounding"]

Reals = NDArray[np.float64]


def _elementwise(slope: Reals, range_: Box, rest: Box, e: Box) -> Piece:
    """The piece with a slope for each element."""
    return Piece(range_, rest, lambda u: [u * slope[:, None]], np.abs(slope) * e.magnitude, 1, e.known)


# ---- Relu, Relu6 ----------------------------------------------------------------------------------------------

KINKS: Mapping[str, tuple[float, ...]] = {"Relu": (0.0,), "Relu6": (0.0, 6.0)}


def _sides(kinks: tuple[float, ...]) -> Iterator[tuple[float, float, float]]:
    """Where f is one line: from, to, slope."""
    ends = (-np.inf, *kinks, np.inf)
    for i, (low, high) in enumerate(pairwise(ends)):
        yield low, high, float(i == 1)


def _corners(a: Reals, e: Box, kinks: tuple[float, ...]) -> Iterator[Reals]:
    """The e between whose neighbours phi(a, e) is a line."""
    return (np.clip(v, e.low, e.high) for v in (e.low, e.high, *(k - a for k in kinks)))


def _extremes(a: Reals, e: Box, kinks: tuple[float, ...], slope: Reals) -> Box:
    """The box of phi(a, e) - slope e; float64 roundings of it, and of corners' places, are within 16 u (|a| + |e|)."""
    f = np.maximum if len(kinks) == 1 else lambda x, zero: np.clip(x, zero, kinks[-1])
    found = hull(f(a + v, 0.0) - f(a, 0.0) - slope * v for v in _corners(a, e, kinks))
    return found.widened(gamma(16) * (np.abs(a) + e.magnitude))


def _pointwise(step: Step, at: Place) -> Piece:
    (e,), (a,), kinks = at.e, at.a, KINKS[step.kind]
    moved = point(a) + e
    range_ = meet(_extremes(a, e, kinks, np.zeros_like(a)), Box(np.minimum(e.low, 0), np.maximum(e.high, 0)))
    width = e.high - e.low
    chord = np.divide(range_.high - range_.low, width, out=np.ones_like(width), where=width > 0)
    slope = np.clip(np.nan_to_num(chord), 0, 1)
    rest = _extremes(a, e, kinks, slope)
    for low, high, rate in _sides(kinks):
        surely = (a >= low) & (a <= high) & (moved.low >= low) & (moved.high <= high)
        slope, rest = np.where(surely, rate, slope), Box(*(np.where(surely, 0.0, end) for end in rest))
        range_ = Box(*(np.where(surely, rate * own, end) for own, end in zip(e, range_, strict=True)))
    return _elementwise(slope, range_, rest, e)


# ---- MaxPool --------------------------------------------------------------------------------------------------


def _largest(step: Step, v: Reals) -> Reals:
    return np.asarray(OPS["MaxPool"].forward(step.attrs, {}, [v]))


def _largest_of_others(step: Step, x: Reals, m: Reals, v: Reals) -> Reals:
    """In each window, the largest v but for the place of x's first maximum, which is m; -inf where none is left."""
    free, found = np.ones_like(m, bool), np.full_like(m, -np.inf)
    for tap, value in zip(taps(step.attrs, x, -np.inf), taps(step.attrs, v, -np.inf), strict=True):
        winner = free & (tap == m)
        free ^= winner
        found = np.maximum(found, np.where(winner, -np.inf, value))
    return found


def _max_pool(step: Step, at: Place) -> Piece:
    (e,), (a,), derivative = at.e, at.a, OPS["MaxPool"].derivative
    here = Point(step.attrs, {}, [a], _largest(step, a))  # its first maxima are the places w

    def of_winner(v: Box) -> Box:
        return Box(*(derivative.jvp(here, {0: end}) for end in v))

    moved = point(a) + e
    others = _largest_of_others(step, a, here.output, moved.high)
    alone = np.isneginf(others)
    lead = np.where(alone, 0.0, sum_up(np.where(alone, 0.0, others), -of_winner(moved).low))
    rest = Box(np.zeros_like(lead), np.maximum(lead, 0.0))
    between = Box(-_largest(step, -e.low), _largest(step, e.high))  # no maximum moves more than all do
    range_ = Box(_largest(step, moved.low), _largest(step, moved.high)) - point(at.out)
    range_ = meet(meet(range_, between), of_winner(e) + rest)

    def pull(u: Reals) -> list[Reals]:
        many = Point(step.attrs, {}, [np.repeat(a, u.shape[1], axis=0)], np.repeat(here.output, u.shape[1], axis=0))
        part = derivative.vjp(many, u.reshape(-1, *u.shape[2:]), [0])[0]
        return [part.reshape(*u.shape[:2], *part.shape[1:])]

    return Piece(range_, rest, pull, _largest(step, e.magnitude), math.prod(step.attrs["kernel"]), e.known)


# ---- Softmax --------------------------------------------------------------------------------------------------


EXP_ULPS = 4
"""Units in the last place that an exponential may be off, in NumPy's libraries: an assumption (its tests allow 3)."""


def _shares(own: Reals, other: Reals, axis: int) -> Reals:
    """1 / (1 + sum over j != i of exp(other_j - own_i)), along an axis."""
    D = np.moveaxis(other, axis, -1)[..., None, :] - np.moveaxis(own, axis, -1)[..., :, None]
    D[..., np.arange(D.shape[-1]), np.arange(D.shape[-1])] = -np.inf
    with np.errstate(over="ignore", under="ignore"):
        return np.moveaxis(1 / (1 + np.exp(D).sum(axis=-1)), -1, axis)


def softmax_rounding(n: int, widest: Reals, to: str) -> Reals:
    """eta: n shares, as computed, are exact ones times exp(+-eta) up to underflow; widest: the range of the logits.

    >>> bool(softmax_rounding(10, np.array(5.0), "float32") < 1e-5)
    True
    """
    each = UNITS[to] + UNIT  # the run's, and of what is computed here
    return np.asarray(2 * each * (n + widest + 4 * EXP_ULPS))


def _softmax(step: Step, at: Place) -> Piece:
    """y_i grows with z_i and falls with every other z_j."""
    z, axis = point(at.a[0]) + at.e[0], step.attrs["axis"]
    widest = np.max(z.high, axis=axis, keepdims=True) - np.min(z.low, axis=axis, keepdims=True)
    eta = softmax_rounding(z.low.shape[axis], widest, at.to)
    low, high = _shares(z.low, z.high, axis), _shares(z.high, z.low, axis)
    y = Box(low * np.exp(-eta), high * np.exp(eta)).widened(TINY[at.to])
    range_ = y - point(at.out)
    return _elementwise(np.zeros_like(low), range_, range_, at.e[0])


# ---- Quantize -------------------------------------------------------------------------------------------------


def _quantize(step: Step, at: Place) -> Piece:
    """Q(x^) - a = e + d.  Where x^ is known, so is Q(x^): that rests on the reference alone.

    Codes as specified: Q(x^) lies between Q at the ends of x^, and has slope 0 where these are no farther apart than
    the errors d are.
    """
    (e,), (a,), q = at.e, at.a, step.quantizer
    assert q is not None
    v = certain(point(a) + e)  # also of a reference that has overflowed
    known = v.low == v.high
    d, image = quantizer_error(*q, v, at.to), quantizer_image(*q, v, at.to)
    d = choose(known, image - v, d)
    range_, slope, rest = e + d, np.ones_like(a), d
    if at.specified:
        jump = image - point(a)
        few = (image.high - image.low <= d.high - d.low) & ~known
        slope, rest = np.where(few, 0.0, slope), choose(few, jump, rest)
        range_ = meet(range_, jump)
    noise = np.where(~known & (slope == 1), noise_radius(*q, v, d), 0.0)
    return _elementwise(slope, range_, rest, e)._replace(noise=noise)


PIECES: dict[str, Callable[[Step, Place], Piece]] = {
    **dict.fromkeys(LINEAR, linear_piece),
    "Relu": _pointwise,
    "Relu6": _pointwise,
    "MaxPool": _max_pool,
    "Softmax": _softmax,
    "Quantize": _quantize,
}
"""From an op, or "Quantize", to its piece."""
