"""One op of the difference network: what it makes of the errors of its inputs, as a line with a rest.

Letters: a what the reference run reads, x^ = a + e what the quantized run reads, e its error; of the output too.

Every op becomes a `Piece`: e_out = L e_in + c with a linear map L and a rest c that lies in a box.  Ops that are
linear have L for themselves and c for what their weight's error, and rounding, add: here it pays to write

    e_out = (L^ x^ + b^) - a_out = L^ e_in + (L^ a_in + b^ - a_out),

with the quantized weights L^ carrying the errors: as the reference is a run that was recorded, the bracket is a known
number, whatever made the two layers differ.  Ops that are not linear get a slope each element and a rest (`relax`).

Proofs: proofs/08_bounds.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..net.op import Attrs
from ..quant.spec import QuantSpec
from .box import Box, around, point
from .linear_maps import LinearMap
from .rounding_error import LARGE, TINY, UNITS, gamma

__all__ = ["Piece", "Place", "Quantizer", "Rate", "Step", "linear_piece", "run_rounding"]

Reals = NDArray[np.float64]

Rate = Callable[[int, float], float]
"""From a number of roundings and their unit to what they may be worth together: `gamma`, or one that is probable."""


class Quantizer(NamedTuple):
    """A quantizer's spec with its scale and zero point."""

    spec: QuantSpec
    scale: NDArray[Any]
    zero_point: NDArray[Any]


class Step(NamedTuple):
    """The value `name` of the quantized run: the op `kind` (of `net.ops`, or "Quantize") of the values `inputs`.

    linear: its map, None for ops that have none.
    """

    name: str
    kind: str
    attrs: Attrs
    inputs: tuple[str, ...]
    linear: LinearMap | None = None
    quantizer: Quantizer | None = None


class Place(NamedTuple):
    """Where a step is taken: errors e of its inputs, what the reference read there, a, and gave, out.

    to: the type of the quantized run.  specified: whether quantizers give the very codes that their rules say.
    rate: what roundings of that type are worth.
    """

    e: Sequence[Box]
    a: Sequence[Reals]
    out: Reals
    to: str
    specified: bool = False
    rate: Rate = gamma


class Piece(NamedTuple):
    """e_out = L e_in + c.

    range: of e_out, by interval arithmetic.  rest: the box of c.  pull: from u, shape (N, K, *output), to L^T u for
    each input.  spread: at least |L| |e_in|, so that roundings of L^T u are worth gamma(returns) |u| spread.
    ends: whether nothing about e_in is unknown: then `range` says all.
    noise: how much of the radius of c is due to chance, if errors of quantizers are noise; None: nothing.
    """

    range: Box
    rest: Box
    pull: Callable[[Reals], list[Reals]]
    spread: Reals
    returns: int
    ends: bool
    noise: Reals | None = None


def linear_piece(step: Step, at: Place) -> Piece:
    """The piece of an op with a linear map."""
    L = step.linear
    assert L is not None
    ends = all(e.known for e in at.e)

    def pull(u: Reals) -> list[Reals]:
        parts = L.pull(u.reshape(-1, *u.shape[2:]))
        return [part.reshape(*u.shape[:2], *part.shape[1:]) for part in parts]

    if not L.roundings:  # elements are moved
        moved = Box(L.forward([e.low for e in at.e]), L.forward([e.high for e in at.e]))
        return Piece(moved, point(np.zeros_like(moved.low)), pull, moved.magnitude, 0, ends)
    slack = 1 + gamma(L.roundings + 8)
    spread = L.magnitude([e.magnitude for e in at.e]) * slack
    read = L.magnitude([np.abs(a) for a in at.a]) * slack + L.offset
    ours = gamma(L.roundings + 8) * (read + spread + np.abs(at.out))  # float64 roundings in what follows
    known = L.forward(at.a) + L.constant - at.out
    rest = point(known).widened(2 * ours + run_rounding(L, read + spread, at) * slack)
    middle = L.forward([e.middle for e in at.e])
    radius = np.zeros_like(middle) if ends else L.magnitude([e.radius for e in at.e]) * slack
    return Piece(around(middle, radius + ours) + rest, rest, pull, spread, L.returns, ends)


def run_rounding(L: LinearMap, products: Reals, at: Place) -> Reals:
    """What the run's roundings add up to in sums of L whose terms weigh `products`; infinite where it may overflow."""
    lost = at.rate(L.roundings, UNITS[at.to]) * products + L.roundings * TINY[at.to]
    return np.where(products < LARGE[at.to], lost, np.inf)
