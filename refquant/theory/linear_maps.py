"""The ops that are linear but for a constant, y = L x + b, as maps: L, |L|, L^T, and how many roundings they take.

Letters: |L| the map with every factor replaced by its magnitude: |L x| <= |L| |x|.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..net.op import Attrs, Params, Point, Shape
from ..net.ops import OPS
from ..net.ops_norm import batch_norm_line

__all__ = ["LINEAR", "LinearMap", "linear_map"]

Reals = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearMap:
    """y = L x + b for the inputs x of one op, float64; arrays have the images first.

    weight: the factors of L, by the op's names; none for sums and means, whose factors are 0, 1 and 1/n.
    constant: b, broadcastable against y.  offset: the magnitudes of what b is made of, at least |b|.
    roundings: at least as many as a product meets in y, in any order of the sum; 0: y is exact.
    returns: as many as a product meets in L^T u.
    """

    op: str
    attrs: Attrs
    shapes: Sequence[Shape]
    weight: Params
    constant: Reals
    offset: Reals
    roundings: int
    returns: int

    def forward(self, xs: Sequence[Reals]) -> Reals:
        """L x."""
        return np.asarray(OPS[self.op].forward(self.attrs, self.weight, xs), np.float64)

    def magnitude(self, xs: Sequence[Reals]) -> Reals:
        """|L| x, for x >= 0."""
        weight = {role: np.abs(w) for role, w in self.weight.items()}
        return np.asarray(OPS[self.op].forward(self.attrs, weight, xs), np.float64)

    def pull(self, u: Reals) -> list[Reals]:
        """L^T u, one array an input."""
        blank = np.zeros(())
        xs = [np.broadcast_to(blank, (len(u), *shape)) for shape in self.shapes]
        point = Point(self.attrs, self.weight, xs, u)
        parts = OPS[self.op].derivative.vjp(point, u, range(len(xs)))
        return [parts[slot] for slot in range(len(xs))]


def _channels(v: NDArray[Any], axes: int) -> Reals:
    """One number a channel, broadcastable against a batch of so many axes an image."""
    return np.asarray(v, np.float64).reshape(-1, *(1,) * (axes - 1))


@dataclass(frozen=True, eq=False)
class _Diagonal(LinearMap):
    """A batch norm with given moments: y = k x + b."""

    def forward(self, xs: Sequence[Reals]) -> Reals:
        return np.asarray(self.weight["k"] * xs[0])

    def magnitude(self, xs: Sequence[Reals]) -> Reals:
        return np.asarray(np.abs(self.weight["k"]) * xs[0])

    def pull(self, u: Reals) -> list[Reals]:
        return [self.weight["k"] * u]


def _product(op: str, attrs: Attrs, params: Params, shapes: Sequence[Shape], shape: Shape, to: str) -> LinearMap:
    W = np.asarray(params["weight"], np.float64)
    b = _channels(params["bias"], len(shape)) if "bias" in params else np.zeros(())
    return LinearMap(op, attrs, shapes, {"weight": W}, b, np.abs(b), W[0].size + 2, W.size // W.shape[1] + 2)


def _norm(op: str, attrs: Attrs, params: Params, shapes: Sequence[Shape], shape: Shape, to: str) -> LinearMap:
    k, c = (_channels(v.astype(to), len(shape)) for v in batch_norm_line(attrs, params))
    return _Diagonal(op, attrs, shapes, {"k": k}, c, np.abs(c), 3, 1)


def _sum(roundings: Callable[[Attrs, Shape], int]) -> "Builder":
    def build(op: str, attrs: Attrs, params: Params, shapes: Sequence[Shape], shape: Shape, to: str) -> LinearMap:
        n = roundings(attrs, shapes[0])
        return LinearMap(op, attrs, shapes, {}, np.zeros(()), np.zeros(()), n, n + 1)

    return build


Builder = Callable[[str, Attrs, Params, Sequence[Shape], Shape, str], LinearMap]

LINEAR: Mapping[str, Builder] = {
    "Conv": _product,
    "Gemm": _product,
    "BatchNorm": _norm,
    "Add": _sum(lambda attrs, shape: 1),
    "Concat": _sum(lambda attrs, shape: 0),
    "Flatten": _sum(lambda attrs, shape: 0),
    "AveragePool": _sum(lambda attrs, shape: math.prod(attrs["kernel"]) + 2),
    "GlobalAvgPool": _sum(lambda attrs, shape: math.prod(shape[1:]) + 2),
}
"""From an op to what makes its map."""


def linear_map(op: str, attrs: Attrs, params: Params, shapes: Sequence[Shape], shape: Shape, to: str) -> LinearMap:
    """The map of a node whose arrays are params, in a run of type `to`; shapes of inputs and output an image.

    >>> twice = linear_map("Gemm", {}, {"weight": np.float32([[2]])}, [(1,)], (1,), "float32")
    >>> twice.forward([np.array([[3.0]])]).tolist(), twice.pull(np.array([[5.0]]))[0].tolist()
    ([[6.0]], [[10.0]])
    """
    return LINEAR[op](op, attrs, params, shapes, shape, to)
