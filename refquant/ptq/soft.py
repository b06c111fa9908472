"""AdaRound's rounding variables: between its floor and its ceiling, a code is a smooth function of one number.

Letters: w weight, s scale of the last term in use, r = (w - the terms before) / s, n = floor r, v the variable,
h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1), beta the sharpness of the regularizer.

A relaxed weight is w^ = base + s (n + h(v)); v starts where h(v) = r - n, so that w^ is w, and at the end the code is
n + 1 where v >= 0, else n.  With sums of terms the variables belong to the last term.

Where the papers' form clips n + h(v) to the grid, weights beyond it have no gradient.  Here n is at most qmax - 1, so
that such a weight chooses between the two outermost codes; and v starts with h(v) in [MARGIN, 1 - MARGIN], since h is
flat beyond 0 and 1.

Source: Nagel et al. 2020 (AdaRound, arXiv 2004.10568), equations 22 to 24.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..net.op import Array, Attr, Attrs, Op, Param, Params, Point, Rule, Slot, Tangents
from ..quant.granularity import Granularity
from ..quant.multiterm import MultiTerm

__all__ = ["SOFT_ROUND", "LastTerm", "SoftWeight", "last_term", "regularizer", "soften", "softness", "with_last"]

STRETCH, SHIFT = np.float32(1.2), np.float32(0.1)
"""zeta - gamma and -gamma, with zeta = 1.1 and gamma = -0.1."""

MARGIN = 0.01


def softness(v: Array) -> tuple[Array, Array]:
    """h(v) and its derivative, in v's type: exactly 0 and 1 beyond |v| = log 11, where the derivative is 0.

    >>> [part.round(3).tolist() for part in softness(np.array([-3.0, 0.0, 3.0]))]
    [[0.0, 0.5, 1.0], [0.0, 0.3, 0.0]]
    """
    p = 1 / (1 + np.exp(-v))
    raw = STRETCH * p - SHIFT
    h = np.clip(raw, 0, 1)
    return h, (STRETCH * p * (1 - p)) * (h == raw)


def hardness(h: Array) -> Array:
    """The v with h(v) = h, for h in [0, 1].

    >>> softness(hardness(np.array([0.25])))[0].round(6).tolist()
    [0.25]
    """
    y: Array = -np.log(STRETCH / (h + SHIFT) - 1)
    return y


def regularizer(v: Array, beta: float) -> tuple[float, Array]:
    """The sum of 1 - |2 h(v) - 1|^beta, which is 0 where all h are 0 or 1, and its derivative by v.

    >>> round(regularizer(np.array([0.0, 9.0]), 2.0)[0], 12)
    1.0
    """
    h, slope = softness(v)
    d = 2 * h - 1
    size = np.abs(d)
    return float((1 - size**beta).sum(dtype=np.float64)), -2 * beta * size ** (beta - 1) * np.sign(d) * slope


# ---- the op ---------------------------------------------------------------------------------------------------


def _granularity(value: object) -> Granularity | None:
    return value if isinstance(value, Granularity) else None


def _scale(at: Point) -> Array:
    s = np.asarray(at.params["scale"])
    return np.asarray(at.attrs["granularity"].spread(s, at.inputs[0].shape))


def _record(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> tuple[Array, tuple[Array, Array]]:
    h, slope = softness(inputs[0])
    codes = params["floor"] + h
    s = attrs["granularity"].spread(np.asarray(params["scale"]), inputs[0].shape)
    return params["base"] + s * codes, (codes, slope)


def _vjp(at: Point, u: Array, wanted: Collection[Slot]) -> dict[Slot, Array]:
    codes, slope = at.memory
    shape = np.shape(at.params["scale"])
    rows: dict[Slot, Callable[[], Array]] = {
        0: lambda: u * _scale(at) * slope,
        "base": lambda: u,
        "floor": lambda: u * _scale(at),
        "scale": lambda: at.attrs["granularity"].rows(u * codes).sum(axis=1).reshape(shape),
    }
    return {slot: rows[slot]() for slot in wanted}


def _jvp(at: Point, v: Tangents) -> Array:
    codes, slope = at.memory
    rows: dict[Slot, Callable[[Array], Array]] = {
        0: lambda t: _scale(at) * slope * t,
        "base": lambda t: t,
        "floor": lambda t: _scale(at) * t,
        "scale": lambda t: at.attrs["granularity"].spread(t, codes.shape) * codes,
    }
    total: Array = sum((rows[slot](t) for slot, t in v.items()), np.zeros_like(at.output))
    return total


_ANY = Param(lambda attrs: ())

SOFT_ROUND = Op(
    lambda attrs, shapes: shapes[0],
    lambda attrs, params, inputs: _record(attrs, params, inputs)[0],
    Rule(_vjp, _jvp),
    {"granularity": Attr("a Granularity", _granularity)},
    {"base": _ANY, "floor": _ANY, "scale": _ANY},
    record=_record,
)
"""From v to base + scale (floor + h(v)), with the scale spread by a granularity; its derivative is exact."""


# ---- weights --------------------------------------------------------------------------------------------------


class LastTerm(NamedTuple):
    """The last terms in use of a sum: what the terms before add up to, scales, the ends of the codes' grid."""

    base: NDArray[np.float64]
    scale: Array
    low: NDArray[np.int64]
    high: NDArray[np.int64]


