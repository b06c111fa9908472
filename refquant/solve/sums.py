"""Scales and codes of a sum of low-bit terms, together: improved by turns, and bounded from below.

Letters: x row of n values, m weights, T terms, alpha the T scales, c a vector of T codes (a row of `grid`), K their
number; the sums are c . alpha, and each element takes the nearest: f(alpha) = sum m min_c (x - c . alpha)^2.

`alternate` takes the nearest sums for given scales and the best scales for given codes by turns, which never makes f
larger.  A sum serves a run of the sorted row, so prefix sums give all that the best scales need.

`best_sum` is branch and bound over boxes of scales.  On a box each sum has a range, so each element is at least its
distance from the nearest range away.  Elements for which one c is nearest all over the box contribute a convex
quadratic, bounded below by its tangent plane; that makes the bound of second order in the size of the box.
`two_terms_by_vertices` finds the same for a few values by looking at every cell of the plane of two scales.
`codebook_bound` needs no scales: a sum of T terms has at most K values, and no K values do better than these.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.exact import gamma
from ..errors import ArgumentError, NotANumberError, complaint
from ..quant.quantizer import reals
from ..quant.spec import QuantSpec
from .solution import Solution

__all__ = [
    "MOST_SUMS",
    "Prefixes",
    "all_codes",
    "alternate",
    "best_scales",
    "best_sum",
    "codebook_bound",
    "nearest_codes",
    "prefixes",
    "sum_errors",
    "two_terms_by_vertices",
]

Array = NDArray[np.float64]

ELEMENTS = 1 << 20
"""Elements times sums times boxes that are held at once."""

MOST_SUMS = 4096


def all_codes(specs: tuple[QuantSpec, ...]) -> Array:
    """Every combination of codes, one a row: shape (product of the numbers of codes, T).

    >>> all_codes((QuantSpec(1, signed=False),) * 2).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    axes = np.meshgrid(*(np.arange(s.qmin, s.qmax + 1.0) for s in specs), indexing="ij")
    return np.stack([axis.ravel() for axis in axes], axis=1)


