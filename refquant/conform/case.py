"""What a case is, and how floats that are hard to quantize are made."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quant.granularity import Granularity, PerTensor

__all__ = ["F32", "Case", "Family", "ends", "floats_beside", "near_ties"]

Array = NDArray[Any]

F32 = np.float32


@dataclass(frozen=True, eq=False)
class Case:
    """One question: an operation, a width, arrays, options.

    semantics: fields of the spec that the case sets itself, whatever the profile says.  comment: what is special.
    """

    op: str
    inputs: Mapping[str, Any]
    bits: int = 8
    signed: bool = True
    granularity: Granularity = PerTensor()  # noqa: RUF009 (frozen, without state)
    options: Mapping[str, Any] = field(default_factory=dict)
    semantics: Mapping[str, Any] = field(default_factory=dict)
    comment: str = ""


@dataclass(frozen=True)
class Family:
    """kind: `typical`, `edge` or `special`.  why: what makes it hard.  effect: what failing it does to a user."""

    kind: str
    why: str
    effect: str
    make: Callable[[np.random.Generator], Iterator[Case]]


def floats_beside(v: Any, dtype: Any = F32) -> Array:
    """The float next below, the nearest, and the float next above each real, in ascending order a row.

    >>> floats_beside([0.1]).shape
    (1, 3)
    """
    m = np.asarray(v, np.float64).astype(dtype)
    low, high = np.nextafter(m, np.asarray(-np.inf, dtype)), np.nextafter(m, np.asarray(np.inf, dtype))
    return np.stack([low, m, high], axis=-1)


def near_ties(s: float, low: int, high: int, dtype: Any = F32) -> Array:
    """For every k in low..high - 1, the floats of a type around (k + 1/2) s: next below, nearest, next above.

    Every code changes between two neighbouring floats of these, so a rule that only rounds differently near ties is
    seen here if it is seen at all (proofs/11_conformance.py).

    >>> near_ties(1.0, 0, 2).ravel().tolist()[1::3]
    [0.5, 1.5]
    """
    k = np.arange(low, high) + 0.5
    return floats_beside(k * float(s), dtype).ravel()


def ends(bits: int, signed: bool) -> tuple[int, int]:
    """The least and the greatest code of a full grid.

    >>> ends(4, True)
    (-8, 7)
    """
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
