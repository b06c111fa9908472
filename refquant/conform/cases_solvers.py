"""Families of hard inputs for sums of terms and for solvers.

Letters: s scales, q codes, x values.
"""

from collections.abc import Iterator

import numpy as np

from .case import F32, Case, Family, floats_beside

__all__ = ["FAMILIES"]

Generator = np.random.Generator
Cases = Iterator[Case]


def _terms(rng: Generator) -> Cases:
    x = rng.normal(0, 1, 32).astype(F32)
    for bits, scales in ((2, [0.8, 0.27, 0.09]), (3, [0.4, 0.06, 0.009])):
        s = np.array(scales, F32)
        yield Case("encode_terms", {"x": x, "scales": s}, bits=bits, comment="three terms")
        q = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (3, 32))
        yield Case("decode_terms", {"codes": q, "scales": s}, bits=bits, comment="three terms")
    ties = np.array([0.5, -0.5, 1.5, -1.5, 2.5, 0.625, -0.625], F32)
    yield Case("encode_terms", {"x": ties, "scales": np.array([1, 0.25], F32)}, bits=3, comment="ties in each term")
    away = {"rounding": "half_away"}
    inputs = {"x": ties, "scales": np.array([1, 0.25], F32)}
    yield Case("encode_terms", inputs, bits=3, semantics=away, comment="ties that go away from zero")


def _cancellation(rng: Generator) -> Cases:
    s = np.array([1, 1, 2.0**-60], F32)
    q = np.array([[1, 1, 3, -4], [-1, -1, -3, 3], [1, -3, 2, 1]])
    yield Case("decode_terms", {"codes": q, "scales": s}, bits=3, comment="large terms cancel, a tiny one is left")
    s = np.array([2.0**24, 1.0, 2.0**-24], F32)
    q = np.array([[1, 1, -1, 2], [1, -1, 1, 1], [3, 1, 3, -1]])
    yield Case("decode_terms", {"codes": q, "scales": s}, bits=3, comment="terms 2^24 apart")


def _fine_residuals(rng: Generator) -> Cases:
    """Values next to multiples of the first scale, which float32 does not hold: all that is left is its rounding."""
    for first in (F32(0.3), F32(0.7), F32(0.11)):
        x = floats_beside(np.array([3, 5, 7, -3, -5]) * float(first)).ravel()
        left = np.abs(x.astype(np.float64) - np.rint(x / first) * float(first)).max()
        s = np.array([first, left / 6, left / 60], F32)
        yield Case("encode_terms", {"x": x, "scales": s}, bits=4, comment="what is left is below float32's last bit")


def _scales(rng: Generator) -> Cases:
    for bits, n in ((2, 16), (3, 40), (4, 64)):
        yield Case("solve_scale", {"x": rng.normal(0, 1, n)}, bits=bits, comment="normal values")
    for n in (24, 60):
        yield Case("solve_scale", {"x": rng.standard_t(3, n)}, bits=8, comment="hundreds of local minima")
    x = rng.normal(0, 1, 30)
    x[0] = 20.0
    yield Case("solve_scale", {"x": x}, bits=4, comment="one outlier")


def _budgets(rng: Generator) -> Cases:
    for _ in range(4):
        error = np.sort(rng.integers(1, 1000, (6, 3)), axis=1)[:, ::-1].astype(float)
        cost = np.cumsum(rng.integers(1, 20, (6, 3)), axis=1)
        budget = np.asarray(int(cost.min(axis=1).sum() + 17))
        yield Case("allocate", {"error": error, "cost": cost, "budget": budget}, comment="six items")
    error, cost = np.array([[10.0, 0.0], [7.0, 0.0]]), np.array([[0, 3], [0, 2]])
    comment = "the steeper step leaves no room for the better one"
    yield Case("allocate", {"error": error, "cost": cost, "budget": np.asarray(3)}, comment=comment)


FAMILIES: dict[str, Family] = {
    "terms": Family("typical", "sums of three terms, ties in each", "later terms hold the wrong thing", _terms),
    "cancellation": Family(
        "edge", "large terms that cancel, terms 2^24 apart", "the small terms are lost", _cancellation
    ),
    "fine-residual": Family(
        "edge", "later scales at the rounding of float32", "later terms hold noise", _fine_residuals
    ),
    "scale": Family(
        "edge", "hundreds of local minima, an outlier", "a search stops 1 to 100 % above the optimum", _scales
    ),
    "budget": Family("edge", "steps that do not fit", "a greedy choice wastes bits", _budgets),
}
"""flag -> family."""
