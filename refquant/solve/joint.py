"""Scales of several layers together, over a loss that is only known by its values.

Letters: s the scales (> 0), u = log s, f the loss, k the iteration.

All three drivers work on u, so that steps are relative and scales stay positive, keep every evaluation in order, and
return the best point seen, which need not be the last.  The loss of a quantized network is piecewise smooth with many
small steps; nothing here is certified, and small cases are graded against a dense grid (tests/test_joint.py).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from ..errors import ArgumentError, complaint

__all__ = ["DRIVERS", "Trajectory", "minimize_scales"]

Array = NDArray[np.float64]
Loss = Callable[[Array], float]


class Trajectory(NamedTuple):
    """scales: the best seen.  loss: its value.  tried: every point, shape (evaluations, n); losses: their values."""

    scales: Array
    loss: float
    tried: Array
    losses: Array

    @property
    def evaluations(self) -> int:
        """How often the loss was computed."""
        return len(self.losses)

    def best_so_far(self) -> Array:
        """The least loss after 1, 2, ... evaluations."""
        return np.minimum.accumulate(self.losses)


class _Stop(Exception):  # noqa: N818 (no error: the evaluations are used up)
    pass


class _Counted:
    """The loss as a function of u, every call kept."""

    def __init__(self, loss: Loss, most: int) -> None:
        self.loss, self.most = loss, most
        self.tried: list[Array] = []
        self.losses: list[float] = []

    def __call__(self, u: Array) -> float:
        if len(self.losses) >= self.most:
            raise _Stop
        s = np.exp(np.asarray(u, np.float64))
        value = float(self.loss(s))
        self.tried.append(s)
        self.losses.append(value if np.isfinite(value) else np.inf)
        return self.losses[-1] if np.isfinite(self.losses[-1]) else 1e300

    def best(self) -> Array:
        return np.log(self.tried[int(np.argmin(self.losses))])


REACH = np.log(2.0)
"""How far one line search looks: half to twice a scale."""


def _powell(f: _Counted, u: Array, rounds: int) -> None:
    """Conjugate directions, as LAPQ has it: line searches along each, then along the whole move (Powell 1964)."""
    bounds = [(v - REACH, v + REACH) for v in u]
    optimize.minimize(f, u, method="Powell", bounds=bounds, options={"maxiter": rounds, "xtol": 1e-3, "ftol": 1e-6})


def _coordinate(f: _Counted, u: Array, rounds: int) -> None:
    """One scale after another by a bounded line search, round after round."""

    def search(i: int, at: Array) -> None:
        def along(v: float) -> float:
            return f(np.where(np.arange(at.size) == i, v, at))

        reach = (at[i] - REACH, at[i] + REACH)
        optimize.minimize_scalar(along, bounds=reach, method="bounded", options={"xatol": 1e-3})

    for _ in range(rounds):
        before = min(f.losses)
        for i in range(u.size):
            search(i, f.best())
        if min(f.losses) >= before:
            break


def _features(d: Array) -> Array:
    """1, d_i, d_i d_j: the columns of a quadratic in d, shape (points, columns)."""
    i, j = np.triu_indices(d.shape[1])
    return np.concatenate([np.ones((len(d), 1)), d, d[:, i] * d[:, j]], axis=1)


def _quadratic(f: _Counted, u: Array, rounds: int) -> None:
    """A quadratic fitted to points of a trust region, minimized in it; the region follows how well it foretold.

    Least squares over more points than the model has columns smooth the steps of the loss.
    """
    n, radius = u.size, 0.4
    count = 2 * (1 + n + n * (n + 1) // 2)
    rng = np.random.default_rng(0)  # the points only need to be in general position
    f(u)
    for _ in range(rounds):
        centre = f.best()
        D = rng.uniform(-1, 1, (count, n)) * radius
        values = np.array([f(centre + d) for d in D])
        here = min(f.losses)
        finite = values < 1e299
        weights = np.linalg.lstsq(_features(D[finite]), values[finite], rcond=None)[0]
        g, H, (i, j) = weights[1 : n + 1], np.zeros((n, n)), np.triu_indices(n)
        H[i, j] = weights[n + 1 :]
        H = H + H.T

        def model(d: Array, g: Array = g, H: Array = H) -> tuple[float, Array]:
            return float(g @ d + d @ H @ d / 2), g + H @ d

        step = optimize.minimize(model, np.zeros(n), jac=True, bounds=[(-radius, radius)] * n)
        gained = here - f(centre + step.x)
        radius = radius * 1.5 if gained > 0.25 * -float(step.fun) > 0 else radius / 2
        if radius < 1e-3:
            break


DRIVERS: dict[str, Callable[[_Counted, Array, int], None]] = {
    "powell": _powell,
    "coordinate": _coordinate,
    "quadratic": _quadratic,
}
"""name -> driver of (counted loss, start, rounds)."""


def minimize_scales(
    loss: Loss, start: ArrayLike, *, method: str = "powell", rounds: int = 2, evaluations: int = 10_000
) -> Trajectory:
    """The scales of least loss that a driver finds, with everything that it tried.

    loss: from scales, shape (n,), to a number; what is not finite counts as infinite.  start: n scales > 0.  method:
    "powell", "coordinate", or "quadratic" (a model on a trust region).  rounds: passes over all scales, or models
    fitted.  evaluations: at the most.  Deterministic for a deterministic loss.

    Raises ArgumentError for an unknown method, a start that is not finite and > 0, and counts below 1.
    Source: Nahshan et al. 2021, algorithm 1, for "powell".

    >>> found = minimize_scales(lambda s: float(np.sum((np.log(s) - [0.2, -0.1]) ** 2)), [1.0, 1.0])
    >>> np.log(found.scales).round(2).tolist(), found.evaluations == len(found.tried)
    ([0.2, -0.1], True)
    """
    s = np.asarray(start, np.float64)
    if method not in DRIVERS:
        raise ArgumentError(complaint(f"method={method!r}", f"one of {', '.join(DRIVERS)}", "minimize_scales"))
    if s.ndim != 1 or not s.size or not np.all(np.isfinite(s) & (s > 0)):
        raise ArgumentError(complaint(f"start={s}", "a row of finite scales > 0", "minimize_scales"))
    if rounds < 1 or evaluations < 1:
        got = f"rounds={rounds}, evaluations={evaluations}"
        raise ArgumentError(complaint(got, "at least 1", "minimize_scales"))
    f = _Counted(loss, evaluations)
    try:
        f(np.log(s))
        DRIVERS[method](f, np.log(s), rounds)
    except _Stop:
        pass
    best = int(np.argmin(f.losses))
    return Trajectory(f.tried[best], f.losses[best], np.array(f.tried), np.array(f.losses))
