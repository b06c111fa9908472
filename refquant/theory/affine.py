"""Affine arithmetic on the difference network, by transposition: bounds on any linear form of the errors at a value.

Letters: u a form, e the errors at a value, L e_in + c the piece of its step (see `pieces`), r the radius of a rest.

Forward, a zonotope writes every error as an affine form in noise symbols, one symbol a rest of a step and element,
and a number's bound is the sum of its coefficients' magnitudes: symbols that meet again cancel.  Back, the same
coefficients come from u e_out = (L^T u) e_in + u c, step by step: a few forms cost a few runs, whatever the number of
symbols.  Every rest then adds its middle times u to the constant and r |u| to the radius.

With a failure probability delta, rests of quantizers that do not clip are taken for independent noise of radius r,
whose means are off their middles by no more than r - h, h the radius that is due to chance (half a step, see
`quantizer_error.noise_radius`); by Hoeffding's inequality (1963, theorem 2) they add at most sum |u| (r - h) and
sqrt(2 ln(2 / delta) sum (u r)^2) instead of sum |u| r, but with probability delta.  For subtractive dither of values
half a step or more from the ends of the grid that is a theorem; for rounding, which is what quantizers do, it is a
model.

Float64 roundings: an L^T u that is off by delta leaves delta e_in, at most gamma |u| |L| |e_in|; so each step's own
enclosure pays for it, as it does where forms that come back from several readers are added up.

Proofs: proofs/08_bounds.py.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .box import Box, around, certain, point
from .difference import Enclosure
from .rounding_error import gamma

__all__ = ["bound_forms", "element_forms", "refine_up_to", "refined"]

Reals = NDArray[np.float64]

LARGEST = 2**24
"""Elements of forms at one value that are held at once: 128 MiB."""


class _Sum:
    """u c summed over the elements of boxes, for many forms u: the middle and the radius of what it may be.

    size: the magnitudes of what was added up to the middle, as partial sums may be far larger than it, and terms
    their number.  noise: |u| h summed, the part of the radius that is due to chance, and power the sum of (u r)^2
    where there is any.
    """

    def __init__(self, N: int, K: int, chance: bool) -> None:
        self.middle, self.size, self.radius, self.noise, self.power = (np.zeros((N, K)) for _ in range(5))
        self.terms, self.count, self.chance = 4, 8, chance

    def add(self, u: Reals, c: Box, extra: Reals | float = 0.0, noise: Reals | None = None) -> None:
        """u c for all c of the box, and |u| times extra."""
        N, K = u.shape[:2]
        U = u.reshape(N, K, -1)
        middle, r = c.middle.reshape(N, -1, 1), c.radius.reshape(N, -1, 1)
        slip = np.broadcast_to(np.asarray(extra), c.low.shape).reshape(r.shape) + gamma(U.shape[2] + 8) * np.abs(middle)
        if noise is not None and self.chance:
            h = np.minimum(noise.reshape(r.shape), r)
            self.noise += np.matmul(np.abs(U), h)[:, :, 0]
            self.power += np.matmul(U * U, np.where(h > 0, r * r, 0.0))[:, :, 0]
            r = r - h
        term = np.matmul(U, middle)[:, :, 0]
        self.middle += term
        self.size += np.abs(term)
        self.terms += 1
        self.radius += np.matmul(np.abs(U), r * (1 + gamma(U.shape[2] + 8)) + slip)[:, :, 0]
        self.count += U.shape[2] + 8

    def slip(self, u: Reals, e: Box) -> None:
        """A rounding of every element of a form of errors e."""
        self.add(u, point(np.zeros_like(e.low)), gamma(1) * e.magnitude)

    def box(self, failure: float) -> Box:
        """All values that the sum may have; with chance, but with this probability."""
        n = gamma(self.count)
        chance = np.minimum(self.noise, np.sqrt(2 * math.log(2 / failure) * self.power)) if self.chance else 0.0
        return around(self.middle, (self.radius + chance + gamma(self.terms) * self.size) * (1 + 2 * n))


def bound_forms(found: Enclosure, value: str, u: Reals, failure: float | None = None) -> Box:
    """The forms sum over elements of u e, e the errors at a value, enclosed: shape (N, K).

    u: shape (N, K, *value's shape).  failure: None for certain bounds, else the probability, for each form, that its
    bound is none, in the model.  Infinite where nothing is known.

    Steps all of whose inputs are known are where the way back ends; some forms are taken at a time.
    """
    largest = max(math.prod(shape) for shape in found.network.shapes.values())
    some = max(1, LARGEST // (len(u) * largest))
    parts = [_forms(found, value, u[:, k : k + some], failure) for k in range(0, u.shape[1], some)]
    return certain(Box(*(np.concatenate(ends, axis=1) for ends in zip(*parts, strict=True))))


def _forms(found: Enclosure, value: str, u: Reals, failure: float | None) -> Box:
    N, K = u.shape[:2]
    total, forms = _Sum(N, K, failure is not None), {value: u}
    with np.errstate(invalid="ignore", over="ignore"):
        for step in reversed(found.network.steps):
            if step.name not in forms:
                continue
            v, piece, e = forms.pop(step.name), found.pieces[step.name], found.errors[step.name]
            if piece.ends:
                total.add(v, e)
                continue
            total.add(v, piece.rest, gamma(piece.returns + 8) * piece.spread, piece.noise)
            for name, part in zip(step.inputs, piece.pull(v), strict=True):
                if name in forms:
                    part = forms[name] + part
                    total.slip(part, found.errors[name])
                forms[name] = part
        for name, v in forms.items():  # the input
            total.add(v, found.errors[name])
        return total.box(failure or 1.0)


def element_forms(shape: tuple[int, ...], N: int) -> Reals:
    """The forms that pick the single elements of a value, for N images: shape (N, elements, *shape).

    >>> element_forms((2,), 1).tolist()
    [[[1.0, 0.0], [0.0, 1.0]]]
    """
    n = math.prod(shape)
    return np.broadcast_to(np.eye(n).reshape(n, *shape), (N, n, *shape))


def refined(found: Enclosure, value: str, width: int) -> bool:
    """Whether `refine_up_to` refines a value: one of a linear step that is not known, of at most so many elements."""
    piece, shape = found.pieces[value], found.network.shapes[value]
    return not piece.ends and piece.returns > 0 and value in found.network.linear and math.prod(shape) <= width


def refine_up_to(width: int, failure: float | None = None) -> Callable[[Enclosure, str], Box | None]:
    """The refinement of `enclose` by affine arithmetic; failure: as for `bound_forms`, for each element."""

    def refine(found: Enclosure, value: str) -> Box | None:
        if not refined(found, value, width):
            return None
        N, shape = len(found.errors[value].low), found.network.shapes[value]
        return bound_forms(found, value, element_forms(shape, N), failure).reshape(N, *shape)

    return refine
