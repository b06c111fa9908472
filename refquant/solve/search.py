"""The scale of least squared error of long rows, exactly: intervals of scales discarded by convexity.

Letters as in `sweep`: a = |x|, m weights, alpha the scale, S1 = sum m a c, S2 = sum m c^2, k + o where codes step.

A step that has been made contributes a - alpha (k + 1/2), times 2 alpha m, to the gain, so

    gain(alpha) = 2 alpha (G(alpha) + alpha D(alpha)),   G = sum over steps of m (a - alpha (k + o))_+,
                                                         D = sum over steps made of m (o - 1/2).

G is convex, so on an interval [l, h] it lies below its chord.  D is 0 for rounding to nearest, and else the
difference of two sums that fall with alpha.  That bounds the gain by a parabola, to second order in h - l for
rounding to nearest, so that only a handful of intervals survive each halving (proofs/04_scale.py).  Prefix sums of
the sorted row give S1, S2, G and D at any alpha with one binary search a code.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arith.exact import gamma, running_sum, running_sum_error
from .sweep import NEAREST, Array, Swept, gains, segments

__all__ = ["Rows", "below_chord", "search_rows", "sort_rows"]

Integers = NDArray[np.int64]


TINY = 5e-324  # the least float64 above 0


class Rows(NamedTuple):
    """Rows of ascending values, and the sums of m a and of m over the first i of each."""

    x: Array  # (rows, n)
    m: Array | None  # (rows, n); None where every weight is 1
    first: Array  # (rows, n + 1)
    zeroth: Array | None  # (rows, n + 1); None likewise


def sort_rows(X: Array, M: Array | None) -> Rows:
    """Rows ready for `search_rows`; M None means weights of 1."""

    def sums(v: Array) -> Array:
        padded = np.zeros((len(v), v.shape[1] + 1))
        padded[:, 1:] = running_sum(v)
        return padded

    if M is None:
        narrow = X.astype(np.float32)
        x = np.sort(narrow if np.array_equal(narrow, X) else X, axis=1).astype(np.float64)
        return Rows(x, None, sums(np.abs(x)), None)
    order = np.argsort(X, axis=1)
    x, m = np.take_along_axis(X, order, 1), np.take_along_axis(M, order, 1)
    return Rows(x, m, sums(m * np.abs(x)), sums(m))


class _Sums(NamedTuple):
    """Sums over the steps made at some scales: S1, S2, both parts of D (above 0, below 0), and how many steps."""

    S1: Array
    S2: Array
    above: Array
    below: Array
    steps: Array

    def at(self, which: Any) -> "_Sums":
        return _Sums(*(v[which] for v in self))


class _Steps:
    """Rows with the last codes of their sides, and all steps that a code of one of them can make.

    Steps are in the order of their thresholds in units of alpha, those of negative x first.
    """

    def __init__(self, rows: Rows, last: Integers, offset: tuple[float, float]) -> None:
        self.rows, self.last, self.nearest = rows, last, offset == NEAREST
        Kp, Kn = last.max(axis=0, initial=0).tolist()
        self.up = slice(Kn, None)
        self.k = np.concatenate([np.arange(Kn)[::-1], np.arange(Kp)])
        self.o = np.repeat([offset[1], offset[0]], [Kn, Kp])
        self.threshold = np.repeat([-1.0, 1.0], [Kn, Kp]) * (self.k + self.o)
        own = np.repeat(last[:, ::-1], [Kn, Kp], axis=1)
        self.made = None if np.all(own == own[:1]) else self.k < own  # (rows, steps)
        mass = float(rows.x.shape[1]) if rows.zeroth is None else rows.zeroth[:, -1]
        relative = 2 * running_sum_error(rows.x.shape[1]) + gamma(2 * self.k.size + 8)  # each sum's, to the whole
        self.error1 = relative * last.sum(axis=1) * rows.first[:, -1]
        self.error2 = relative * ((last + 1.0) ** 2).sum(axis=1) * mass

    def positions(self, p: Integers, alpha: Array) -> Integers:
        """How many elements of its row lie below each threshold: shape (scales, steps); p ascending."""
        found = np.empty((alpha.size, self.k.size), np.int64)
        at = alpha[:, None] * self.threshold
        at[:, self.up] = np.maximum(at[:, self.up], TINY)  # zeros make no step
        starts = np.flatnonzero(np.diff(p, prepend=-1))
        stops = [*starts[1:].tolist(), p.size]
        for row, start, stop in zip(p[starts].tolist(), starts.tolist(), stops, strict=True):
            found[start:stop] = self.rows.x[row].searchsorted(at[start:stop])
        return found

    def sums(self, p: Integers, alpha: Array) -> _Sums:
        """The sums at each scale; at alpha = 0 every step is made."""
        i, n = self.positions(p, alpha), self.rows.x.shape[1]

        def beyond(prefix: Array) -> Array:  # the sum over the elements that made each step
            found = np.asarray(prefix.ravel()[i + p[:, None] * (n + 1)])
            found[:, self.up] = prefix[p, -1][:, None] - found[:, self.up]
            return found

        first = beyond(self.rows.first)
        zeroth = None if self.rows.zeroth is None else beyond(self.rows.zeroth)
        i[:, self.up] = n - i[:, self.up]
        mass = i.astype(np.float64) if zeroth is None else zeroth
        if self.made is not None:
            made = self.made[p]
            first, mass, i = first * made, mass * made, i * made
        weights = 2.0 * self.k + 1, np.maximum(self.o - 0.5, 0), np.maximum(0.5 - self.o, 0)
        S2, above, below = (mass @ w for w in weights)
        return _Sums(first.sum(axis=1), S2, above, below, i.sum(axis=1))


class _Intervals(NamedTuple):
    """Intervals of scales with the sums at both ends; p: whose, ascending, and scales ascending within."""

    p: Integers
    low: Array
    high: Array
    at_low: _Sums
    at_high: _Sums

    def only(self, keep: NDArray[np.bool_]) -> "_Intervals":
        return _Intervals(self.p[keep], self.low[keep], self.high[keep], self.at_low.at(keep), self.at_high.at(keep))

    def runs(self) -> "_Intervals":
        """Neighbouring intervals joined."""
        first = (np.diff(self.p, prepend=-1) != 0) | (self.low > np.append(0.0, self.high[:-1]))
        last = np.append(first[1:], True)
        ends = self.only(last)
        return ends._replace(low=self.low[first], at_low=self.at_low.at(first))

    def halved(self, steps: _Steps) -> "_Intervals":
        middle = np.where(self.low > 0, np.sqrt(self.low) * np.sqrt(self.high), self.high / 2)
        at = steps.sums(self.p, middle)

        def woven(a: Array, b: Array) -> Array:
            return np.stack([a, b], axis=1).ravel()

        return _Intervals(
            np.repeat(self.p, 2),
            woven(self.low, middle),
            woven(middle, self.high),
            _Sums(*map(woven, self.at_low, at)),
            _Sums(*map(woven, at, self.at_high)),
        )


LEVELS = 60  # halvings after which what is left is listed
FEW = 64  # breakpoints that are listed at once
LISTED = 1 << 20
"""How many breakpoints at the most are held at once."""


def _first_intervals(steps: _Steps) -> _Intervals:
    """From 0 to where all codes are 0 (or, for directed modes, at most 1): an octave each."""
    x = steps.rows.x
    octaves = int(np.ceil(2 * np.log2(2 * steps.last.max(initial=0) + 2)))
    largest = np.maximum(-x[:, 0], x[:, -1])
    top = np.where(largest > 0, 2 * largest, 1.0)
    edges = top[:, None] * np.append(0.0, 2.0 ** np.arange(-octaves, 1))
    p = np.repeat(np.arange(len(x)), octaves + 2)
    sums = steps.sums(p, edges.ravel())
    lower = np.tile(np.arange(octaves + 2) <= octaves, len(x))
    upper = np.roll(lower, 1)
    return _Intervals(p[lower], edges.ravel()[lower], edges.ravel()[upper], sums.at(lower), sums.at(upper))


def below_chord(low: Array, high: Array, at_low: Array, at_high: Array, D: Array | float = 0.0) -> Array:
    """The most that 2 alpha (G(alpha) + alpha D) can be on each interval, for a convex G of which both ends are known.

    >>> below_chord(np.array([1.0]), np.array([2.0]), np.array([3.0]), np.array([1.0])).round(6)  # at 5/4
    array([6.25])
    """
    slope = (at_low - at_high) / (high - low)
    a, b = at_high + slope * high, slope - D  # 2 alpha (a - b alpha)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        alpha = np.clip(np.where(b > 0, a / (2 * b), np.inf), low, high)
    return np.asarray(2 * alpha * (a - b * alpha))


def _most_gains(on: _Intervals, steps: _Steps) -> Array:
    """What no scale of each interval can gain more than, the rounding of the sums allowed for."""
    e1, e2 = steps.error1[on.p], steps.error2[on.p]

    def convex(at: _Sums, alpha: Array) -> Array:  # G, rounded up
        return np.asarray(at.S1 - alpha * (at.S2 / 2 + at.above - at.below) + e1 + alpha * e2)

    D = on.at_low.above - on.at_high.below + np.where(on.at_low.above + on.at_high.below > 0, e2, 0.0)
    most = below_chord(on.low, on.high, convex(on.at_low, on.low), convex(on.at_high, on.high), D)
    return most * (1 + gamma(32))


def _listed(steps: _Steps, on: _Intervals) -> tuple[Integers, Array, Array, Array, int]:
    """The best scale of every run of intervals and its gain, from all breakpoints inside; p, high, and the longest."""
    runs = on.runs()
    ends = np.stack([runs.low, runs.high], axis=1).ravel()
    below, above = steps.positions(np.repeat(runs.p, 2), ends).reshape(-1, 2, steps.k.size).transpose(1, 0, 2)
    first, count = np.minimum(below, above), np.abs(above - below)
    if steps.made is not None:
        count = count * steps.made[runs.p]
    n, total = steps.rows.x.shape[1], count.sum(axis=1)
    width = int(total.max()) + 1
    found = []
    some = max(1, LISTED // width)
    for start in range(0, runs.p.size, some):
        part = slice(start, start + some)
        counts, totals = count[part].ravel(), total[part]
        run = np.repeat(np.arange(totals.size), totals)
        step = np.repeat(np.tile(np.arange(steps.k.size), totals.size), counts)
        element = np.arange(run.size) + np.repeat(first[part].ravel() - np.cumsum(counts) + counts, counts)
        element += runs.p[part][run] * n
        a, k = np.abs(steps.rows.x.ravel()[element]), steps.k[step]
        m = 1.0 if steps.rows.m is None else steps.rows.m.ravel()[element]
        place = run, 1 + np.arange(run.size) - np.repeat(np.cumsum(totals) - totals, totals)
        S1, S2 = np.zeros((2, totals.size, width))
        at = np.repeat(runs.low[part][:, None], width, axis=1)  # filled up with breakpoints that add nothing
        at[:, 0], S1[:, 0], S2[:, 0] = runs.high[part], runs.at_high.S1[part], runs.at_high.S2[part]
        with np.errstate(divide="ignore"):
            inside = np.minimum(a / np.abs(steps.threshold[step]), runs.high[part][run])
        at[place], S1[place], S2[place] = inside, m * a, m * (2 * k + 1)
        alpha, gain, _, _ = segments(at, S1, S2, steps.nearest, runs.low[part][:, None])
        best = gain.argmax(axis=1)[:, None]
        found.append([np.take_along_axis(v, best, 1)[:, 0] for v in (alpha, gain)])
    scales, most = map(np.concatenate, zip(*found, strict=True))
    return runs.p, scales, most, runs.high, width


def search_rows(rows: Rows, last: Integers, offset: tuple[float, float], energy: Array, tol: float) -> Swept:
    """The scale of most gain in each row, its last codes being `last[i]` (above 0, below 0).

    last: shape (rows, 2).  offset: of both sides.  energy: sum m x^2 of each row.  Intervals are halved until listing
    their breakpoints is less work, or, with tol > 0, until no scale can lower the squared error by more than that
    fraction.
    """
    steps = _Steps(rows, last, offset)
    best, ceiling, reach = np.zeros((3, len(last)))
    scale = np.ones(len(last))

    def improve(p: Integers, alpha: Array, gain: Array) -> None:  # p ascending
        starts = np.flatnonzero(np.diff(p, prepend=-1))
        most, owners = np.maximum.reduceat(gain, starts), p[starts]
        where = np.flatnonzero(gain == np.repeat(most, np.diff(starts, append=p.size)))
        where = where[np.searchsorted(where, starts)]  # the first of each owner
        better = most > best[owners]
        best[owners[better]], scale[owners[better]] = most[better], alpha[where[better]]

    left = _first_intervals(steps)
    looked, longest = left.p.size, 1
    for level in range(LEVELS + 1):
        S1, S2 = left.at_high.S1, left.at_high.S2
        if steps.nearest:
            improve(left.p, *gains(S1, S2, left.high, left.low, nearest=True))
        else:
            improve(left.p, left.high, left.high * (2 * S1 - left.high * S2))
        most = _most_gains(left, steps)
        keep = most > best[left.p]
        left, most = left.only(keep), most[keep]
        if not left.p.size:
            break
        starts = np.flatnonzero(np.diff(left.p, prepend=-1))
        owners, count = left.p[starts], np.diff(starts, append=left.p.size)
        most = np.maximum.reduceat(most, starts)
        near = (tol > 0) & (energy[owners] - most >= (energy[owners] - best[owners]) / (1 + tol))
        ceiling[owners[near]] = most[near]
        inside = np.add.reduceat(left.at_low.steps - left.at_high.steps, starts)
        few = ~near & ((inside <= np.maximum(FEW, count * steps.k.size / 2)) | (level == LEVELS))
        if few.any():
            p, alpha, gain, high, width = _listed(steps, left.only(np.repeat(few, count)))
            improve(p, alpha, gain)
            np.maximum.at(reach, p, high)
            looked, longest = looked + int(inside[few].sum()), max(longest, width)
        left = left.only(np.repeat(~near & ~few, count))
        if not left.p.size:
            break
        left = left.halved(steps)
        looked += left.p.size // 2
    more = 1 + running_sum_error(longest) / running_sum_error(rows.x.shape[1])
    h = np.maximum(scale, reach)
    error = h * more * (2 * steps.error1 + h * steps.error2)
    return Swept(scale[:, None], np.maximum(ceiling, best) + error, error, looked)
