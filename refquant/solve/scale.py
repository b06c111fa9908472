"""The best scale of a tensor under a named objective, certified.

Letters: x values, m weights, alpha scale, c codes; rows are the elements that share one scale.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from ..arith.exact import gamma
from ..errors import ArgumentError, NotANumberError, complaint
from ..quant.granularity import PerChannel
from ..quant.quantizer import quantize, reals
from ..quant.spec import QuantSpec
from .branch import solve_maximum, solve_power
from .solution import Solution
from .sweep import OFFSETS, Array, Grid, Swept, sweep_large, sweep_rows

__all__ = ["OBJECTIVES", "solve_scale", "squared_error"]

MOST_BITS = 16

ROWS_AT_ONCE = 1 << 20
"""Breakpoints listed at once: more in one row go to `sweep_large`, more rows to the next batch."""


def squared_error(X: Array, M: Array, alpha: Array, spec: QuantSpec) -> Array:
    """sum m (x - alpha c)^2 for each row of X, with c the codes of x at that row's scale.

    >>> squared_error(np.array([[0.4, 1.0]]), np.ones((1, 2)), np.array([1.0]), QuantSpec(4)).round(12)
    array([0.16])
    """
    codes = quantize(X, alpha, spec=replace(spec, granularity=PerChannel(0)))
    return np.asarray(np.sum(M * (X - alpha[:, None] * codes) ** 2, axis=1))


def _refined(X: Array, M: Array, swept: Swept, spec: QuantSpec, grid: Grid) -> tuple[Array, Array]:
    """The candidate scale of least squared error in each row, measured by quantizing with it."""
    scales = swept.scales
    if not grid.nearest:  # the optimum usually sits on a breakpoint: try the floats on both sides of it
        scales = np.concatenate([scales, np.nextafter(scales, 0), np.nextafter(scales, np.inf)], axis=1)
    tiny = np.finfo(np.float64).smallest_normal
    scales = np.where(scales > tiny, scales, 1.0)
    errors = np.stack([squared_error(X, M, alpha, spec) for alpha in scales.T], axis=1)
    best = errors.argmin(axis=1)[:, None]
    return np.take_along_axis(scales, best, 1)[:, 0], np.take_along_axis(errors, best, 1)[:, 0]


def _mse(X: Array, M: Array, spec: QuantSpec, tol: float) -> Solution:
    """Least weighted squared error of rows, by the breakpoint sweep."""
    grid = Grid((spec.qmax, -spec.qmin), OFFSETS[spec.rounding])
    rows, n = X.shape
    _, exponent = np.frexp(np.abs(X).max(axis=1, initial=0.0))
    X = np.ldexp(X, -exponent[:, None])  # the largest magnitude of each row now lies in [1/2, 1)
    events = max(1, n * max(grid.last))
    batch = max(1, ROWS_AT_ONCE // events)
    scale, objective, ceiling, error = (np.empty(rows) for _ in range(4))
    evaluations = 0
    for start in range(0, rows, batch):
        part = slice(start, start + batch)
        large = events > ROWS_AT_ONCE
        swept = sweep_large(X[start], M[start], grid, tol) if large else sweep_rows(X[part], M[part], grid)
        scale[part], objective[part] = _refined(X[part], M[part], swept, spec, grid)
        ceiling[part], error[part] = swept.ceiling, swept.error
        evaluations += swept.evaluations
    energy = np.sum(M * X * X, axis=1)
    rounding = gamma(n + 8) * energy
    bound = np.minimum(np.maximum(energy - rounding - ceiling, 0.0), objective)
    certified = bool(np.all(objective - bound <= tol * objective + 2 * (rounding + error)))
    back = 2 * exponent
    scale = np.maximum(np.ldexp(scale, np.where(energy > 0, exponent, 0)), np.finfo(np.float64).smallest_subnormal)
    with np.errstate(over="ignore", under="ignore"):  # squares of the largest floats are infinite
        return Solution(scale, np.ldexp(objective, back), np.ldexp(bound, back), certified, evaluations)


OBJECTIVES: dict[str, Callable[[Array, Array, QuantSpec, float, float], Solution]] = {
    "mse": lambda X, M, spec, tol, p: _mse(X, M, spec, tol),
    "power": solve_power,
    "max": lambda X, M, spec, tol, p: solve_maximum(X, M, spec, tol),
}
"""name -> solver of rows: (X, weights, spec, tol, p), X and weights of shape (rows, n)."""


def solve_scale(
    x: ArrayLike,
    *,
    spec: QuantSpec,
    objective: str = "mse",
    weights: ArrayLike | None = None,
    method: str = "exact",
    tol: float = 0.0,
    p: float = 2.0,
) -> Solution:
    """The scale that minimises the quantization error of x, with a proved lower bound on that error.

    x: finite reals of any shape.  weights: of x's shape, finite and >= 0 (default 1).  value, objective
    and lower_bound have the granularity's parameter shape; value in reals per step.
    objective "mse": sum of weights * (x - scale * code)^2, zero point 0, exact quotient, saturating; "power":
    sum of weights * |x - scale * code|^p, p from 1 to 4, to a relative gap of max(tol, 1e-6); "max": the largest
    |x - scale * code| of an element of positive weight, to max(tol, 1e-12).
    method "exact": the global optimum among all scales.  tol > 0 lets long rows stop once no scale can be
    better by more than that fraction.  The objective is measured by quantizing with the scale returned;
    `certified` says that the gap to the bound is no more than tol plus the rounding of the sums.
    A row of zeros (or empty) has scale 1 and objective 0.

    Raises ArgumentError for unknown names, weights or shapes that do not fit, stochastic rounding, more than
    16 bits, and specs whose quotient is not exact or whose overflow does not saturate; NotANumberError for
    values that are not finite.  Source: proofs/04_scale.py for "mse",
    `refquant/solve/branch.py` for the others.

    >>> solution = solve_scale([0.9, -1.1, 2.0], spec=QuantSpec(2, narrow=True))  # ternary
    >>> float(solution.value), solution.certified  # the mean of the magnitudes kept
    (1.3333333333333333, True)
    """
    for name, got, known in (("objective", objective, tuple(OBJECTIVES)), ("method", method, ("exact",))):
        if got not in known:
            raise ArgumentError(complaint(f"{name}={got!r}", f"one of {', '.join(known)}", "solve_scale"))
    if spec.quotient != "exact" or spec.overflow != "saturate" or spec.rounding not in OFFSETS:
        got = f"quotient={spec.quotient}, overflow={spec.overflow}, rounding={spec.rounding}"
        should = "exact, saturate and one of the nine deterministic modes"
        raise ArgumentError(complaint(got, should, "solve_scale", "solve with dataclasses.replace(spec, ...)"))
    if spec.bits > MOST_BITS:
        got = f"bits={spec.bits}"
        raise ArgumentError(complaint(got, f"at most {MOST_BITS}: every code is a breakpoint", "solve_scale"))
    if not (np.isfinite(tol) and tol >= 0):
        raise ArgumentError(complaint(f"tol={tol}", "finite and >= 0", "solve_scale"))
    X = reals(x)
    M = np.ones(X.shape) if weights is None else reals(weights, "weights")
    if X.shape != M.shape:
        got, should = f"weights of shape {M.shape}", f"x's shape {X.shape}"
        raise ArgumentError(complaint(got, should, "solve_scale"))
    if not np.all(np.isfinite(X)):
        raise NotANumberError(complaint("NaN or infinity in x", "finite values", "solve_scale", "clean the tensor"))
    if not np.all(np.isfinite(M) & (M >= 0)):
        raise ArgumentError(complaint("weights", "finite and >= 0", "solve_scale"))
    shape = spec.granularity.parameter_shape(X.shape)
    R, W = (spec.granularity.rows(v).astype(np.float64) for v in (X, M))
    if not R.size:
        return Solution(np.ones(shape), np.zeros(shape), np.zeros(shape), True, 0)
    solved = OBJECTIVES[objective](R, W, spec, tol, p)
    value, cost, bound = (v.reshape(shape) for v in (solved.value, solved.objective, solved.lower_bound))
    return replace(solved, value=value, objective=cost, lower_bound=bound)