def nearest_codes(x: Array, alpha: Array, grid: Array) -> Array:
    """The codes whose sum is nearest to each element; shape (n, T).

    >>> nearest_codes(np.array([0.9, 0.2]), np.array([0.5, 0.25]), all_codes((QuantSpec(2),) * 2)).tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    sums = grid @ alpha
    order = np.argsort(sums, kind="stable")
    ascending = sums[order]
    return np.asarray(grid[order[np.searchsorted((ascending[1:] + ascending[:-1]) / 2, x)]])


def best_scales(x: Array, m: Array, C: Array) -> Array:
    """The scales >= 0 of least weighted squared error for given codes, shape (n, T); exact for T <= 2.

    For more terms the unconstrained best, negative ones set to 0.
    """
    gram, moment = (C * m[:, None]).T @ C, (C * m[:, None]).T @ x
    alpha = np.asarray(np.linalg.lstsq(gram, moment, rcond=None)[0])
    if np.all(alpha >= 0) or len(alpha) > 2:
        return np.maximum(alpha, 0.0)
    edges = [np.where(np.arange(len(alpha)) == t, moment / np.maximum(np.diag(gram), 1e-300), 0) for t in range(2)]
    edges = [np.maximum(e, 0.0) for e in edges[: len(alpha)]]
    return min(edges, key=lambda e: float(np.sum(m * (x - C @ e) ** 2)))


def _checked(x: ArrayLike, weights: ArrayLike | None, specs: tuple[QuantSpec, ...]) -> tuple[Array, Array, Array]:
    X = reals(x).astype(np.float64).ravel()
    M = np.ones(X.shape) if weights is None else reals(weights, "weights").astype(np.float64).ravel()
    if X.shape != M.shape or not np.all(np.isfinite(M) & (M >= 0)):
        got = f"weights of shape {M.shape} for {X.shape}"
        raise ArgumentError(complaint(got, "of x's shape, finite and >= 0", "best_sum"))
    if not np.all(np.isfinite(X)):
        raise NotANumberError(complaint("NaN or infinity", "finite values", "best_sum", "clean the tensor"))
    count = float(np.prod([2.0**s.bits - s.narrow for s in specs]))
    if not 2 <= count <= MOST_SUMS:
        raise ArgumentError(complaint(f"{count:.0f} sums", f"at most {MOST_SUMS}", "best_sum", "fewer bits or terms"))
    return X, M, all_codes(specs)


# ---- by turns -------------------------------------------------------------------------------------------------

ROUNDS = 50


class Prefixes(NamedTuple):
    """Rows of ascending values with the sums of m and of m x over the first i of each, and sum m x^2."""

    x: Array  # (rows, n)
    mass: Array  # (rows, n + 1)
    moment: Array  # (rows, n + 1)
    energy: Array  # (rows,)


def prefixes(X: Array, M: Array) -> Prefixes:
    """The rows of X, shape (rows, n), ready for `alternate`."""
    order = np.argsort(X, axis=1, kind="stable")
    x, m = np.take_along_axis(X, order, 1), np.take_along_axis(M, order, 1)
    start = np.zeros((len(x), 1))
    mass, moment = (np.concatenate([start, np.cumsum(v, axis=1)], axis=1) for v in (m, m * x))
    return Prefixes(x, mass, moment, np.sum(m * x * x, axis=1))


def _normal_equations(rows: Prefixes, of: NDArray[np.int64], alpha: Array, grid: Array) -> tuple[Array, Array, Array]:
    """For scales (B, T), each of row of[b]: sum m c c', sum m c x and f, with the nearest sums."""
    sums = alpha @ grid.T
    order = np.argsort(sums, axis=1, kind="stable")
    ascending = np.take_along_axis(sums, order, 1)
    middles = (ascending[:, 1:] + ascending[:, :-1]) / 2
    ends = np.empty((len(of), grid.shape[0] + 1), np.int64)
    ends[:, 0], ends[:, -1] = 0, rows.x.shape[1]
    for b, row in enumerate(of.tolist()):
        ends[b, 1:-1] = rows.x[row].searchsorted(middles[b])
    at = ends + of[:, None] * rows.mass.shape[1]
    mass, moment = (np.diff(v.ravel()[at], axis=1) for v in (rows.mass, rows.moment))  # (B, K)
    C = grid[order]  # (B, K, T)
    gram = np.einsum("bkt,bku,bk->btu", C, C, mass, optimize=True)
    right = np.einsum("bkt,bk->bt", C, moment)
    error = rows.energy[of] - 2 * np.einsum("bt,bt->b", alpha, right) + np.einsum("bt,btu,bu->b", alpha, gram, alpha)
    return gram, right, error


