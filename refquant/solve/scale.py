"""The best scale of a tensor under a named objective, and with it the best zero point, certified.

Letters: x values, m weights, alpha scale, c codes, z zero point; rows are the elements that share one scale.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..arith.exact import gamma
from ..errors import ArgumentError, NotANumberError, complaint
from ..quant.granularity import PerChannel
from ..quant.quantizer import parameters, quantize, reals
from ..quant.spec import QuantSpec
from .affine import Integers, ends, solve_affine
from .branch import relax_errors, solve_errors
from .search import search_rows, sort_rows
from .solution import Solution
from .sweep import NEAREST, OFFSETS, Array, Swept, sweep_rows

__all__ = ["OBJECTIVES", "Objective", "least_scales", "solve_scale", "squared_error"]

MOST_BITS = 16

AT_ONCE = 1 << 20
"""Breakpoints that `sweep_rows` lists at once, and places that `search_rows` looks up at once."""

SHORT = 256
"""Breakpoints of a row up to which listing them all is the faster way, rounding to nearest."""

BLOCK = 1 << 16
"""Elements quantized at once: they stay in cache."""


def squared_error(X: Array, M: Array, alpha: Array, spec: QuantSpec, z: Integers | int = 0) -> Array:
    """sum m (x - alpha (c - z))^2 for each row of X, with c the codes of x at that row's scale and zero point.

    >>> squared_error(np.array([[0.4, 1.0]]), np.ones((1, 2)), np.array([1.0]), QuantSpec(4)).round(12)
    array([0.16])
    """
    some, spec = max(1, BLOCK // max(1, X.shape[1])), replace(spec, granularity=PerChannel(0))
    zero, errors = np.broadcast_to(z, alpha.shape), np.zeros(len(X))
    for i in range(0, len(X), some):
        part = slice(i, i + some)
        s, z0 = alpha[part, None], zero[part]
        for j in range(0, X.shape[1], BLOCK):
            x = X[part, j : j + BLOCK]
            e = x - s * (quantize(x, alpha[part], z0, spec=spec) - z0[:, None])
            errors[part] += np.sum(M[part, j : j + BLOCK] * e * e, axis=1)
    return errors


# ---- squared error --------------------------------------------------------------------------------------------


def _swept(X: Array, M: Array, last: Integers, offset: tuple[float, float], energy: Array, tol: float) -> Swept:
    """The sweep of each row, in batches, by the faster of two ways."""
    rows, n = X.shape
    K = int(last.max(initial=0))
    short = n * K <= (SHORT if offset == NEAREST else AT_ONCE)
    lookups = 4 * int(last.max(axis=0).sum()) * max(1, K).bit_length()
    batch = max(1, AT_ONCE // max(1, n * K if short else lookups))
    done = []
    for start in range(0, rows, batch):
        part = slice(start, start + batch)
        if short:
            done.append(sweep_rows(X[part], M[part], last[part], offset))
        else:
            sorted_rows = sort_rows(X[part], None if np.all(M[part] == 1) else M[part])
            done.append(search_rows(sorted_rows, last[part], offset, energy[part], tol))
    scales, ceiling, error = (np.concatenate([d[i] for d in done]) for i in range(3))
    return Swept(scales, ceiling, error, sum(d.evaluations for d in done))


def _refined(X: Array, M: Array, z: Integers, scales: Array, spec: QuantSpec) -> tuple[Array, Array]:
    """The candidate scale of least squared error in each row, below 1 in magnitude, measured by quantizing with it."""
    scales = np.where((scales > 2 * np.finfo(np.float64).smallest_normal) & (scales < 2), scales, 1.0)
    if OFFSETS[spec.rounding] != NEAREST:  # the optimum usually sits on a breakpoint: try the floats on both sides
        scales = np.concatenate([scales, np.nextafter(scales, 0), np.nextafter(scales, np.inf)], axis=1)
    errors = np.stack([squared_error(X, M, alpha, spec, z) for alpha in scales.T], axis=1)
    best = errors.argmin(axis=1)[:, None]
    return np.take_along_axis(scales, best, 1)[:, 0], np.take_along_axis(errors, best, 1)[:, 0]


def _normal(X: Array) -> tuple[Array, Integers]:
    """Rows scaled by powers of two so that their largest magnitudes lie in [1/2, 1), and the exponents."""
    _, exponent = np.frexp(np.abs(X).max(axis=1, initial=0.0))
    return np.ldexp(X, -exponent[:, None]), exponent


def _least(n: int, energy: Array, ceiling: Array) -> tuple[Array, Array]:
    """The least squared error that a gain of at most `ceiling` leaves, and the rounding of the energy."""
    rounding = gamma(n + 8) * energy
    return np.maximum(energy - rounding - ceiling, 0.0), rounding


def _solve_mse(X: Array, M: Array, z: Integers, spec: QuantSpec, tol: float, p: float) -> Solution:
    """Least weighted squared error of rows."""
    X, exponent = _normal(X)
    energy = np.einsum("ij,ij,ij->i", M, X, X)
    swept = _swept(X, M, ends(spec, z, z), OFFSETS[spec.rounding], energy, tol)
    scale, objective = _refined(X, M, z, swept.scales, spec)
    bound, rounding = _least(X.shape[1], energy, swept.ceiling)
    bound = np.minimum(bound, objective)
    certified = bool(np.all(objective - bound <= tol * objective + 2 * (rounding + swept.error)))
    scale = np.maximum(np.ldexp(scale, np.where(energy > 0, exponent, 0)), np.finfo(np.float64).smallest_subnormal)
    with np.errstate(over="ignore", under="ignore"):  # squares of the largest floats are infinite
        objective, bound = (np.ldexp(v, 2 * exponent) for v in (objective, bound))
    return Solution(scale, objective, bound, certified, swept.evaluations)


def _relax_mse(X: Array, M: Array, last: Integers, tol: float, p: float) -> Array:
    """What no scale brings the squared error below, when rounding to nearest on codes that end at `last`."""
    X, exponent = _normal(X)
    energy = np.einsum("ij,ij,ij->i", M, X, X)
    swept = _swept(X, M, last, NEAREST, energy, max(tol, 1e-3))
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.ldexp(_least(X.shape[1], energy, swept.ceiling)[0], 2 * exponent))


def least_scales(X: Array, M: Array, last: int) -> Array:
    """The scale of least weighted squared error of each row on the grid -last..last, rounding to nearest.

    >>> least_scales(np.array([[0.9, -1.1, 2.0]]), np.ones((1, 3)), 1).round(6).tolist()
    [1.333333]
    """
    X, exponent = _normal(X)
    energy = np.einsum("ij,ij,ij->i", M, X, X)
    swept = _swept(X, M, np.full((len(X), 2), last), NEAREST, energy, 0.0)
    return np.ldexp(np.where(energy > 0, swept.scales[:, 0], 1.0), exponent)


# ---- objectives -----------------------------------------------------------------------------------------------


class Objective(NamedTuple):
    """How rows are solved with given zero points, and bounded over all zero points of an interval."""

    solve: Callable[[Array, Array, Integers, QuantSpec, float, float], Solution]  # (X, M, z, spec, tol, p)
    relax: Callable[[Array, Array, Integers, float, float], Array]  # (X, M, last, tol, p)


OBJECTIVES: dict[str, Objective] = {
    "mse": Objective(_solve_mse, _relax_mse),
    "power": Objective(
        lambda X, M, z, spec, tol, p: solve_errors(X, M, z, spec, max(tol, 1e-6), p),
        relax_errors,
    ),
    "max": Objective(
        lambda X, M, z, spec, tol, p: solve_errors(X, M, z, spec, max(tol, 1e-12), np.inf),
        lambda X, M, last, tol, p: relax_errors(X, M, last, tol, np.inf),
    ),
}


def solve_scale(
    x: ArrayLike,
    *,
    spec: QuantSpec,
    objective: str = "mse",
    weights: ArrayLike | None = None,
    method: str = "exact",
    tol: float = 0.0,
    p: float = 2.0,
    zero_point: ArrayLike | None = 0,
) -> Solution:
    """The scale that minimises the quantization error of x, with a proved lower bound on that error.

    x: finite reals of any shape.  weights: of x's shape, finite and >= 0 (default 1).  value, objective, lower_bound
    and zero_point have the granularity's parameter shape; value in reals per step, zero_point in codes.
    objective "mse": sum of weights * (x - scale * (code - zero_point))^2, exact quotient, saturating; "power":
    sum of weights * |error|^p, p from 1 to 4, to a relative gap of max(tol, 1e-6); "max": the largest |error| of an
    element of positive weight, to max(tol, 1e-12).
    zero_point: given, integers of the parameter shape (or one for all) in [qmin, qmax]; or None: found with the
    scale, the best of all pairs.
    method "exact": the global optimum among all scales.  tol > 0 lets long rows stop once no scale can be
    better by more than that fraction.  The objective is measured by quantizing with the scale returned;
    `certified` says that the gap to the bound is no more than tol plus the rounding of the sums.
    A row of zeros (or empty) has scale 1 and objective 0.

    Raises ArgumentError for unknown names, weights or shapes that do not fit, a zero point or a p out of range,
    stochastic rounding, more than 16 bits, and specs whose quotient is not exact or whose overflow does not saturate;
    NotANumberError for values that are not finite.  Source: proofs/04_scale.py for "mse", `refquant/solve/branch.py`
    for the others, `refquant/solve/affine.py` for zero points.

    >>> solution = solve_scale([0.9, -1.1, 2.0], spec=QuantSpec(2, narrow=True))  # ternary
    >>> float(solution.value), solution.certified  # the mean of the magnitudes kept
    (1.3333333333333333, True)
    >>> affine = solve_scale([-1.0, 0.0, 6.0], spec=QuantSpec(3, signed=False), zero_point=None)
    >>> float(affine.value), int(affine.zero_point), float(affine.objective)
    (1.0, 1, 0.0)
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
    if not 1 <= p <= 4:
        raise ArgumentError(complaint(f"p={p}", "from 1 to 4", "solve_scale(objective='power')"))
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
    z = None if zero_point is None else _zero_points(zero_point, X.shape, shape, spec)
    if not R.size:
        zeros = np.zeros(shape, np.int64) if z is None else z.reshape(shape)
        return Solution(np.ones(shape), np.zeros(shape), np.zeros(shape), True, 0, zeros)
    rows = OBJECTIVES[objective]
    if z is None:
        solved = solve_affine(
            R,
            spec,
            tol,
            lambda row, zero: rows.solve(R[row], W[row], zero, spec, tol, p),
            lambda row, last: rows.relax(R[row], W[row], last, tol, p),
        )
    else:
        solved = replace(rows.solve(R, W, z, spec, tol, p), zero_point=z)
    value, cost, bound = (v.reshape(shape) for v in (solved.value, solved.objective, solved.lower_bound))
    assert solved.zero_point is not None  # either way
    return replace(solved, value=value, objective=cost, lower_bound=bound, zero_point=solved.zero_point.reshape(shape))


def _zero_points(given: ArrayLike, shape: tuple[int, ...], wanted: tuple[int, ...], spec: QuantSpec) -> Integers:
    """One zero point a row, from one for all or an array of the parameters' shape."""
    parameters(1.0, given, shape, replace(spec, zero_point_order="after"))  # the checks of `quantize`
    z = np.asarray(np.broadcast_to(given, wanted), np.int64)
    return z.reshape(-1)
