"""The codes of least output error, exactly: min over q in a box of |X (w - alpha q)|^2, and what heuristics leave.

Letters: X inputs (samples, d), w a row of weights, u = w / alpha, R upper triangular with R'R = X'X, and c_i the best
real code of input i once the codes j > i are fixed: c_i = u_i + sum over j > i of R_ij (u_j - q_j) / R_ii.

The error is alpha^2 sum_i R_ii^2 (c_i - q_i)^2: each term depends on the codes from i on, so a search from the last
input to the first may leave a branch as soon as its part of the sum is above the best (sphere decoding, Schnorr and
Euchner 1994; Agrell et al. 2002).  Its first descent, which takes the nearest code at every step, is what sequential
error correction does in that order (GPTQ; Babai's nearest plane).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from ..arith.exact import gamma
from ..arith.rounding import MODES, round_array
from ..errors import ArgumentError, NotANumberError, complaint
from ..quant.quantizer import reals
from ..quant.spec import QuantSpec
from .solution import Solution

__all__ = ["MOST_INPUTS", "ROUNDINGS", "best_rounding", "rounding_error"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

MOST_INPUTS = 16


def rounding_error(codes: ArrayLike, w: ArrayLike, scale: float, inputs: ArrayLike) -> float:
    """|X (w - alpha q)|^2, summed over samples.

    >>> rounding_error([1, 0], [0.6, 0.4], 1.0, [[1.0, 1.0]])
    0.0
    """
    residual = np.asarray(inputs, np.float64) @ (np.asarray(w, np.float64) - scale * np.asarray(codes, np.float64))
    return float(residual @ residual)


# ---- heuristics -----------------------------------------------------------------------------------------------


def _rounded(u: Array, spec: QuantSpec) -> Codes:
    return np.asarray(np.clip(round_array(u, spec.rounding), spec.qmin, spec.qmax), np.int64)


def _nearest(R: Array, u: Array, spec: QuantSpec) -> Codes:
    """Each weight alone."""
    return _rounded(u, spec)


def _centre(R: Array, u: Array, q: Array, i: int) -> float:
    """The best real code of input i, given those after it; u_i where the input says nothing new."""
    return float(u[i] + (R[i, i + 1 :] @ (u[i + 1 :] - q[i + 1 :]) / R[i, i] if R[i, i] else 0.0))


def _sequential(R: Array, u: Array, spec: QuantSpec) -> Codes:
    """From the last input to the first, each rounded once the error of those after it is spread over it."""
    q = np.zeros_like(u)
    for i in reversed(range(len(u))):
        q[i] = _rounded(np.array([_centre(R, u, q, i)]), spec)[0]
    return q.astype(np.int64)


def _relaxed(R: Array, u: Array, spec: QuantSpec) -> Codes:
    """The best real codes in the box, rounded."""
    found = optimize.lsq_linear(R, R @ u, (spec.qmin, spec.qmax))
    return _rounded(np.asarray(found.x), spec)


def _descended(R: Array, u: Array, spec: QuantSpec) -> Codes:
    """From the sequential codes, one code up or down at a time while that helps."""
    q = _sequential(R, u, spec).astype(np.float64)
    H, best = R.T @ R, np.inf
    while True:
        slope = 2 * H @ (q - u)
        change = np.array([slope + np.diag(H), -slope + np.diag(H)])  # of the error, by +1 and by -1
        change[0, q >= spec.qmax] = change[1, q <= spec.qmin] = np.inf
        way, i = np.unravel_index(change.argmin(), change.shape)
        moved = q.copy()
        moved[i] += (1, -1)[way]
        now = float(np.sum((R @ (moved - u)) ** 2))
        if change[way, i] >= 0 or now >= min(best, float(np.sum((R @ (q - u)) ** 2))):
            return q.astype(np.int64)
        q, best = moved, now


ROUNDINGS: dict[str, Callable[[Array, Array, QuantSpec], Codes]] = {
    "nearest": _nearest,
    "sequential": _sequential,
    "relaxed": _relaxed,
    "descended": _descended,
}
"""name -> codes from (R, u, spec): heuristics that the exact answer grades."""


# ---- the exact answer -----------------------------------------------------------------------------------------


def _search(R: Array, u: Array, spec: QuantSpec, q: Array, least: float) -> tuple[Array, float, int]:
    """Depth first, codes by distance from their centre; only what is below `least` is looked at."""
    d, best, visited = len(u), q.copy(), 0
    codes = np.arange(spec.qmin, spec.qmax + 1.0)
    trial = q.copy()

    def descend(i: int, spent: float) -> None:
        nonlocal best, least, visited
        if i < 0:
            best, least = trial.copy(), spent
            return
        centre = _centre(R, u, trial, i)
        costs = R[i, i] ** 2 * (centre - codes) ** 2
        for k in np.argsort(np.abs(centre - codes), kind="stable"):
            if spent + costs[k] >= least:
                return
            visited += 1
            trial[i] = codes[k]
            descend(i - 1, spent + float(costs[k]))

    descend(d - 1, 0.0)
    return best, least, visited


def best_rounding(w: ArrayLike, scale: float, *, spec: QuantSpec, inputs: ArrayLike) -> Solution:
    """The codes of one row of weights with the least squared error at its output, found exactly.

    w: shape (d,), d at most 16; scale: reals per step; inputs: shape (samples, d), the rows that w meets, zero
    point 0.  value: codes, int64, shape (d,).  objective: |X (w - alpha q)|^2 of them; lower_bound: the same less
    what rounding of the search's sums may hide; evaluations: codes tried.  Inputs that depend on each other are
    allowed.  No samples: every code is as good, and the nearest are returned.

    Raises ArgumentError for shapes that do not fit, more than 16 inputs, a scale not finite and > 0, and a spec that
    does not saturate or has no deterministic rounding; NotANumberError for values that are not finite.

    >>> X = [[1.0, 1.0], [1.0, 0.9]]  # nearest gives 1, 1 for 0.6, 0.6; together they need 1, 0
    >>> best_rounding([0.6, 0.6], 1.0, spec=QuantSpec(2), inputs=X).value.tolist()
    [1, 0]
    """
    W, X = reals(w, "w").astype(np.float64), reals(inputs, "inputs").astype(np.float64)
    if W.ndim != 1 or not 1 <= W.size <= MOST_INPUTS or X.ndim != 2 or X.shape[1] != W.size:
        got = f"w of shape {W.shape}, inputs of shape {X.shape}"
        raise ArgumentError(complaint(got, f"(d,) and (samples, d), d from 1 to {MOST_INPUTS}", "best_rounding"))
    if not (np.all(np.isfinite(W)) and np.all(np.isfinite(X))):
        raise NotANumberError(complaint("NaN or infinity", "finite values", "best_rounding", "clean the tensor"))
    if not (np.isfinite(scale) and scale > 0):
        raise ArgumentError(complaint(f"scale={scale}", "finite and > 0", "best_rounding"))
    if spec.rounding not in MODES or spec.overflow != "saturate":
        got = f"rounding={spec.rounding}, overflow={spec.overflow}"
        raise ArgumentError(complaint(got, "deterministic, saturate", "best_rounding"))
    u = W / scale
    rows = np.concatenate([X, np.zeros((max(0, W.size - len(X)), W.size))])
    R: Array = np.asarray(np.linalg.qr(rows, mode="r"))
    starts = [ROUNDINGS[name](R, u, spec) for name in ROUNDINGS]
    errors = [rounding_error(q, W, scale, X) for q in starts]
    first = starts[int(np.argmin(errors))]
    # The triangle's entries err by about d^1.5 u |X|, so its sums by less than this; branches within it are searched.
    energy = float(np.sum(X * X)) * float(np.max(np.abs(u)) + np.max(np.abs([spec.qmin, spec.qmax]))) ** 2 * W.size
    slack = gamma(64 * W.size**2) * energy
    q, _, visited = _search(R, u, spec, first.astype(np.float64), min(errors) / scale**2 + slack)
    candidates = [first, q.astype(np.int64)]
    objective, value = min((rounding_error(c, W, scale, X), tuple(c.tolist())) for c in candidates)
    bound = max(0.0, objective - 2 * slack * scale**2)
    return Solution(np.array(value, np.int64), np.array(objective), np.array(bound), True, visited)
