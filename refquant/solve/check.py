"""Certificates of scales, checked by code that did not make them: other evaluators, another bound.

Letters: f(alpha) the p-norm of the weighted errors, sum(m |x - alpha c|^p)^(1/p), or the largest; c the codes.

The objective is recomputed with the evaluator on integers (`quant.integers`) and rational differences.  The lower
bound is tried on a cover of all scales: with rounding to nearest f is Lipschitz on [l, h] with constant
(sum m |c(l)|^p)^(1/p), codes being largest at l, and below l_0 the clipped parts |x| - l_0 K alone cost enough.  For
the other modes f jumps; there the cover becomes a search for a counter-example, on breakpoints and a dense grid.
"""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arith.exact import gamma
from ..errors import CertificateError, complaint
from ..quant.granularity import PerTensor
from ..quant.integers import quantize_integers
from ..quant.quantizer import quantize
from ..quant.spec import QuantSpec

__all__ = ["check_scale"]

Array = NDArray[np.float64]

COVER = 2**18
"""Scales tried a row at the most."""


def _false(got: str, should: str) -> CertificateError:
    return CertificateError(complaint(got, should, "Solution.check", "do not rely on this solution"))


def _objective(x: Array, m: Array, scale: float, z: int, spec: QuantSpec, p: float) -> float:
    """The objective by the definition on integers; differences rational, one rounding each."""
    s = Fraction(scale)
    errors = [abs(float(Fraction(v) - s * (quantize_integers(v, scale, z, spec) - z))) for v in x.tolist()]
    if math.isinf(p):
        return max((e for e, w in zip(errors, m.tolist(), strict=True) if w > 0), default=0.0)
    return math.fsum(w * e**p for e, w in zip(errors, m.tolist(), strict=True))


def _norms(x: Array, m: Array, K: Array, alpha: Array, p: float) -> tuple[Array, Array]:
    """f and its Lipschitz constant to the right, at each scale, for rounding to nearest."""
    a = np.abs(x)
    c = np.minimum(np.floor(a / alpha[:, None] + 0.5), K)
    e = np.abs(a - alpha[:, None] * c)
    if math.isinf(p):
        kept = m > 0
        return e[:, kept].max(axis=1), c[:, kept].max(axis=1)
    return np.sum(m * e**p, axis=1) ** (1 / p), np.sum(m * c**p, axis=1) ** (1 / p)


def _cover(x: Array, m: Array, z: int, spec: QuantSpec, p: float, bound: float, slack: float) -> None:
    """Nothing, if f^p >= bound (1 - slack) for every scale with this zero point; nearest modes."""
    K = np.where(x > 0, spec.qmax - z, z - spec.qmin).astype(np.float64)
    root = 1.0 if math.isinf(p) else 1 / p
    target, a = (bound * (1 - slack)) ** root, np.abs(x)
    top = 2.001 * float(a.max())
    first = top
    while first > top * 2.0**-60:
        over = np.where(m > 0, np.maximum(a - first * K, 0.0), 0.0)
        clipped = float(over.max()) if math.isinf(p) else float(np.sum(m * over**p)) ** root
        if clipped >= target:
            break
        first /= 2
    edges, tried = np.linspace(first, top, 65), 0
    left, right = edges[:-1], edges[1:]
    while left.size:
        tried += 2 * left.size
        if tried > COVER:
            raise _false(f"a bound that {COVER} scales did not settle", "provable: pass a larger slack")
        (f, L), (g, _) = (_norms(x, m, K, side, p) for side in (left, right))
        for scales, values in ((left, f), (right, g)):
            i = int(values.argmin())
            if values[i] < target:
                got = f"scale {float(scales[i])!r} with objective {float(values[i]) ** (1 / root):.17g}"
                raise _false(got, f"at least the lower bound {bound:.17g}")
        open_ = (f + g) / 2 - L * (right - left) / 2 < target
        left, right = left[open_], right[open_]
        middle = (left + right) / 2
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])


def _search(x: Array, m: Array, z: int, spec: QuantSpec, p: float, bound: float, slack: float) -> None:
    """A search for a scale that is better than the bound: breakpoints, their neighbours, a dense grid."""
    a = np.abs(x[x != 0])
    breaks = (a[:, None] / np.arange(1, 9)).ravel()[:512]
    grid = np.geomspace(float(a.max()) * 1e-3, 2 * float(a.max()), 512)
    for alpha in np.concatenate([breaks, np.nextafter(breaks, 0), grid]).tolist():
        e = np.abs(x - alpha * (quantize(x, alpha, z, spec=spec) - z))
        value = float(e[m > 0].max()) if math.isinf(p) else float(np.sum(m * e**p))
        if value < bound * (1 - gamma(len(x) + 16) * 8):
            raise _false(f"scale {alpha!r} with objective {value:.17g}", f"at least the lower bound {bound:.17g}")


def check_scale(
    value: ArrayLike,
    objective: ArrayLike,
    lower_bound: ArrayLike,
    x: ArrayLike,
    *,
    spec: QuantSpec,
    weights: ArrayLike | None = None,
    p: float = 2.0,
    slack: float = 1e-3,
    zero_point: ArrayLike = 0,
    free: bool = False,
) -> None:
    """Nothing, if a solution of `solve_scale` for x is what it says: objective recomputed, lower bound not refuted.

    value, objective, lower_bound, zero_point: of the granularity's parameter shape.  p: 2 for "mse", infinite for
    "max".  free: the bound is to hold for every zero point, not only for the one given.
    With rounding to nearest no scale at all is below lower_bound (1 - slack), which is proved here; other modes
    are searched.  Meant for rows of up to some thousand elements.

    Raises CertificateError with the scale that refutes it, or the figures that differ.

    >>> try:  # 1 and 1.5 are better served by 1.25
    ...     check_scale(1.0, 0.25, 0.25, [1.0, 1.5], spec=QuantSpec(2, narrow=True))
    ... except CertificateError:
    ...     print("refuted")
    refuted
    """
    X = np.asarray(x, np.float64)
    M = np.ones(X.shape) if weights is None else np.asarray(weights, np.float64)
    rows, mass = spec.granularity.rows(X), spec.granularity.rows(M)
    one = replace(spec, granularity=PerTensor())
    zeros = np.broadcast_to(np.asarray(zero_point, np.int64), np.shape(value))
    figures = (np.asarray(v, np.float64).ravel().tolist() for v in (value, objective, lower_bound))
    for scale, stated, bound, z, r, m in zip(*figures, zeros.ravel().tolist(), rows, mass, strict=True):
        exact = _objective(r, m, scale, z, one, p)
        power = 1.0 if math.isinf(p) else p
        # e errs by half an ulp of x: relative to the norm by that much, then p times in its power
        spread = 2.0**-52 * float(np.abs(r).max(initial=0.0)) * (float(m.sum()) or 1.0) ** (1 / power)
        most = (exact ** (1 / power) + spread) ** power * (1 + gamma(2 * len(r) + 32) * power)
        least = max(exact ** (1 / power) - spread, 0.0) ** power * (1 - gamma(2 * len(r) + 32) * power)
        if not least <= stated <= most:
            raise _false(f"objective={stated:.17g}", f"{exact:.17g}")
        if bound > stated:
            raise _false(f"lower_bound={bound:.17g}", f"at most the objective {stated:.17g}")
        if bound > 0 and np.any((r != 0) & (m > 0)):
            refute = _cover if spec.rounding.startswith("half_") else _search
            for other in range(spec.qmin, spec.qmax + 1) if free else (z,):
                refute(r, m, other, one, p, bound, slack)
