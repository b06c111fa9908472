"""Affine arithmetic on the difference network, by transposition: bounds on any linear form of the errors at a value.

Letters: u a form, e the errors at a value, L e_in + c the piece of its step (see `pieces`).

Forward, a zonotope writes every error as an affine form in noise symbols, one symbol a rest of a step and element,
and a number's bound is the sum of its coefficients' magnitudes: symbols that meet again cancel.  Back, the same
coefficients come from u e_out = (L^T u) e_in + u c, step by step: a few forms cost a few runs, whatever the number of
symbols.  Every rest then adds its middle times u to the constant and its radius times |u| to the radius.

Float64 roundings: an L^T u that is off by delta leaves delta e_in, at most gamma |u| |L| |e_in|; so each step's own
enclosure pays for it.  `zonotope` is the definition, on exact numbers.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .box import Box, around
from .difference import Enclosure
from .rounding_error import gamma

__all__ = ["bound_forms", "bound_many", "element_forms", "refine_up_to"]

Reals = NDArray[np.float64]

LARGEST = 2**24
"""Elements of forms at one value that are held at once: 128 MiB."""


class _Sum:
    """u c summed over the elements of boxes, for many forms u: the middle and the radius of what it may be."""

    def __init__(self, N: int, K: int) -> None:
        self.middle, self.radius = np.zeros((N, K)), np.zeros((N, K))
        self.count = 8

    def add(self, u: Reals, c: Box, extra: Reals | float = 0.0) -> None:
        """u c for all c of the box, and |u| times extra."""
        N, K = u.shape[:2]
        U = u.reshape(N, K, -1)
        middle, radius = c.middle.reshape(N, -1), np.asarray(c.radius + extra).reshape(N, -1)
        n = gamma(U.shape[2] + 8)
        self.middle += np.matmul(U, middle[:, :, None])[:, :, 0]
        self.radius += np.matmul(np.abs(U), (radius * (1 + n) + n * np.abs(middle))[:, :, None])[:, :, 0]
        self.count += U.shape[2] + 8

    def box(self) -> Box:
        """All values that the sum may have."""
        n = gamma(self.count)
        return around(self.middle, self.radius * (1 + n) + n * np.abs(self.middle))


def bound_forms(found: Enclosure, value: str, u: Reals) -> Box:
    """The forms sum over elements of u e, e the errors at a value, enclosed: shape (N, K).

    u: shape (N, K, *value's shape).  A step all of whose inputs are known is where the way back ends.

    Raises nothing: a form can always be enclosed.
    """
    total, forms = _Sum(*u.shape[:2]), {value: u}
    merged = gamma(len(found.network.steps) + 8)  # forms that come from several readers are added up
    for step in reversed(found.network.steps):
        if step.name not in forms:
            continue
        v, piece, e = forms.pop(step.name), found.pieces[step.name], found.errors[step.name]
        if piece.ends:
            total.add(v, e, merged * e.magnitude)
            continue
        total.add(v, piece.rest, gamma(piece.returns + 8) * piece.spread + merged * e.magnitude)
        for name, part in zip(step.inputs, piece.pull(v), strict=True):
            forms[name] = forms[name] + part if name in forms else part
    for name, v in forms.items():  # the input
        total.add(v, found.errors[name], merged * found.errors[name].magnitude)
    return total.box()


def element_forms(shape: tuple[int, ...], N: int) -> Reals:
    """The forms that pick the single elements of a value, for N images: shape (N, elements, *shape).

    >>> element_forms((2,), 1).tolist()
    [[[1.0, 0.0], [0.0, 1.0]]]
    """
    n = math.prod(shape)
    return np.broadcast_to(np.eye(n).reshape(n, *shape), (N, n, *shape))


def bound_many(found: Enclosure, value: str, u: Reals) -> Box:
    """`bound_forms`, a few forms at a time."""
    largest = max(math.prod(shape) for shape in found.network.shapes.values())
    some = max(1, LARGEST // (len(u) * largest))
    parts = [bound_forms(found, value, u[:, k : k + some]) for k in range(0, u.shape[1], some)]
    return Box(*(np.concatenate(ends, axis=1) for ends in zip(*parts, strict=True)))


def refine_up_to(width: int) -> Callable[[Enclosure, str], Box | None]:
    """The refinement of `enclose` by affine arithmetic: of values of linear steps with at most so many elements."""

    def refine(found: Enclosure, value: str) -> Box | None:
        piece, shape = found.pieces[value], found.network.shapes[value]
        if piece.ends or not piece.returns or value not in found.network.linear or math.prod(shape) > width:
            return None
        N = len(found.errors[value].low)
        return bound_many(found, value, element_forms(shape, N)).reshape(N, *shape)

    return refine
