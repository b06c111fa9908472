"""What a solver returns: the answer, and how far from the best it can be."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Solution"]


@dataclass(frozen=True, eq=False)
class Solution:
    """An answer that carries its proof.

    value: the answer.  objective: what it costs, recomputed from the answer itself.
    lower_bound: no answer of the problem costs less; rounded outwards.
    certified: whether the gap is within the tolerance asked for, plus the derived rounding error of the
    sums that the bound rests on.  evaluations: how many candidates were looked at.
    All but `certified` and `evaluations` may be arrays, one entry a sub-problem.

    >>> Solution(np.array(0.5), np.array(2.0), np.array(1.5), False, 3).gap
    array(0.5)
    """

    value: NDArray[Any]
    objective: NDArray[np.float64]
    lower_bound: NDArray[np.float64]
    certified: bool
    evaluations: int

    @property
    def gap(self) -> NDArray[np.float64]:
        """objective - lower_bound: at most this much could be gained by any other answer."""
        return np.asarray(self.objective - self.lower_bound)
