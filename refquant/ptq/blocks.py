"""The nearest sum of many low-bit terms: block of terms by block of terms.

Scales that were found together are not in order, and what the first terms leave may lie between the sums that later
ones reach.  So terms are not rounded one by one: of the first ones all combinations compete, and further blocks take
what is nearest to what those before leave.  The result is the nearest sum if one block holds all terms.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..quant.multiterm import MultiTerm
from ..quant.spec import QuantSpec
from ..solve.sums import all_codes, nearest_codes

__all__ = ["Block", "blocks_of", "nearest_sums"]

MOST_SUMS, LATER_SUMS = 1024, 64
"""Sums of the first block, and of each later one, at most; a block has at least one term."""


class Block(NamedTuple):
    """Terms first..end - 1: all combinations of their codes, one a row, and how many of these terms each needs."""

    first: int
    end: int
    grid: NDArray[np.float64]
    reach: NDArray[np.int64]


def blocks_of(specs: tuple[QuantSpec, ...]) -> list[Block]:
    """All terms in order, in as few blocks as `MOST_SUMS` and `LATER_SUMS` allow.

    >>> [(block.first, block.end) for block in blocks_of((QuantSpec(2),) * 9)]
    [(0, 5), (5, 8), (8, 9)]
    """
    cuts, sums = [0], 1.0
    for t, spec in enumerate(specs):
        codes = 2.0**spec.bits - spec.narrow
        if t > cuts[-1] and sums * codes > (LATER_SUMS if cuts[-1] else MOST_SUMS):
            cuts.append(t)
            sums = 1.0
        sums *= codes
    found = []
    for first, end in zip(cuts, [*cuts[1:], len(specs)], strict=True):
        grid = all_codes(specs[first:end])
        found.append(Block(first, end, grid, np.where(grid != 0, np.arange(1, end - first + 1), 0).max(axis=1)))
    return found


def nearest_sums(w: NDArray[Any], sums: MultiTerm) -> NDArray[np.int64]:
    """Codes on the scales and counts of a sum, of its shape, for a tensor of the same shape; ties either way.

    With more than one block the sum's own codes stay where they are nearer.

    >>> sums = MultiTerm(np.zeros((2, 3), int), np.array([1.0, 0.75]), (QuantSpec(2),) * 2, np.array(2))
    >>> nearest_sums(np.array([0.8, -0.3, 0.2]), sums).tolist()  # 0.75, 0.75 - 1, 1 - 0.75
    [[0, -1, 1], [1, 1, -1]]
    """
    specs = sums.specs
    rows, blocks = specs[0].granularity.rows, blocks_of(specs)
    places, real = rows(np.arange(w.size).reshape(w.shape)), rows(np.ones(w.shape, bool), fill=False)
    alpha, counts = sums.scales.reshape(len(specs), -1).astype(np.float64), sums.counts.ravel()
    values, codes = w.ravel().astype(np.float64), np.zeros((len(specs), w.size), np.int64)
    for r, (at, some) in enumerate(zip(places, real, strict=True)):
        left = values[at[some]]
        for block in blocks:
            in_use = counts[r] - block.first
            if in_use > 0:
                terms = slice(block.first, block.end)
                q = nearest_codes(left, alpha[terms, r], block.grid[block.reach <= in_use])
                codes[terms, at[some]] = q.T
                left = left - q @ alpha[terms, r]
    found = codes.reshape(sums.codes.shape)
    if len(blocks) == 1:
        return found
    away = [np.abs(w - replace(sums, codes=q).decode(np.float64)) for q in (sums.codes, found)]
    return np.where(away[0] < away[1], sums.codes, found)