def _places(sums: MultiTerm) -> NDArray[np.bool_]:
    """Which element's code is of the last term in use, shape (T, *x.shape)."""
    spread = sums.specs[0].granularity.spread(sums.counts, sums.shape)
    at = np.arange(1, sums.terms + 1).reshape(-1, *(1,) * len(sums.shape)) == spread
    return np.asarray(np.broadcast_to(at, sums.codes.shape))


def last_term(sums: MultiTerm) -> LastTerm:
    """What there is to know of the last terms of an encoding.

    >>> from ..quant.spec import QuantSpec
    >>> one = MultiTerm(np.array([[3, -3]]), np.array([0.5]), (QuantSpec(3),), np.array(1))
    >>> last_term(one).high.tolist()
    [3, 3]
    """
    last, spread = _places(sums), sums.specs[0].granularity.spread
    products = [q * spread(s, sums.shape).astype(np.float64) for q, s in zip(sums.codes, sums.scales, strict=True)]
    base = np.where(last, 0.0, products).sum(axis=0)  # codes beyond the last term are 0
    scale = np.take_along_axis(sums.scales, sums.counts[None] - 1, axis=0)[0]
    low, high = (
        np.where(last, np.array(ends).reshape(-1, *(1,) * len(sums.shape)), 0).sum(axis=0)
        for ends in ([spec.qmin for spec in sums.specs], [spec.qmax for spec in sums.specs])
    )
    return LastTerm(base, scale, low, high)


def with_last(sums: MultiTerm, codes: Array, scale: Array | None = None) -> MultiTerm:
    """The sum with these codes in its last terms, and scales, if given.

    >>> from ..quant.spec import QuantSpec
    >>> one = MultiTerm(np.array([[3, -3]]), np.array([0.5]), (QuantSpec(3),), np.array(1))
    >>> with_last(one, np.array([1.0, 2.0]), np.array(0.25)).decode().tolist()
    [0.25, 0.5]
    """
    new = np.where(_places(sums), codes.astype(sums.codes.dtype), sums.codes)
    if scale is None:
        return replace(sums, codes=new)
    at = np.arange(1, sums.terms + 1).reshape(-1, *(1,) * sums.counts.ndim) == sums.counts
    return replace(sums, codes=new, scales=np.where(at, scale.astype(sums.scales.dtype), sums.scales))


@dataclass(frozen=True, eq=False)
class SoftWeight:
    """A sum of terms whose last codes in use are open: base, floor (codes), scale (of the last term), and first v."""

    sums: MultiTerm
    base: Array
    floor: Array
    scale: Array
    start: Array

    def harden(self, v: Array, scale: Array | None = None) -> MultiTerm:
        """The sum with codes floor + (v >= 0) in the last term, and its scale replaced if one is given."""
        return with_last(self.sums, self.floor + (v >= 0), scale)


def soften(w: Array, sums: MultiTerm) -> SoftWeight:
    """The relaxation of a weight about one of its encodings: terms before the last in use stay as they are.

    >>> from ..quant.spec import QuantSpec
    >>> from ..solve.terms import encode_terms
    >>> w = np.float32([0.3, -0.4, 0.9])
    >>> soft = soften(w, encode_terms(w, spec=QuantSpec(3), terms=1))
    >>> bool(np.abs(soft.base + soft.scale * (soft.floor + softness(soft.start)[0]) - w).max() < 1e-6)
    True
    """
    last = last_term(sums)
    r = (w - last.base) / sums.specs[0].granularity.spread(last.scale, sums.shape).astype(np.float64)
    floor = np.clip(np.floor(r), last.low, last.high - 1)
    start = hardness(np.clip(r - floor, MARGIN, 1 - MARGIN))
    parts = (last.base, floor, last.scale, start)
    return SoftWeight(sums, *(part.astype(np.float32) for part in parts))
