"""Products with Hessians of a loss: Gauss-Newton's exactly, the full one's by differences of gradients.

Letters: J the Jacobian of the output by values, S the Hessian of the loss by the output, H that of the loss by the
values, G = J^T S J.  H = G + sum of dL/dz_k times the Hessian of z_k: they agree where the gradient by the output is
0, or each output is linear in the values.
"""

from collections.abc import Callable, Mapping

import numpy as np

from .gradient import Tape, pullback, pushforward
from .loss import Loss
from .op import Array

__all__ = ["gauss_newton_product", "hessian_product"]

Values = Mapping[str, Array]


def gauss_newton_product(tape: Tape, loss: Loss, v: Values) -> dict[str, Array]:
    """G v by name, with a loss of the run's output: along v, through the loss, and back; exact up to rounding.

    v: tangents by the name of a value; the result has the same names and shapes.  G is positive semidefinite where S
    is, as for every loss of `loss`.  Through quantizers J is that of their surrogate.

    Raises ArgumentError as `pushforward` does.

    >>> from .gradient import run
    >>> from .graph import Graph, InputSpec, Node
    >>> from .loss import squared_error
    >>> y = Node("y", "Gemm", ("x",), {"in_features": 1, "out_features": 1}, {"weight": "w"})
    >>> tape = run(Graph("line", InputSpec("x", (1,)), "y", (y,), {"w": np.float32([[2]])}), {"x": np.array([[3.0]])})
    >>> gauss_newton_product(tape, squared_error(tape.output, [[5.0]]), {"w": np.array([[1.0]])})
    {'w': array([[18.]])}
    """
    moved = pushforward(tape, v)[tape.result]
    return pullback(tape, loss.curvature(moved), list(v))


def hessian_product(
    gradient: Callable[[dict[str, Array]], Values], at: Values, v: Values, step: float | None = None
) -> dict[str, Array]:
    """H v by name, about: (g(at + step v) - g(at - step v)) / (2 step).

    gradient: from values by name to the gradient at them.  step: by default (3 u)^(1/3) max|at| / max|v|, with u the
    roundoff of their type, which balances the truncation, step^2 / 6 times a third derivative, and the rounding,
    about u / step, if the gradient varies over lengths of about max|at|.  Kinks between the two points spoil it.

    v = 0, or at = 0, takes 1 in the place of that maximum.

    >>> cube = lambda values: {"w": 3 * values["w"] ** 2}
    >>> H = hessian_product(cube, {"w": np.array([1.0, 2.0])}, {"w": np.array([1.0, 0.0])})
    >>> H["w"].round(9).tolist()
    [6.0, 0.0]
    """
    if step is None:
        u = np.finfo(np.result_type(*v.values())).eps / 2
        step = float(np.cbrt(3 * u)) * _largest({name: at[name] for name in v}) / _largest(v)
    ends = [gradient({**at, **{name: at[name] + way * t for name, t in v.items()}}) for way in (step, -step)]
    return {name: (ends[0][name] - ends[1][name]) / (2 * step) for name in v}


def _largest(values: Values) -> float:
    """max|values|, 1 where that is 0."""
    return max((float(np.abs(a).max(initial=0)) for a in values.values()), default=0.0) or 1.0