def sum_errors(rows: Prefixes, of: NDArray[np.int64], alpha: Array, grid: Array) -> Array:
    """f of scales (B, T), each for row of[b]; from prefix sums, so small ones lose digits."""
    some = max(1, ELEMENTS // len(grid))
    parts = [slice(i, i + some) for i in range(0, len(of), some)]
    return np.concatenate([np.empty(0), *(_normal_equations(rows, of[p], alpha[p], grid)[2] for p in parts)])


def alternate(rows: Prefixes, of: NDArray[np.int64], alpha: Array, grid: Array) -> tuple[Array, Array]:
    """Scales (B, T), each for row of[b], improved by turns to a standstill, and f of them.

    >>> rows = prefixes(np.array([[1.0, 1.25, -0.25]]), np.ones((1, 3)))
    >>> grid = all_codes((QuantSpec(2, narrow=True),) * 2)
    >>> alternate(rows, np.array([0]), np.array([[0.9, 0.3]]), grid)[0].round(6).tolist()
    [[1.0, 0.25]]
    """
    some = max(1, ELEMENTS // len(grid))
    if len(of) > some:
        parts = [alternate(rows, of[i : i + some], alpha[i : i + some], grid) for i in range(0, len(of), some)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    symmetric = np.array_equal(grid, -grid[::-1])
    best, value = np.full(len(of), np.inf), alpha.copy()
    going = np.arange(len(of))
    for _ in range(ROUNDS):
        gram, right, error = _normal_equations(rows, of[going], alpha, grid)
        better = error < best[going] * (1 - 1e-12)
        best[going[better]], value[going[better]] = error[better], alpha[better]
        going = going[better]
        if not going.size:
            break
        alpha = (np.linalg.pinv(gram[better], hermitian=True) @ right[better][..., None])[..., 0]
        alpha = np.abs(alpha) if symmetric else np.maximum(alpha, 0.0)
    return value, best


# ---- branch and bound -----------------------------------------------------------------------------------------


class _Boxes(NamedTuple):
    """Boxes of scales: shape (boxes, T) each."""

    low: Array
    high: Array

    def only(self, keep: NDArray[Any]) -> "_Boxes":
        return _Boxes(self.low[keep], self.high[keep])

    def halved(self, reach: Array) -> "_Boxes":
        """Each cut across the side along which its sums vary most."""
        side = np.argmax((self.high - self.low) * reach, axis=1)[:, None]
        at = np.take_along_axis((self.low + self.high) / 2, side, 1)
        below, above = self.high.copy(), self.low.copy()
        np.put_along_axis(below, side, at, 1)
        np.put_along_axis(above, side, at, 1)
        return _Boxes(np.concatenate([self.low, above]), np.concatenate([below, self.high]))


def _bounds(x: Array, m: Array, grid: Array, boxes: _Boxes) -> Array:
    """What f is not below on each box."""
    plus, minus = np.maximum(grid, 0.0), np.minimum(grid, 0.0)
    least = boxes.low @ plus.T + boxes.high @ minus.T  # (boxes, K), of each sum
    most = boxes.high @ plus.T + boxes.low @ minus.T
    above, below = least[:, None] - x[:, None], x[:, None] - most[:, None]  # (boxes, n, K)
    near, far = np.maximum(np.maximum(above, below), 0.0), np.maximum(np.abs(above), np.abs(below))
    first = far.argmin(axis=2)[..., None]
    own = np.take_along_axis(near, first, 2)[..., 0]
    np.put_along_axis(near, first, np.inf, 2)
    other = near.min(axis=2)
    settled = np.take_along_axis(far, first, 2)[..., 0] <= other
    by_range = m * np.minimum(own, other) ** 2
    C = np.where(settled[..., None], grid[first[..., 0]], 0.0)  # (boxes, n, T)
    kept = np.where(settled, m, 0.0)
    weighted = C * kept[..., None]
    gram, moment = np.swapaxes(weighted, 1, 2) @ C, weighted.transpose(0, 2, 1) @ x
    at = np.clip((np.linalg.pinv(gram, hermitian=True) @ moment[..., None])[..., 0], boxes.low, boxes.high)
    residual = x - (C @ at[..., None])[..., 0]
    slope = -2 * (weighted.transpose(0, 2, 1) @ residual[..., None])[..., 0]
    fall = np.minimum(slope * (boxes.low - at), slope * (boxes.high - at)).sum(axis=1)
    convex = np.sum(kept * residual**2, axis=1) + fall
    by_both = convex + np.sum(np.where(settled, 0.0, by_range), axis=1)
    return np.asarray(np.maximum(by_range.sum(axis=1), by_both))


def best_sum(
    x: ArrayLike,
    *,
    specs: tuple[QuantSpec, ...],
    weights: ArrayLike | None = None,
    tol: float = 1e-3,
    start: ArrayLike | None = None,
    most: int = 20_000,
) -> Solution:
    """The scales, with the nearest sums, of least squared error of one row; and what no scales bring it below.

    x: finite, taken as one row.  specs: the grids of the T terms, at most 4,096 sums together.  weights: of x's
    shape.  start: scales to begin with, such as those of a heuristic to be graded.  value: T scales >= 0 (0 for a term
    that does not help); objective: sum of weights * (x - sum)^2 with the nearest sums; lower_bound: of all scales in
    [0, 2 max|x|] (for two signed terms no others do better, proofs/05_terms.py).  certified: the gap is at most tol;
    it is not if `most` boxes were looked at before.  Work grows steeply with T: 1 to 3 terms of a few hundred values.

    Raises ArgumentError for weights or sums that do not fit, NotANumberError for values that are not finite.

    >>> solved = best_sum([1.0, 1.25, -0.25], specs=(QuantSpec(2, narrow=True),) * 2)
    >>> sorted(solved.value.round(3).tolist()), bool(solved.objective < 1e-20), solved.certified
    ([1.0, 1.25], True, True)
    """
    X, M, grid = _checked(x, weights, specs)
    T, top = len(specs), 2 * float(np.abs(X).max(initial=0.0))
    if top == 0 or not np.any(M[X != 0]):
        return Solution(np.zeros(T), np.array(0.0), np.array(0.0), True, 0)
    best, value, rounding = np.inf, np.zeros(T), gamma(X.size + 8 * T + 32) * float(np.sum(M * X * X))
    rows = prefixes(X[None], M[None])

    def improve(starts: Array) -> None:
        nonlocal best, value
        found, errors = alternate(rows, np.zeros(len(starts), np.int64), starts, grid)
        alpha = found[errors.argmin()]
        error = float(np.sum(M * (X - nearest_codes(X, alpha, grid) @ alpha) ** 2))
        if error < best:
            best, value = error, alpha

    if start is not None:
        improve(np.asarray(start, np.float64).reshape(1, T))
    boxes, bound, looked = _Boxes(np.zeros((1, T)), np.full((1, T), top)), np.inf, 0
    alike = len(set(specs)) == 1  # terms may change places
    reach = np.abs(grid).max(axis=0)
    some = max(1, ELEMENTS // (X.size * len(grid)))
    while len(boxes.low):
        parts = [_Boxes(boxes.low[i : i + some], boxes.high[i : i + some]) for i in range(0, len(boxes.low), some)]
        least = np.concatenate([_bounds(X, M, grid, part) for part in parts]) - rounding
        looked += least.size
        likely = boxes.only(np.argsort(least, kind="stable")[:8])
        improve((likely.low + likely.high) / 2)
        tight = np.max((boxes.high - boxes.low) / top, axis=1) < 2.0**-40
        done = (least >= best * (1 - tol)) | tight
        if looked > most:
            done[:] = True
        bound = min(bound, float(least[done].min(initial=np.inf)))
        boxes = boxes.only(~done).halved(reach)
        if alike:
            boxes = boxes.only(np.all(boxes.high[:, :-1] >= boxes.low[:, 1:], axis=1))
    bound = max(min(bound, best), 0.0)
    certified = best - bound <= tol * best + 2 * rounding
    return Solution(value, np.array(best), np.array(bound), bool(certified), looked)


# ---- two terms, every cell ------------------------------------------------------------------------------------


def two_terms_by_vertices(x: ArrayLike, specs: tuple[QuantSpec, QuantSpec]) -> Solution:
    """The best two scales of a few values, by looking at every cell of the plane that they lie in.

    The codes of x change where x = (c + c') / 2 . alpha for two vectors of codes: on lines.  Every cell of their
    arrangement in the quadrant of scales >= 0 has a corner, where two lines or axes meet; beside the corner the
    elements of its lines take either of their codes.  Values are moved by about 1e-12 of themselves, so that no three
    lines meet.  Work: (lines of n values)^2, so n up to about 12.

    >>> float(two_terms_by_vertices([3.0, -1.0, 2.0], (QuantSpec(2, narrow=True),) * 2).objective) < 1e-20
    True
    """
    X, M, grid = _checked(x, None, specs)
    moved = X * (1 + 1e-12 * np.random.default_rng(0).uniform(-1, 1, X.size))
    i, j = np.triu_indices(len(grid), 1)
    normals, which = np.unique((grid[i] + grid[j]) / 2, axis=0, return_inverse=True)
    lines = np.concatenate([np.tile(normals, (X.size, 1)), np.eye(2)])
    offset = np.concatenate([np.repeat(moved, len(normals)), np.zeros(2)])
    owner = np.concatenate([np.repeat(np.arange(X.size), len(normals)), [-1, -1]])
    normal = np.concatenate([np.tile(np.arange(len(normals)), X.size), [-1, -1]])
    pairs = [(grid[i[which.ravel() == k]], grid[j[which.ravel() == k]]) for k in range(len(normals))]
    best, value, looked = float(np.sum(X * X)), np.zeros(2), 0
    for a in range(len(lines)):
        for b in range(a):
            det = lines[a, 0] * lines[b, 1] - lines[a, 1] * lines[b, 0]
            if det == 0:
                continue
            corner = np.array([offset[a] * lines[b, 1] - lines[a, 1] * offset[b], 0.0])
            corner = np.array([corner[0], lines[a, 0] * offset[b] - offset[a] * lines[b, 0]]) / det
            if np.any(corner < -1e-9):
                continue
            C = nearest_codes(moved, np.maximum(corner, 0.0), grid)
            for first in _sides(owner[a], normal[a], pairs):
                for second in _sides(owner[b], normal[b], pairs):
                    D = C.copy()
                    for k, code in (first, second):
                        if k >= 0:
                            D[k] = code
                    alpha = best_scales(X, M, D)
                    error = float(np.sum((X - nearest_codes(X, alpha, grid) @ alpha) ** 2))
                    looked += 1
                    if error < best:
                        best, value = error, alpha
    return Solution(value, np.array(best), np.array(best), True, looked)


def _sides(owner: int, normal: int, pairs: list[tuple[Array, Array]]) -> list[tuple[int, Array]]:
    """The codes that an element may take beside its line; one empty choice for an axis."""
    if owner < 0:
        return [(-1, np.zeros(2))]
    return [(int(owner), code) for side in pairs[normal] for code in side]


# ---- any values at all ----------------------------------------------------------------------------------------


def codebook_bound(x: ArrayLike, count: int, *, weights: ArrayLike | None = None) -> float:
    """The least weighted squared error of any `count` values: no sums of terms with as many values do better.

    A dynamic programme over the sorted row, each value serving a run of elements (Wang and Song 2011), rounded down
    by what its sums may err.  Work: count * n^2 elements at the most, so n up to a few thousand.

    >>> codebook_bound([1.0, 1.0, 5.0, 7.0], 2) <= 2.0 <= codebook_bound([1.0, 1.0, 5.0, 7.0], 2) + 1e-12
    True
    """
    X = np.asarray(x, np.float64).ravel()
    M = np.ones(X.shape) if weights is None else np.asarray(weights, np.float64).ravel()
    order = np.argsort(X, kind="stable")
    X, M = X[order], M[order]
    n = X.size
    if count < 1 or not n:
        return 0.0
    centre = X.mean()
    sums = [np.append(0.0, np.cumsum(M * (X - centre) ** k)) for k in range(3)]
    w, s, e = (v[None, :] - v[:, None] for v in sums)  # of elements i..j-1
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(w > 0, e - s * s / w, 0.0)
    cost = np.where(np.arange(n + 1)[:, None] <= np.arange(n + 1), np.maximum(cost, 0.0), np.inf)
    least = cost[0]
    for _ in range(min(count, n) - 1):
        least = (least[:, None] + cost).min(axis=0)
    return max(float(least[-1]) - gamma(8 * n + 16) * float(sums[2][-1] + np.sum(M) * centre**2), 0.0)
