"""What a solver returns: the answer, and how far from the best it can be."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import CertificateError, complaint
from ..quant.spec import QuantSpec
from .check import check_scale

__all__ = ["Solution"]


@dataclass(frozen=True, eq=False)
class Solution:
    """An answer that carries its proof.

    value: the answer.  objective: what it costs, recomputed from the answer itself.
    lower_bound: no answer of the problem costs less; rounded outwards.
    certified: whether the gap is within the tolerance asked for, plus the derived rounding error of the
    sums that the bound rests on.  evaluations: how many candidates were looked at.
    zero_point: of a scale with one, in codes.
    All but `certified` and `evaluations` may be arrays, one entry a sub-problem.

    >>> Solution(np.array(0.5), np.array(2.0), np.array(1.5), False, 3).gap
    array(0.5)
    """

    value: NDArray[Any]
    objective: NDArray[np.float64]
    lower_bound: NDArray[np.float64]
    certified: bool
    evaluations: int
    zero_point: NDArray[np.int64] | None = None

    @property
    def gap(self) -> NDArray[np.float64]:
        """objective - lower_bound: at most this much could be gained by any other answer."""
        return np.asarray(self.objective - self.lower_bound)

    def check(
        self,
        x: ArrayLike,
        *,
        spec: QuantSpec,
        objective: str = "mse",
        weights: ArrayLike | None = None,
        p: float = 2.0,
        slack: float = 1e-3,
        zero_point: ArrayLike | None = 0,
    ) -> None:
        """Nothing, if this is what `solve_scale` with these arguments may return; by code that did not make it.

        Raises CertificateError where the objective is not that of the scale, or a scale below the lower bound (less
        the fraction `slack`) cannot be ruled out (see `refquant.solve.check.check_scale`).

        >>> from refquant import solve_scale
        >>> x, spec = [0.9, -1.1, 2.0], QuantSpec(3)
        >>> solve_scale(x, spec=spec).check(x, spec=spec)
        """
        if zero_point is not None and np.any(np.asarray(zero_point) != self.zero_point):
            got = f"zero points {self.zero_point}"
            raise CertificateError(complaint(got, f"{zero_point}, as given", "Solution.check"))
        p = {"mse": 2.0, "max": np.inf}.get(objective, p)
        check_scale(
            self.value,
            self.objective,
            self.lower_bound,
            x,
            spec=spec,
            weights=weights,
            p=p,
            slack=slack,
            zero_point=0 if self.zero_point is None else self.zero_point,
            free=zero_point is None,
        )
