"""Sums of low-bit terms: x^ = sum over t of alpha_t q_t (clauses M1 to M3).

Letters: T terms, alpha_t the scale and q_t the codes of term t, r_t what is left before it
(r_1 = x), L the ratio of consecutive scales of a ladder.

M1, encoding.  `ladder`: alpha_{t+1} = alpha_t / L, each code the rounding of what the codes before
left, decided exactly.  `greedy`: each term quantizes r_t = r_{t-1} - alpha_{t-1} q_{t-1}, computed in
float64, with a scale found from r_t.
M2, decoding: the products in float64 (exact while scales are float32), summed in float64 in the order
of t, one rounding to the output type at the end.
M3, storage: the bits of every code in use, and 32 or 64 bits for every scale in use.

With floor and L = 2^b, the first term signed and the rest unsigned, a ladder is bit slicing: T terms
of b bits are one quantizer of T b bits, code by code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..arith.quotient import EXACT_LIMIT, exact_position
from ..arith.rounding import round_array
from ..errors import ArgumentError, NotANumberError, complaint, instance_of
from .arguments import positive, reals, shaped, top_code
from .quantizer import quantize
from .spec import QuantSpec

__all__ = [
    "MultiTerm",
    "ScaleRule",
    "absmax_scale",
    "encode_greedy",
    "encode_ladder",
    "rest_of",
    "sound",
    "with_counts",
]

ScaleRule = Callable[[NDArray[Any], QuantSpec], NDArray[Any]]
"""From a residual tensor and the term's spec to scales of the granularity's parameter shape."""


@dataclass(frozen=True, eq=False)
class MultiTerm:
    """A tensor written as a sum of low-bit terms.

    codes: shape (T, *x.shape), integers.  scales: shape (T, *parameter shape), reals per step.
    specs: one a term, all of one granularity.  counts: shape of the parameters, 1..T, the terms in use
    for each (codes of terms beyond are 0).
    """

    codes: NDArray[Any]
    scales: NDArray[Any]
    specs: tuple[QuantSpec, ...]
    counts: NDArray[np.int64]

    @property
    def terms(self) -> int:
        """The number of terms T."""
        return len(self.specs)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(self.codes.shape[1:])

    def partial_sums(self) -> NDArray[np.float64]:
        """The sums of the first 1, 2, ..., T terms, in float64; shape (T, *x.shape)."""
        spread = self.specs[0].granularity.spread
        products = [q * spread(s, self.shape).astype(np.float64) for q, s in zip(self.codes, self.scales, strict=True)]
        return np.cumsum(products, axis=0)  # clause M2: in the order of t

    def decode(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The tensor that the sum stands for, rounded once to dtype."""
        decoded: NDArray[Any] = self.partial_sums()[-1].astype(dtype)
        return decoded

    def truncated(self, counts: ArrayLike) -> "MultiTerm":
        """The same sum with only the first `counts` terms of each parameter's elements kept.

        Raises ArgumentError for counts outside 1..T or of another shape than the parameters.
        """
        kept = np.broadcast_to(np.asarray(counts), self.counts.shape)
        if kept.size and not (1 <= kept.min() and kept.max() <= self.terms):
            got = f"counts from {kept.min()} to {kept.max()}"
            raise ArgumentError(complaint(got, f"in 1..{self.terms}", "MultiTerm.truncated"))
        kept = np.minimum(kept, self.counts).astype(np.int64)
        spread = self.specs[0].granularity.spread(kept, self.shape)
        most = int(kept.max(initial=1))
        codes = np.where(np.arange(1, most + 1).reshape(-1, *(1,) * len(self.shape)) <= spread, self.codes[:most], 0)
        return replace(self, codes=codes, scales=self.scales[:most], specs=self.specs[:most], counts=kept)

    @property
    def storage_bits(self) -> int:
        """Clause M3: the bits of all codes and scales in use."""
        elements = self.specs[0].granularity.rows(np.ones(self.shape)).sum(axis=1).astype(np.int64).ravel()
        each = 8 * self.scales.dtype.itemsize
        in_use = (np.arange(1, self.terms + 1)[:, None] <= self.counts.ravel()).astype(np.int64)
        code_bits = np.array([spec.bits for spec in self.specs]) @ (in_use @ elements)
        return int(code_bits + each * in_use.sum())


