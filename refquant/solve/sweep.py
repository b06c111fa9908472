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

Small problems list every breakpoint.  Large ones first discard intervals [l, h], by two bounds.  S1 and S2
fall with alpha, so S1(l)^2 / S2(h) bounds the gain.  With rounding to nearest, the distance of x from the
grid changes with alpha at a rate of at most c, so sqrt(SSE) is Lipschitz with constant sqrt(S2(l)), and on
[l, h] it is at least the mean of its values at the ends minus half of sqrt(S2(l)) (h - l).  Prefix sums of
the sorted |x| give S1 and S2 at any alpha with one binary search a code.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arith.exact import gamma, running_sum, running_sum_error

__all__ = ["OFFSETS", "Grid", "Swept", "sweep_large", "sweep_rows"]

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


class Grid(NamedTuple):
    """Where codes end and step, by side: index 0 for x > 0, index 1 for x < 0."""

    last: tuple[int, int]
    offset: tuple[float, float]

    @property
    def nearest(self) -> bool:
        """Whether codes are the best for their scale, so that no clamping is needed."""
        return self.offset == (0.5, 0.5)


class Swept(NamedTuple):
    """Per row: scales of the most promising segments, and what no scale can gain more than."""

    scales: Array  # (rows, candidates), best first
    ceiling: Array  # (rows,) proved upper bound on the gain
    error: Array  # (rows,) the part of it that allows for the rounding of sums
    evaluations: int


CANDIDATES = 4


def _gains(S1: Array, S2: Array, upper: Array, lower: Array, grid: Grid) -> tuple[Array, Array]:
    """The best scale of each segment lower <= alpha <= upper, and its gain."""
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = np.where(S2 > 0, S1 / S2, 0.0)
        if grid.nearest:
            return alpha, alpha * S1
        alpha = np.clip(alpha, lower, upper)
        gain = alpha * (2 * S1 - alpha * S2)
    return alpha, np.where((S2 > 0) & (upper > lower), gain, 0.0)


