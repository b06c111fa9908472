"""The scale of least squared error, exactly: a sweep over the breakpoints of the codes.

Letters: a = |x|, m >= 0 weights, alpha the scale, c = |code|, S1 = sum m a c, S2 = sum m c^2.

SSE(alpha) = sum m x^2 - 2 alpha S1 + alpha^2 S2, with S1 and S2 constant between breakpoints.  As alpha
falls, the magnitude of the code of x steps from k to k + 1 at alpha = a / (k + o), with o = 1/2 for
the modes that round to nearest, and 0 or 1 by mode and sign for the directed ones, up to the last code
of its side.  Each step adds m a to S1 and m (2k + 1) to S2.  The gain over the all-zero codes,
2 alpha S1 - alpha^2 S2, is at most S1^2 / S2, attained at alpha = S1 / S2.

Rounding to nearest picks the best codes for its alpha, so SSE is the lower envelope of these parabolas
and the least of their minima is the global minimum, wherever it lies (theory: proofs/04_scale.py).
Directed modes do not, so there alpha is clamped to its segment and both sides of a breakpoint are tried.

`sweep_rows` lists every breakpoint; `search.search_rows` finds the few that matter.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arith.exact import gamma, running_sum, running_sum_error

__all__ = ["NEAREST", "OFFSETS", "Array", "Swept", "gains", "segments", "sweep_rows"]

Array = NDArray[np.float64]

OFFSETS: dict[str, tuple[float, float]] = {  # (x > 0, x < 0): the code steps from k to k + 1 at a / (k + o)
    "half_even": (0.5, 0.5),
    "half_away": (0.5, 0.5),
    "half_toward_zero": (0.5, 0.5),
    "half_up": (0.5, 0.5),
    "half_down": (0.5, 0.5),
    "toward_zero": (1.0, 1.0),
    "away_from_zero": (0.0, 0.0),
    "floor": (1.0, 0.0),
    "ceil": (0.0, 1.0),
}

NEAREST = (0.5, 0.5)
"""The offsets of modes whose codes are the best for their scale."""


class Swept(NamedTuple):
    """Per problem: scales of the most promising segments, and what no scale can gain more than."""

    scales: Array  # (problems, candidates), best first
    ceiling: Array  # (problems,) proved upper bound on the gain
    error: Array  # (problems,) the part of it that allows for the rounding of sums
    evaluations: int


CANDIDATES = 4


def gains(S1: Array, S2: Array, upper: Array, lower: Array, nearest: bool) -> tuple[Array, Array]:
    """The best scale of each segment lower <= alpha <= upper, and its gain."""
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = np.where(S2 > 0, S1 / S2, 0.0)
        if nearest:
            return alpha, alpha * S1
        alpha = np.clip(alpha, lower, upper)
        gain = alpha * (2 * S1 - alpha * S2)
    return alpha, np.where((S2 > 0) & (upper > lower), gain, 0.0)


def segments(at: Array, first: Array, second: Array, nearest: bool, low: Array) -> tuple[Array, Array, Array, Array]:
    """Breakpoints with what they add to S1 and S2, a row a problem, in any order; low: (rows, 1), the least scale.

    Scale, gain, S1 and S2 of the segment below each breakpoint, breakpoints falling.
    """
    order = np.argsort(-at, axis=-1)
    at, first, second = (np.take_along_axis(v, order, -1) for v in (at, first, second))
    S1, S2 = running_sum(first), running_sum(second)
    below = np.concatenate([at[:, 1:], low], axis=1)
    return *gains(S1, S2, at, below, nearest), S1, S2


def sweep_rows(X: Array, M: Array, last: NDArray[np.int64], offset: tuple[float, float]) -> Swept:
    """Every breakpoint of every row: X and M of shape (rows, n), last of shape (rows, 2).

    last: the last code of each side of a row, that of x > 0 first.  offset: likewise, where its codes step.
    """
    rows, n = X.shape
    K = int(last.max(initial=0))
    k = np.arange(K, dtype=np.float64)
    side = np.where(X > 0, 0, 1)
    a, m = np.abs(X)[..., None], M[..., None]
    steps = (k < np.take_along_axis(last, side, 1)[..., None]) & (a > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.where(steps, a / (k + np.array(offset)[side][..., None]), 0.0).reshape(rows, n * K)
    first = np.where(steps, m * a, 0.0).reshape(rows, n * K)
    second = np.where(steps, m * (2 * k + 1), 0.0).reshape(rows, n * K)
    alpha, gain, S1, S2 = segments(at, first, second, offset == NEAREST, np.zeros((rows, 1)))
    count = min(CANDIDATES, n * K)
    best = np.argpartition(-gain, count - 1, axis=-1)[:, :count]
    best = np.take_along_axis(best, np.argsort(-np.take_along_axis(gain, best, -1), axis=-1, kind="stable"), -1)
    relative = running_sum_error(n * K) + gamma(8)
    with np.errstate(invalid="ignore"):  # the first segments of directed modes reach to infinity, and gain nothing
        error = np.where(gain > 0, relative * alpha * (2 * S1 + alpha * S2), 0.0)
    return Swept(np.take_along_axis(alpha, best, -1), (gain + error).max(-1), error.max(-1), rows * n * K)
