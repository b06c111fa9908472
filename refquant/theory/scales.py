"""The loss as a function of the scales of activations: its curvature, its couplings, and how far it is separable.

Letters: s the factors of m scales, 1 at the plan's; f(s) the cross-entropy; g and H its gradient and Hessian by s.

As factors have no unit, entries of H compare.  Coupling |H_ij| / sqrt(H_ii H_jj) does not change when f or s_i is
multiplied by a number.  f is piecewise constant in nothing here, but it has kinks wherever a value meets a threshold:
H is that of differences over a step far longer than their distance, not a limit.

Claims of LAPQ (Nahshan et al. 2021) that these numbers test: fewer bits, more curvature; relatively larger couplings;
neighbours couple most; f departs from a sum of functions of one scale each.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, complaint
from ..net.graph import Graph
from ..net.plan import QuantPlan
from .interactions import losses_of

__all__ = ["Quadratic", "Separability", "quadratic_at", "scale_loss", "separability"]

Reals = NDArray[np.float64]
Loss = Callable[[Reals], float]


def scale_loss(graph: Graph, plan: QuantPlan, x: ArrayLike, labels: ArrayLike) -> tuple[list[str], Loss]:
    """The tensors whose activations a plan quantizes, in order, and f: from factors of their scales to the loss.

    All else is as in the plan: leave its weights out to have them float.  Zero points stay.

    Raises ArgumentError for a plan without activations, and as `losses_of`; f does for factors not above 0.

    >>> from refquant.zoo import load_data, load_network
    >>> from refquant.quant.spec import QuantSpec
    >>> from refquant.net.plan import ActivationQuantizer
    >>> data = load_data("fashion-mnist").test
    >>> wide = ActivationQuantizer(QuantSpec(16), np.array(1.0), np.array(0))
    >>> tensors, f = scale_loss(load_network("mlp"), QuantPlan(activations={"relu1": wide}), data.x[:2], data.y[:2])
    >>> tensors, f(np.array([1.0])) > 0
    (['relu1'], True)
    """
    losses = losses_of(graph, plan, x, labels)
    tensors = [source.name for source in losses.sources if source.kind == "activation"]
    if not tensors:
        raise ArgumentError(complaint("a plan without activations", "at least one", "scale_loss"))
    names = [losses.pair.through[tensor].params["scale"] for tensor in tensors]

    def f(s: Reals) -> float:
        if not (np.all(np.isfinite(s)) and np.all(s > 0)):
            raise ArgumentError(complaint(f"factors {s}", "finite and > 0", "scale_loss"))
        scaled = {name: factor * losses.pair.params[name] for name, factor in zip(names, s, strict=True)}
        moved = replace(losses, pair=replace(losses.pair, params={**losses.pair.params, **scaled}))
        return moved(moved.sources)

    return tensors, f


# ---- curvature ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Quadratic:
    """g, shape (m,), and H, shape (m, m), of a function at a point."""

    gradient: Reals
    hessian: Reals

    @property
    def coupling(self) -> Reals:
        """|H_ij| / sqrt(|H_ii H_jj|), 1 on the diagonal; 0 where an H_ii is 0."""
        d = np.sqrt(np.abs(np.diag(self.hessian)))
        both = np.outer(d, d)
        found: Reals = np.divide(np.abs(self.hessian), both, out=np.zeros_like(both), where=both > 0)
        np.fill_diagonal(found, 1.0)
        return found

    def coupling_at(self, least: int, most: int | None = None) -> float:
        """The mean coupling of pairs at distances least <= |i - j| <= most; NaN where there are none."""
        m = len(self.gradient)
        pairs = [(i, j) for i, j in combinations(range(m), 2) if least <= j - i <= (m if most is None else most)]
        return float(np.mean([self.coupling[p] for p in pairs])) if pairs else float("nan")

    @property
    def off_diagonal_share(self) -> float:
        """The share of H's squared Frobenius norm off its diagonal; 0 for H = 0."""
        total = float(np.sum(self.hessian**2))
        return 1 - float(np.sum(np.diag(self.hessian) ** 2)) / total if total else 0.0

    @property
    def gaussian_curvature(self) -> float:
        """det H / (|g|^2 + 1)^2, LAPQ's number; of m scales, it is of degree m in the curvature.

        >>> Quadratic(np.array([1.0, 0.0]), np.eye(2) * 2).gaussian_curvature
        1.0
        """
        return float(np.linalg.det(self.hessian)) / (float(self.gradient @ self.gradient) + 1) ** 2