def sound(sums: MultiTerm, where: str) -> MultiTerm:
    """The sum itself, whose parts belong together: what a caller or a file made is not trusted.

    Raises ArgumentError where shapes do not fit, codes are not integers on their term's grid (0 beyond the terms
    in use), scales are not finite and > 0, and counts are not in 1..T.

    >>> one = MultiTerm(np.array([[3, -3]]), np.array([0.5]), (QuantSpec(3),), np.array(1))
    >>> sound(one, "here") is one
    True
    """
    codes, scales, counts, specs = sums.codes, sums.scales, sums.counts, sums.specs
    wanted = specs[0].granularity.parameter_shape(sums.shape) if specs else ()
    fits = codes.shape[:1] == scales.shape[:1] == (len(specs),) != (0,) and scales.shape[1:] == counts.shape == wanted
    if not fits or any(spec.granularity != specs[0].granularity for spec in specs):
        got = f"codes {codes.shape}, scales {scales.shape}, counts {counts.shape}, {len(specs)} specs"
        raise ArgumentError(complaint(got, "the shapes of `refquant.MultiTerm`, one granularity", where))
    positive(scales, "scale", where)
    if codes.dtype.kind not in "iu" or counts.dtype.kind not in "iu":
        got = f"codes of type {codes.dtype}, counts of type {counts.dtype}"
        raise ArgumentError(complaint(got, "integers", where))
    if not np.all((counts >= 1) & (counts <= len(specs))):
        raise ArgumentError(complaint(f"counts from {counts.min()} to {counts.max()}", f"in 1..{len(specs)}", where))
    spread = specs[0].granularity.spread(counts, sums.shape)
    for t, (q, spec) in enumerate(zip(codes, specs, strict=True)):
        if not np.all(np.where(t < spread, (q >= spec.qmin) & (q <= spec.qmax), q == 0)):
            should = f"in [{spec.qmin}, {spec.qmax}], and 0 beyond the terms in use"
            raise ArgumentError(complaint(f"codes of term {t + 1} from {q.min()} to {q.max()}", should, where))
    return sums


def rest_of(spec: QuantSpec) -> QuantSpec:
    """The grid of later terms when none is named: unsigned after floor, narrow signed after other modes.

    What floor leaves of an unsaturated value is never negative; what the other modes leave has both signs.

    >>> rest_of(QuantSpec(4, rounding="floor")).qmax, rest_of(QuantSpec(4)).qmin
    (15, -7)
    """
    if spec.rounding == "floor":
        return replace(spec, signed=False, narrow=False)
    return replace(spec, signed=True, narrow=spec.bits > 1)


def _checked(x: ArrayLike, terms: int) -> NDArray[Any]:
    X = reals(x)
    if not np.all(np.isfinite(X)):
        raise NotANumberError(complaint("NaN or infinity", "finite values", "encode_terms", "clean the tensor"))
    if type(terms) is not int or terms < 1:
        raise ArgumentError(complaint(f"terms={terms!r}", "an integer of at least 1", "encode_terms"))
    return X


def encode_ladder(x: ArrayLike, scale: ArrayLike, *, spec: QuantSpec, terms: int, rest: QuantSpec) -> MultiTerm:
    """The ladder sum with alpha_1 = scale and L the number of codes of the later grid.

    The codes are exact: term t is the clipped rounding of x L^{t-1} / alpha_1 - L (the code built so far),
    which needs x L^{T-1} to be exact in float64 and below 2^50 steps.  The scales alpha_1 / L^{t-1} are
    float64, exact when L is a power of two.  Of the specs only grid, rounding and granularity speak: there is
    no zero point to add before or after.

    scale: a scalar, or of the granularity's shape.  Raises ArgumentError where the above does not hold, for a
    scale not finite and > 0, and where alpha_1 / L^{T-1} underflows.

    >>> spec = QuantSpec(2, rounding="floor")
    >>> two = encode_ladder([-3.0, 5.5], 4.0, spec=spec, terms=2, rest=rest_of(spec))
    >>> two.codes.tolist(), two.decode().tolist()  # one quantizer of 4 bits with scale 1
    ([[-1, 1], [1, 1]], [-3.0, 5.0])
    """
    where = "encode_ladder"
    for grid in (spec, rest):
        instance_of(grid, QuantSpec, "spec", where)
    X = _checked(x, terms)
    L = rest.qmax - rest.qmin + 1
    s = positive(scale, "scale", where).astype(np.float64)
    spread = shaped(s, "scale", X.shape, spec)
    alpha = np.broadcast_to(s, spec.granularity.parameter_shape(X.shape))
    built = np.zeros(X.shape)
    codes = []
    for t in range(terms):
        with np.errstate(over="ignore"):
            fine = X.astype(np.float64) * float(L) ** t
        if float(L) ** t > 2.0**53 or np.any(fine / float(L) ** t != X) or not _digits_fit(X, L, t):
            got = f"{terms} ladder terms of ratio {L} for {X.dtype}"
            raise ArgumentError(complaint(got, "x L^(T-1) exact in float64", where, "use fewer terms"))
        position = exact_position(fine, spread)
        if np.any(np.abs(position) >= EXACT_LIMIT):
            raise ArgumentError(complaint("x L^(T-1) / scale", "below 2^50", where, "enlarge the scale"))
        grid = spec if t == 0 else rest
        q = np.clip(round_array(position - L * built, grid.rounding), grid.qmin, grid.qmax)
        built = L * built + q
        codes.append(q.astype(grid.code_dtype))
    with np.errstate(under="ignore"):
        scales = np.stack([alpha / float(L) ** t for t in range(terms)])
    positive(scales, "scale / L^(T-1)", where)
    return MultiTerm(np.stack(codes), scales, (spec,) + (rest,) * (terms - 1), np.full(alpha.shape, terms))


