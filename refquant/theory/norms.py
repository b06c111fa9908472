"""Errors of a quantized network bounded in the Euclidean norm, step by step, by gains.

Letters: E a bound on the norm |e| of an image's error at a value; L a step's map and |L| that of its magnitudes.

- A linear step: e_out = L e + c, with c what is there at e = 0: E_out = gain(L) E + |c|, and roundings of L x^ grow
with
  E by gamma gain(|L|) E more.
- Relu, Relu6: no difference grows.  MaxPool: a pixel's error counts in every window that sees it: sqrt(overlap) E.
- Quantize: Q(v) is within R, the error of rounding, of v clipped to the grid, and clipping lets no difference grow:
  |Q(a + e) - a| <= |e| + |what is clipped of a| + |R|.  Where e = 0, as for the input, Q(a) - a is a known number.
- Softmax: no difference grows; roundings are relative, and shares add up to 1.

These know nothing of single elements, so they neither need nor use the boxes of `enclose`: a second way.

Proofs: proofs/08_bounds.py.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from .box import Box, point
from .difference import Network
from .linear_maps import LinearMap
from .pieces import Place, Step, run_rounding
from .quantizer_error import grid_ends, quantizer_error
from .relax import PIECES, softmax_rounding
from .rounding_error import LARGE, gamma
from .spectral import conv_norm_bound, norm_bound, overlap

__all__ = ["GAINS", "euclidean", "gain", "norm_bounds"]

Reals = NDArray[np.float64]


def euclidean(x: Reals) -> Reals:
    """An upper bound on the norm of each image, shape (N, ...) to (N,), within a few roundings of it.

    >>> bool(5 <= euclidean(np.array([[3.0, 4.0]]))[0] < 5.0001)
    True
    """
    rows = x.reshape(len(x), -1)
    top = np.max(np.abs(rows), axis=1, initial=0.0)
    unit = np.where(top > 0, top, 1.0)[:, None]  # so that no square underflows that counts
    return np.asarray(top * np.sqrt(np.sum((rows / unit) ** 2, axis=1)) * (1 + gamma(rows.shape[1] + 8)))


# ---- gains ----------------------------------------------------------------------------------------------------


def _schur(L: LinearMap, weight: Mapping[str, Reals]) -> float:
    """sqrt(largest row sum, largest column sum) of a map with factors >= 0: at least its norm."""
    rows = L.magnitude([np.ones((1, *shape)) for shape in L.shapes])
    columns = L.pull(np.ones_like(rows))
    most = max(float(part.max(initial=0.0)) for part in columns)
    return math.sqrt(float(rows.max(initial=0.0)) * most) * (1 + gamma(L.roundings + L.returns + 8))


GAINS: Mapping[str, Callable[[LinearMap, Mapping[str, Reals]], float]] = {
    "Conv": lambda L, weight: conv_norm_bound(weight["weight"], L.attrs, L.shapes[0]),
    "Gemm": lambda L, weight: float(norm_bound(weight["weight"])),
    "BatchNorm": lambda L, weight: float(np.max(np.abs(weight["k"]), initial=0.0)),
    "AveragePool": _schur,
    "GlobalAvgPool": _schur,
    "Flatten": lambda L, weight: 1.0,
    "Add": lambda L, weight: 1.0,
    "Concat": lambda L, weight: 1.0,
}
"""From an op to an upper bound on the norm of its map by one input, with these factors."""


def gain(L: LinearMap, magnitudes: bool = False) -> float:
    """At least the norm of L by one input; magnitudes: of |L|.

    >>> from .linear_maps import linear_map
    >>> L = linear_map("Gemm", {}, {"weight": np.float32([[3, -4]])}, [(2,)], (1,), "float32")
    >>> bool(5 <= gain(L) < 5.0001)
    True
    """
    weight = {role: np.abs(w) if magnitudes else np.asarray(w, np.float64) for role, w in L.weight.items()}
    return GAINS[L.op](L, weight)


# ---- steps ----------------------------------------------------------------------------------------------------


def _together(step: Step, E: list[Reals]) -> Reals:
    """The norm of what several inputs bring: side by side, as their squares add up, else as they do."""
    return euclidean(np.stack(E, axis=1)) if step.kind == "Concat" else np.sum(E, axis=0) * (1 + gamma(len(E)))


def _linear(step: Step, at: Place, E: list[Reals]) -> Reals:
    L = step.linear
    assert L is not None
    e, known = _together(step, E), euclidean(PIECES[step.kind](step, at).rest.magnitude)
    if not L.roundings:
        return gain(L) * e + known
    terms = gain(L, magnitudes=True) * e  # no sum's terms weigh more, beside those of a
    lost = run_rounding(L, terms, at) + np.where(terms + euclidean(_mass(L, at)) < LARGE[at.to], 0.0, np.inf)
    return gain(L) * e + lost + known


def _mass(L: LinearMap, at: Place) -> Reals:
    """|L| |a| + |b|."""
    return np.asarray(L.magnitude([np.abs(a) for a in at.a]) + L.offset)


def _max_pool(step: Step, at: Place, E: list[Reals]) -> Reals:
    return math.sqrt(overlap(step.attrs)) * E[0]


def _quantize(step: Step, at: Place, E: list[Reals]) -> Reals:
    assert step.quantizer is not None
    (a,), q = at.a, step.quantizer
    grid = Box(*(np.broadcast_to(end, a.shape) for end in grid_ends(*q, a.shape)))
    R = quantizer_error(*q, grid, at.to).magnitude
    clipped = (point(a) + Box(-grid.high, -grid.high)).high, (point(-a) + Box(grid.low, grid.low)).high
    moved = E[0] + euclidean(np.maximum(np.maximum(*clipped), 0.0)) + euclidean(R)
    return np.where(E[0] == 0, euclidean(PIECES[step.kind](step, at).rest.magnitude), moved)


def _softmax(step: Step, at: Place, E: list[Reals]) -> Reals:
    a, axis = at.a[0], step.attrs["axis"]
    reach = 2 * E[0].reshape(-1, *(1,) * (a.ndim - 1))  # no two logits part by more
    eta = softmax_rounding(a.shape[axis], np.ptp(a, axis=axis, keepdims=True) * (1 + gamma(2)) + reach, at.to)
    lines = a[0].size // a.shape[axis]
    return E[0] + euclidean(PIECES[step.kind](step, at).rest.magnitude) + math.sqrt(lines) * euclidean(np.expm1(eta))


RULES: Mapping[str, Callable[[Step, Place, list[Reals]], Reals]] = {
    **dict.fromkeys(GAINS, _linear),
    "Relu": lambda step, at, E: E[0],
    "Relu6": lambda step, at, E: E[0],
    "MaxPool": _max_pool,
    "Quantize": _quantize,
    "Softmax": _softmax,
}
"""From an op, or "Quantize", and bounds on the norms of its inputs' errors to one on its output's."""


def norm_bounds(network: Network, seen: Mapping[str, Reals], start: Reals) -> dict[str, Reals]:
    """At least the norm of each image's error at every value, shape (N,) each.

    seen: the reference's tensors, as recorded.  start: a bound on the norm of the input's error, shape (N,).

    >>> from ..net.graph import Graph, InputSpec, Node
    >>> from .difference import float_network
    >>> net = float_network(Graph("flat", InputSpec("x", (1,)), "y", (Node("y", "Relu", ("x",)),), {}))
    >>> norm_bounds(net, {"x": np.array([[-1.0]]), "y": np.array([[0.0]])}, np.array([2.0]))["y"].round(9).tolist()
    [2.0]
    """
    found = {network.start: start}
    with np.errstate(invalid="ignore", over="ignore"):
        for step in network.steps:
            a = [seen[network.seen[name]] for name in step.inputs]
            at = Place([point(np.zeros_like(v)) for v in a], a, seen[network.seen[step.name]], network.to)
            E = RULES[step.kind](step, at, [found[name] for name in step.inputs]) * (1 + gamma(8))
            found[step.name] = np.where(np.isnan(E), np.inf, E)
    return found
