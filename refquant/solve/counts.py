"""How many low-bit terms a task needs: a target error, an exact float tensor, the codes of an integer network.

Letters: T terms of b bits, alpha the first scale, L the ratio of a ladder, eps the error allowed.

A count is returned as a `Solution`: value and objective are the count, lower_bound what no count below can do; where
they are equal the count is proved minimal among all sums of such terms, not only among those of one method.
"""

from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, NotANumberError, complaint
from ..quant.granularity import PerTensor
from ..quant.multiterm import rest_of
from ..quant.quantizer import reals
from ..quant.spec import QuantSpec
from .scale import solve_scale
from .solution import Solution
from .sums import best_sum, codebook_bound
from .terms import encode_each

__all__ = ["digits_for_codes", "fewest_terms", "ladder_terms", "slices_for_values"]

Array = NDArray[np.float64]

MOST_TERMS = 1100  # slices of one bit that hold the whole range of float64 are fewer
MOST_VALUES, FEW_SUMS = 2000, 256
"""Elements, and sums of two terms, up to which lower bounds are computed."""


def _counted(count: int, least: int) -> Solution:
    return Solution(np.array(count), np.array(float(count)), np.array(float(least)), count == least, count)


def _levels(spec: QuantSpec) -> int:
    return spec.qmax - spec.qmin + 1


def ladder_terms(eps: float, scale: float, *, spec: QuantSpec) -> int:
    """The least T with which a ladder leaves at most eps of every unclipped value, decided in rational arithmetic.

    It is the least with 2 eps L^(T-1) >= alpha, or without the 2 for floor.  eps: > 0, in the units of the values;
    scale: alpha, that of the first term.  L is the number of codes of later terms (`rest_of(spec)`).

    Raises ArgumentError for an eps or a scale that is not finite and > 0, and for a rounding that has no ladder.

    >>> [ladder_terms(0.3, 1.0, spec=QuantSpec(2, rounding=mode)) for mode in ("half_even", "floor")]
    [2, 2]
    """
    if not (np.isfinite(eps) and eps > 0 and np.isfinite(scale) and scale > 0):
        raise ArgumentError(complaint(f"eps={eps}, scale={scale}", "finite and > 0", "ladder_terms"))
    nearest = spec.rounding.startswith("half_")
    if not nearest and spec.rounding != "floor":
        raise ArgumentError(complaint(f"rounding={spec.rounding}", "to nearest, or floor", "ladder_terms"))
    left, L, T = Fraction(scale) / (2 if nearest else 1), _levels(rest_of(spec)), 1
    while left > Fraction(eps):
        left, T = left / L, T + 1
    return T


def slices_for_values(x: ArrayLike, *, bits: int) -> Solution:
    """The terms of `bits` bits that hold every value of x exactly, by bit slicing, and what no sum can do with fewer.

    All x are multiples of 2^-k with -2^m <= x < 2^m for the least such k and m: ceil((m + k + 1) / bits) slices are
    enough (theory: proofs/05_terms.py).  A sum of T terms has at most 2^(bits T) values, and needs as many as x has
    distinct ones.  No values, or zeros alone, take one term.

    Raises NotANumberError for values that are not finite.

    >>> slices_for_values([0.5, -0.75, 1.25], bits=2).value  # -3..5 quarters: 4 bits
    array(2)
    """
    X = reals(x).astype(np.float64).ravel()
    if not np.all(np.isfinite(X)):
        raise NotANumberError(complaint("NaN or infinity", "finite values", "slices_for_values", "clean the tensor"))
    ratios = [v.as_integer_ratio() for v in np.unique(X).tolist() if v]
    k = max((_twos(d) - _twos(n) for n, d in ratios), default=0)
    codes = [int(Fraction(n, d) * Fraction(2) ** k) for n, d in ratios]
    width = max((1 + (c if c > 0 else -c - 1).bit_length() for c in codes), default=1)
    least = next(T for T in range(1, MOST_TERMS) if 2 ** (bits * T) >= len(np.unique(X)))
    return _counted(-(-width // bits), least)


def _twos(n: int) -> int:
    """How often 2 divides n."""
    return (n & -n).bit_length() - 1


def digits_for_codes(spec: QuantSpec, *, bits: int, signed: bool) -> Solution:
    """The digits of `bits` bits that hold every code of a grid: sums of 2^(bits i) times digits.

    signed False: the highest digit as signed as the grid, the others unsigned.  signed True: all signed, codes of an
    unsigned grid moved down by half their range first.  lower_bound: by counting, and for two signed digits by the ends
    of what they reach (proofs/03_integer_network.py).

    >>> int(digits_for_codes(QuantSpec(8), bits=4, signed=False).value)
    2
    >>> int(digits_for_codes(QuantSpec(8), bits=4, signed=True).value)
    3
    """
    counted = next(T for T in range(1, MOST_TERMS) if 2 ** (bits * T) >= _levels(spec))
    if not signed:
        return _counted(-(-spec.bits // bits), counted)
    half, base = 1 << (bits - 1), 1 << bits
    low, high = spec.qmin, spec.qmax
    if not spec.signed:
        low, high = low - (1 << (spec.bits - 1)), high - (1 << (spec.bits - 1))
    T, reach = 1, 1
    while not (-half * reach <= low and high <= (half - 1) * reach):
        reach, T = reach * base + 1, T + 1
    # base^T sums for as many codes meet each once, so the ends agree: -half S = low, (half - 1) S = high, S all scales
    full = base**counted == _levels(spec) and counted > 1
    return _counted(T, counted + 1 if full and low * (half - 1) != -high * half else counted)


def _least_terms(x: Array, target: float, spec: QuantSpec, rest: QuantSpec) -> int:
    """A count that no sum with a squared error of at most target is below."""
    if float(solve_scale(x, spec=spec).lower_bound) <= target:
        return 1
    T, values = 2, _levels(spec) * _levels(rest)
    if values <= FEW_SUMS and x.size <= MOST_VALUES and float(best_sum(x, specs=(spec, rest)).lower_bound) > target:
        T, values = 3, values * _levels(rest)
    while values < x.size <= MOST_VALUES and codebook_bound(x, values) > target:
        T, values = T + 1, values * _levels(rest)
    return T


def fewest_terms(x: ArrayLike, target: float, *, spec: QuantSpec, method: str = "joint") -> Solution:
    """The fewest terms with which a method brings the squared error of a tensor to `target` or below.

    x: finite, one row (a scale a term for all of it).  target: >= 0, in squared units.  lower_bound: no sums of fewer
    terms can, by the certified scale of one term, the certified sum of two, the best codebook of as many values as
    there are sums.

    Raises ArgumentError where 16 terms do not suffice, and as `encode_terms`.

    >>> fewest_terms([1.0, 1.25, -0.25], 1e-12, spec=QuantSpec(2, narrow=True)).value
    array(2)
    """
    X = reals(x).astype(np.float64).ravel()
    if not (np.isfinite(target) and target >= 0):
        raise ArgumentError(complaint(f"target={target}", "finite and >= 0", "fewest_terms"))
    one = replace(spec, granularity=PerTensor())
    for most in (2, 4, 8, 16):
        sums = encode_each(X, spec=one, terms=most, method=method)
        enough = [t for t, e in enumerate(sums, 1) if np.sum((X - e.decode(np.float64)) ** 2) <= target]
        if enough:
            return _counted(enough[0], min(enough[0], _least_terms(X, target, one, rest_of(one))))
    raise ArgumentError(complaint(f"target={target}", "within reach of 16 terms", "fewest_terms", "raise it"))