def quadratic_at(f: Loss, at: Reals, step: float) -> Quadratic:
    """g and H by central differences over `step`: 1 + 2 m^2 evaluations; exact for a quadratic, up to rounding.

    H_ij is (f(++) - f(+-) - f(-+) + f(--)) / (4 step^2), H_ii (f(+) - 2 f + f(-)) / step^2.

    >>> found = quadratic_at(lambda s: float(s[0] ** 2 + 3 * s[0] * s[1]), np.array([1.0, 0.0]), 0.5)
    >>> found.gradient.tolist(), found.hessian.tolist()
    ([2.0, 3.0], [[2.0, 3.0], [3.0, 0.0]])
    """
    m = len(at)
    E = step * np.eye(m)
    middle = f(at)
    up, down = (np.array([f(at + way * e) for e in E]) for way in (1, -1))
    H = np.diag((up - 2 * middle + down) / step**2)
    for i, j in combinations(range(m), 2):
        corners = [f(at + a * E[i] + b * E[j]) for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
        H[i, j] = H[j, i] = (corners[0] - corners[1] - corners[2] + corners[3]) / (4 * step**2)
    return Quadratic((up - down) / (2 * step), H)


# ---- separability ---------------------------------------------------------------------------------------------


class Separability(NamedTuple):
    """The variance of f that no sum of functions of one variable each has: estimate, standard error, share of all."""

    interaction: float
    standard_error: float
    share: float


def separability(f: Loss, low: Reals, high: Reals, *, samples: int, rng: np.random.Generator) -> Separability:
    """Over a box, for independent uniform variables: V - sum V_j, with V = Var f and V_j = Var E[f | s_j].

    The estimate is the mean of f(x) (f(x) + (m - 1) f(z) - sum of f(z with x_j for z_j)) over independent pairs of
    points x, z: m + 2 evaluations each.  The mean of f is taken off first, which leaves the expectation, to the order
    1 / samples, and lessens the variance.  It is 0 in the mean for a sum of functions of one variable each (the index
    of the analysis of variance, as LAPQ's code has it), and may come out below 0.  share: index / V; NaN for V = 0.

    Raises ArgumentError for fewer than 2 samples, and bounds that do not fit.

    >>> found = separability(lambda s: float(s.sum()), np.zeros(3), np.ones(3), samples=9, rng=np.random.default_rng(0))
    >>> abs(found.interaction) < 1e-12
    True
    """
    low, high = np.asarray(low, float), np.asarray(high, float)
    if samples < 2 or low.shape != high.shape or low.ndim != 1 or not np.all(low <= high):
        got = f"samples={samples}, bounds of shapes {low.shape} and {high.shape}"
        raise ArgumentError(complaint(got, "at least 2, low <= high, both of shape (m,)", "separability"))
    m = len(low)
    x, z = low + (high - low) * rng.uniform(size=(2, samples, m))
    at_x, at_z = (np.array([f(s) for s in points]) for points in (x, z))
    swapped = np.zeros(samples)
    for j in range(m):
        mixed = z.copy()
        mixed[:, j] = x[:, j]
        swapped += [f(s) for s in mixed]
    mean = np.concatenate([at_x, at_z]).mean()
    g = (at_x - mean) * (at_x + (m - 1) * at_z - swapped)
    V = float(np.concatenate([at_x, at_z]).var(ddof=1))
    index = float(g.mean())
    return Separability(index, float(g.std(ddof=1)) / samples**0.5, index / V if V else float("nan"))