def sweep_rows(X: Array, M: Array, grid: Grid) -> Swept:
    """Every breakpoint of every row: X and M of shape (rows, n)."""
    rows, n = X.shape
    K = max(grid.last)
    k = np.arange(K, dtype=np.float64)
    positive = X[..., None] > 0
    a, m = np.abs(X)[..., None], M[..., None]
    offset = np.where(positive, *grid.offset)
    steps = (k < np.where(positive, *grid.last)) & (a > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.where(steps, a / (k + offset), 0.0).reshape(rows, n * K)
    order = np.argsort(-at, axis=-1)
    first = np.where(steps, m * a, 0.0).reshape(rows, n * K)
    second = np.where(steps, m * (2 * k + 1), 0.0).reshape(rows, n * K)
    at, first, second = (np.take_along_axis(v, order, -1) for v in (at, first, second))
    S1, S2 = running_sum(first), running_sum(second)
    below = np.concatenate([at[:, 1:], np.zeros((rows, 1))], axis=1)
    alpha, gain = _gains(S1, S2, at, below, grid)
    count = min(CANDIDATES, n * K)
    best = np.argpartition(-gain, count - 1, axis=-1)[:, :count]
    best = np.take_along_axis(best, np.argsort(-np.take_along_axis(gain, best, -1), axis=-1, kind="stable"), -1)
    relative = running_sum_error(n * K) + gamma(8)
    with np.errstate(invalid="ignore"):  # the first segments of directed modes reach to infinity, and gain nothing
        error = np.where(gain > 0, relative * alpha * (2 * S1 + alpha * S2), 0.0)
    return Swept(np.take_along_axis(alpha, best, -1), (gain + error).max(-1), error.max(-1), rows * n * K)


class _Sorted(NamedTuple):
    """One side of one row: magnitudes ascending, and sums of m a and m over all from an index on."""

    a: Array
    m: Array
    first: Array
    zeroth: Array
    last: int
    offset: float


def _sorted_side(x: Array, m: Array, last: int, offset: float) -> _Sorted:
    order = np.argsort(x, kind="stable")
    a, m = x[order], m[order]
    tails = [np.append(running_sum(v[::-1])[::-1], 0.0) for v in (m * a, m)]
    return _Sorted(a, m, tails[0], tails[1], last, offset)


class _Sums(NamedTuple):
    S1: Array
    S2: Array
    steps: Array  # how many breakpoints lie at or above alpha


def _sums_at(sides: list[_Sorted], alpha: Array) -> _Sums:
    """S1, S2 and the number of breakpoints passed, at each alpha."""
    S1, S2, passed = np.zeros_like(alpha), np.zeros_like(alpha), np.zeros_like(alpha)
    for side in sides:
        for k in range(side.last):
            i = np.searchsorted(side.a, (k + side.offset) * alpha)
            S1 += side.first[i]
            S2 += (2 * k + 1) * side.zeroth[i]
            passed += side.a.size - i
    return _Sums(S1, S2, passed)


def _list_interval(sides: list[_Sorted], low: float, high: float, at_high: _Sums, grid: Grid) -> tuple[Array, Array]:
    """Scale and gain of every segment between two scales, from the sums at the upper one."""
    at, first, second = [np.array([high])], [at_high.S1], [at_high.S2]
    for side in sides:
        for k in range(side.last):
            o = k + side.offset
            part = slice(*np.searchsorted(side.a, [o * low, o * high]))
            if o > 0 and part.start < part.stop:
                at.append(side.a[part] / o)
                first.append(side.m[part] * side.a[part])
                second.append(side.m[part] * (2 * k + 1))
    order = np.append(0, 1 + np.argsort(-np.concatenate([*at[1:], np.empty(0)]), kind="stable"))
    upper, S1, S2 = (np.concatenate(v)[order] for v in (at, first, second))
    return _gains(running_sum(S1), running_sum(S2), upper, np.append(upper[1:], low), grid)


LISTED = 1 << 20
"""How many breakpoints at the most are held at once."""


class _Intervals(NamedTuple):
    """Intervals of scales with the sums at both ends."""

    low: Array
    high: Array
    at_low: _Sums
    at_high: _Sums

    def only(self, keep: NDArray[np.bool_]) -> "_Intervals":
        return _Intervals(
            self.low[keep],
            self.high[keep],
            _Sums(*(v[keep] for v in self.at_low)),
            _Sums(*(v[keep] for v in self.at_high)),
        )

    def runs(self) -> "_Intervals":
        """Neighbouring intervals joined."""
        order = np.argsort(self.low)
        starts = np.append(True, self.low[order][1:] > self.high[order][:-1])
        first, last = order[starts], order[np.append(starts[1:], True)]
        return _Intervals(
            self.low[first],
            self.high[last],
            _Sums(*(v[first] for v in self.at_low)),
            _Sums(*(v[last] for v in self.at_high)),
        )

    def halved(self, sides: list[_Sorted]) -> "_Intervals":
        middle = np.where(self.low > 0, np.sqrt(self.low) * np.sqrt(self.high), self.high / 2)
        at = _sums_at(sides, middle)
        return _Intervals(
            np.concatenate([self.low, middle]),
            np.concatenate([middle, self.high]),
            _Sums(*(np.concatenate(v) for v in zip(self.at_low, at, strict=True))),
            _Sums(*(np.concatenate(v) for v in zip(at, self.at_high, strict=True))),
        )


def _first_intervals(sides: list[_Sorted], grid: Grid) -> _Intervals:
    """From 0 to where all codes are 0 (or, for directed modes, at most 1): 16 an octave."""
    octaves = np.ceil(2 * np.log2(2 * max(grid.last) + 2))
    edges = 2 * max(s.a[-1] for s in sides) * 2.0 ** np.linspace(-octaves, 0, int(16 * octaves) + 1)
    sums = _sums_at(sides, np.append(0.0, edges))
    return _Intervals(np.append(0.0, edges[:-1]), edges, _Sums(*(v[:-1] for v in sums)), _Sums(*(v[1:] for v in sums)))


def sweep_large(x: Array, m: Array, grid: Grid, tol: float) -> Swept:
    """One long row: discard intervals, then list the breakpoints of those that are left.

    With tol > 0 it stops as soon as no scale can lower the squared error by more than that fraction.
    """
    parts = [(x[x > 0], m[x > 0], 0), (-x[x < 0], m[x < 0], 1)]
    sides = [_sorted_side(a, w, grid.last[i], grid.offset[i]) for a, w, i in parts if a.size and grid.last[i]]
    if not sides:
        return Swept(np.ones((1, 1)), np.zeros(1), np.zeros(1), 0)
    energy = float(np.sum(m * x * x))
    # Every tail sum errs by at most `relative` times the whole; there is one for each code.
    relative = running_sum_error(x.size) + gamma(2 * max(grid.last) + 8)
    error1 = relative * sum(s.last * s.first[0] for s in sides)
    error2 = relative * sum(s.last**2 * s.zeroth[0] for s in sides)
    best, scale, ceiling = 0.0, 1.0, 0.0

    def improve(alpha: Array, gain: Array) -> None:
        nonlocal best, scale
        if gain.size and gain.max() > best:
            best, scale = float(gain.max()), float(alpha[int(gain.argmax())])

    left = _first_intervals(sides, grid)
    looked = longest = left.low.size
    for _ in range(48):
        improve(*_node_gains(left.at_high, left.high, grid))
        bound = _gain_bound(left, energy, error1, error2, grid)
        keep = bound > best
        left, bound = left.only(keep), bound[keep]
        ceiling = max(best, float(bound.max(initial=0.0)))
        if tol > 0 and energy - ceiling >= (energy - best) / (1 + tol):
            break
        if (left.at_low.steps - left.at_high.steps).sum() <= LISTED:
            break
        left = left.halved(sides)
        looked += left.low.size // 2
    else:
        ceiling = np.inf
    if not (tol > 0 and energy - ceiling >= (energy - best) / (1 + tol)):
        left = left.runs() if left.low.size and np.isfinite(ceiling) else left
        for i in range(left.low.size):
            at_high = _Sums(*(v[i : i + 1] for v in left.at_high))
            alpha, gain = _list_interval(sides, left.low[i], left.high[i], at_high, grid)
            improve(alpha, gain)
            looked, longest = looked + alpha.size, max(longest, alpha.size)
        ceiling = best
    error1, error2 = (e + running_sum_error(longest) * e / relative for e in (error1, error2))
    h = max(scale, float(left.high.max(initial=0.0)))
    error = h * (2 * error1 + h * error2)
    return Swept(np.array([[scale]]), np.array([ceiling + error]), np.array([error]), looked)


def _gain_bound(on: _Intervals, energy: float, error1: float, error2: float, grid: Grid) -> Array:
    """What no scale of each interval can gain more than, the rounding of the sums allowed for."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = (on.at_low.S1 + error1) ** 2 / (on.at_high.S2 - error2)
    bound[on.at_high.S2 <= error2] = np.inf
    if not grid.nearest:
        return bound

    def distance(at: _Sums, alpha: Array) -> Array:  # sqrt(SSE), rounded down
        error = alpha * (2 * error1 + alpha * error2) + gamma(8) * energy
        return np.sqrt(np.maximum(energy - alpha * (2 * at.S1 - alpha * at.S2) - error, 0.0))

    rate = np.sqrt(on.at_low.S2 + error2)
    least = distance(on.at_low, on.low) + distance(on.at_high, on.high) - rate * (on.high - on.low) * (1 + gamma(8))
    return np.minimum(bound, energy - (np.maximum(least, 0.0) / 2) ** 2 * (1 - gamma(8)))


def _node_gains(at: _Sums, alpha: Array, grid: Grid) -> tuple[Array, Array]:
    """What the codes at alpha gain: with the best scale for them, or (directed modes) with alpha itself."""
    if grid.nearest:
        return _gains(at.S1, at.S2, alpha, alpha, grid)
    return alpha, alpha * (2 * at.S1 - alpha * at.S2)