def _digits_fit(X: NDArray[Any], L: int, t: int) -> bool:
    """Whether x L^t is exact in float64: a power of two always (barring overflow), else by digits."""
    odd = L**t >> ((L**t & -(L**t)).bit_length() - 1)
    digits = {2: 11, 4: 24, 8: 53}[X.dtype.itemsize]
    return bool(odd == 1 or odd.bit_length() + digits <= 53)


def absmax_scale(residual: NDArray[Any], spec: QuantSpec) -> NDArray[np.float64]:
    """|r|_inf / qmax for each parameter, 1 where r is all zero: then every |r / alpha| <= qmax.

    Raises ArgumentError for one bit with a sign, where qmax is 0.

    >>> absmax_scale(np.array([1.0, -3.0]), QuantSpec(3, narrow=True))
    array(1.)
    """
    rows = spec.granularity.rows(np.abs(residual))
    largest = rows.max(axis=1, initial=0.0).astype(np.float64)
    scale = np.where(largest > 0, largest / top_code(spec, "absmax_scale"), 1.0)
    return scale.reshape(spec.granularity.parameter_shape(residual.shape))


def encode_greedy(
    x: ArrayLike, *, spec: QuantSpec, terms: int, rest: QuantSpec, scale_rule: ScaleRule = absmax_scale
) -> MultiTerm:
    """The greedy sum: each term quantizes what the terms before left, with the scale that the rule gives.

    Scales are rounded to float32 unless x is float64.  With `absmax_scale` on symmetric grids
    |r_T|_inf <= |x|_inf / (2 qmax)^T in exact arithmetic, times (1 + 2^-24)^T with float32 scales.

    Raises NotANumberError for values that are not finite.

    >>> two = encode_greedy([1.0, 0.3], spec=QuantSpec(2, narrow=True), terms=2, rest=QuantSpec(2, narrow=True))
    >>> two.codes.tolist()
    [[1, 0], [0, 1]]
    """
    X = _checked(x, terms)
    kept = np.float64 if X.dtype == np.float64 else np.float32
    specs = (spec,) + (rest,) * (terms - 1)
    r = X.astype(np.float64)
    codes, scales = [], []
    for grid in specs:
        alpha = np.maximum(scale_rule(r, grid).astype(kept), np.finfo(kept).smallest_subnormal)
        q = quantize(r, alpha, spec=grid)
        r = r - q * grid.granularity.spread(alpha, X.shape).astype(np.float64)
        codes.append(q)
        scales.append(alpha)
    counts = np.full(scales[0].shape, terms, np.int64)
    return MultiTerm(np.stack(codes), np.stack(scales), specs, counts)


def with_counts(encodings: Sequence[MultiTerm], counts: ArrayLike) -> MultiTerm:
    """One sum out of several: each parameter's elements from the encoding with that many terms.

    encodings: of one tensor, with 1, 2, ... terms.  counts: 1..len(encodings), broadcast to the parameters'
    shape.  Terms that a parameter does not use have codes 0 and scale 1.

    Raises ArgumentError for counts out of range.
    """
    last = encodings[-1]
    wanted = np.broadcast_to(np.asarray(counts, np.int64), last.counts.shape)
    if wanted.size and not (1 <= wanted.min() and wanted.max() <= len(encodings)):
        got = f"counts from {wanted.min()} to {wanted.max()}"
        raise ArgumentError(complaint(got, f"in 1..{len(encodings)}", "with_counts"))
    terms = int(wanted.max(initial=1))
    spread = last.specs[0].granularity.spread(wanted, last.shape)
    codes = np.zeros((terms, *last.shape), last.codes.dtype)
    scales = np.ones((terms, *wanted.shape), last.scales.dtype)
    for t, encoding in enumerate(encodings[:terms], start=1):
        codes[:t] += np.where(spread == t, encoding.codes, 0)
        scales[:t] = np.where(wanted == t, encoding.scales, scales[:t])
    return MultiTerm(codes, scales, last.specs[:terms], np.array(wanted))
