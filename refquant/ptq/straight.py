"""Rounding of a weight's last term with a straight-through derivative: the weight, and its scale, may move.

Letters: r the real weight less the terms before its last, s scale, c code in [low, high], base the terms before.

A weight is w^ = base + s c with c = clip(round(r / s), low, high).  Its rule is that of `net.ops_quantize`: by r it
is 1 where the code is not clipped, else 0; by s the residual c - r / s there, and c where it is clipped.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..arith.rounding import MODES, round_array
from ..net.op import Array, Attr, Attrs, Op, Param, Params, Point, Rule, Slot, Tangents
from ..quant.granularity import Granularity
from ..quant.multiterm import MultiTerm
from .soft import last_term, with_last

__all__ = ["STRAIGHT_ROUND", "RealWeight", "free"]


class _Seen(NamedTuple):
    """What the derivative needs: the derivative by s, where the code is not clipped, the scale spread."""

    by_scale: Array
    inside: Array
    scale: Array


def _record(attrs: Attrs, params: Params, inputs: Sequence[Array]) -> tuple[Array, _Seen]:
    r = inputs[0]
    s = attrs["granularity"].spread(np.asarray(params["scale"]), r.shape)
    quotient = r / s
    k = round_array(quotient, attrs["rounding"]).astype(r.dtype)
    c = np.clip(k, params["low"], params["high"])
    inside = c == k
    return params["base"] + s * c, _Seen(c - quotient * inside, inside, s)


def _vjp(at: Point, u: Array, wanted: Collection[Slot]) -> dict[Slot, Array]:
    seen, grain = at.memory, at.attrs["granularity"]
    rows: dict[Slot, Callable[[], Array]] = {
        0: lambda: u * seen.inside,
        "base": lambda: u,
        "scale": lambda: grain.rows(u * seen.by_scale).sum(axis=1).reshape(np.shape(at.params["scale"])),
        "low": lambda: u * seen.scale * 0,
        "high": lambda: u * seen.scale * 0,
    }
    return {slot: rows[slot]() for slot in wanted}


def _jvp(at: Point, v: Tangents) -> Array:
    seen, grain = at.memory, at.attrs["granularity"]
    rows: dict[Slot, Callable[[Array], Array]] = {
        0: lambda t: t * seen.inside,
        "base": lambda t: t,
        "scale": lambda t: grain.spread(t, at.output.shape) * seen.by_scale,
        "low": lambda t: t * 0,
        "high": lambda t: t * 0,
    }
    total: Array = sum((rows[slot](t) for slot, t in v.items()), np.zeros_like(at.output))
    return total


_ANY = Param(lambda attrs: ())

STRAIGHT_ROUND = Op(
    lambda attrs, shapes: shapes[0],
    lambda attrs, params, inputs: _record(attrs, params, inputs)[0],
    Rule(_vjp, _jvp),
    {
        "granularity": Attr("a Granularity", lambda v: v if isinstance(v, Granularity) else None),
        "rounding": Attr("a mode of rounding", lambda v: v if v in MODES else None),
    },
    {"base": _ANY, "scale": _ANY, "low": _ANY, "high": _ANY},
    record=_record,
)
"""From r to base + scale clip(round(r / scale), low, high); the ends of the grid do not move."""


@dataclass(frozen=True, eq=False)
class RealWeight:
    """A sum of terms whose last terms round a real weight r: base, low, high of the codes, scale, first r."""

    sums: MultiTerm
    base: Array
    low: Array
    high: Array
    scale: Array
    start: Array

    def rounded(self, r: Array, scale: Array) -> MultiTerm:
        """The sum whose last terms round r with this scale."""
        spec = self.sums.specs[0]
        quotient = r / spec.granularity.spread(scale, r.shape)
        codes = np.clip(round_array(quotient, spec.rounding), self.low, self.high)
        return with_last(self.sums, codes, scale)


def free(w: Array, sums: MultiTerm) -> RealWeight:
    """The real weight behind one of its encodings: terms before the last in use stay as they are.

    >>> from ..quant.spec import QuantSpec
    >>> from ..solve.terms import encode_terms
    >>> w = np.float32([0.3, -0.4, 0.9])
    >>> sums = encode_terms(w, spec=QuantSpec(3), terms=1)
    >>> real = free(w, sums)
    >>> np.array_equal(real.rounded(real.start, real.scale).codes, sums.codes)
    True
    """
    last = last_term(sums)
    ends = (last.low.astype(np.float32), last.high.astype(np.float32))
    start = (w - last.base).astype(np.float32)
    return RealWeight(sums, last.base.astype(np.float32), *ends, last.scale.astype(np.float32), start)
