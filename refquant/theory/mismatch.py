"""How often quantization changes the class, within the noise model: two bounds and an estimate.

Letters: z the logits, y the float network's class, g_i = (z_y + m_y) - (z_i + m_i) the gap to class i with the model's
mean errors m added; S_i the noise of z_i - z_y, a sum of independent uniform terms, v_i its variance; the class changes
only if S_i >= g_i for some i != y, so the probability is at most the sum over i of P(S_i >= g_i).

- Chebyshev: S_i is symmetric, so P(S_i >= g) <= v_i / (2 g^2).  In steps Delta this is the bound of Sakr, Kim and
  Shanbhag 2017 (Analytical guarantees on numerical precision of deep neural networks, theorem 1), for v_i is the sum
  of Delta^2/12 |d(z_i - z_y)/dh|^2 over weights and activations h.
- Hoeffding: a term of variance sigma^2 lies in an interval of squared width 12 sigma^2, so P(S_i >= g) <=
  exp(-g^2 / (6 v_i)).
- Gaussian: P(S_i >= g) about Q(g / sqrt(v_i)), as if S_i were normal.

The first two are bounds within the model: for noise that is what the model says, to first order.  Errors of rounding
are not noise: for a given network and image they bound nothing (for that see the certified bounds).  The last is an
estimate, which can be too small even within the model.

Proofs: proofs/07_accumulation.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from ..errors import ArgumentError, complaint
from .forecast import Forecast
from .pair import Source

__all__ = ["TAILS", "Mismatch", "mismatch"]

Reals = NDArray[np.float64]


def _chebyshev(g: Reals, v: Reals) -> Reals:
    return v / (2 * g * g)


def _hoeffding(g: Reals, v: Reals) -> Reals:
    return np.asarray(np.exp(-g * g / (6 * v)))


def _gaussian(g: Reals, v: Reals) -> Reals:
    return np.asarray(ndtr(-g / np.sqrt(v)))


TAILS: dict[str, Callable[[Reals, Reals], Reals]] = {
    "chebyshev": _chebyshev,
    "hoeffding": _hoeffding,
    "gaussian": _gaussian,
}
"""P(S >= g) for a gap g > 0 and a variance v > 0: two bounds, and the estimate `gaussian`."""


@dataclass(frozen=True, eq=False)
class Mismatch:
    """The probability, image by image, that the class changes, within the model; each of shape (N,), at most 1.

    chebyshev_bound, hoeffding_bound: bounds within the model; gaussian_estimate: no bound.
    sakr: by source, its part of the mean of the Chebyshev bound before that is cut at 1; where means are 0 the parts
    of activations and of weights go with the squares of their steps, D_A^2 E_A and D_W^2 E_W.
    """

    chebyshev_bound: Reals
    hoeffding_bound: Reals
    gaussian_estimate: Reals
    sakr: Mapping[Source, float]


def _tail(name: str, g: Reals, v: Reals) -> Reals:
    """The sum over the other classes, at most 1; a gap that the mean errors have closed counts 1."""
    certain = np.where(g > 0, 0.0, 1.0)
    proper = (g > 0) & (v > 0)
    P = np.where(proper, TAILS[name](np.where(proper, g, 1.0), np.where(proper, v, 1.0)), certain)
    return np.asarray(np.minimum(P.sum(axis=1), 1.0))


def mismatch(forecast: Forecast) -> Mismatch:
    """The probabilities for a forecast of logits, with exact norms (no probes).

    Raises ArgumentError for a forecast by probes, and for a tensor that is no list of at least two logits.

    >>> from refquant.net.graph import Graph, InputSpec, Node
    >>> from refquant.net.plan import ActivationQuantizer, QuantPlan
    >>> from refquant.quant.spec import QuantSpec
    >>> from .forecast import forecast_error
    >>> dense = {"in_features": 2, "out_features": 2}
    >>> z = Node("z", "Gemm", ("x",), dense, {"weight": "w"})
    >>> graph = Graph("same", InputSpec("x", (2,)), "z", (z,), {"w": np.eye(2, dtype=np.float32)})
    >>> plan = QuantPlan(activations={"x": ActivationQuantizer(QuantSpec(4), np.array(1.0), np.array(0))})
    >>> found = mismatch(forecast_error(graph, plan, [[3.3, 1.3]], known=False))
    >>> found.chebyshev_bound.round(6).tolist()  # v = 2/12, g = 2
    [0.020833]
    >>> found.hoeffding_bound.round(6).tolist(), found.gaussian_estimate.round(9).tolist()
    ([0.018316], [4.82e-07])
    """
    where = "mismatch"
    if forecast.covariances is None:
        raise ArgumentError(complaint("a forecast by probes", "one with exact norms", where, "leave rng out"))
    z = forecast.output + forecast.mean
    if z.ndim != 2 or z.shape[1] < 2:
        raise ArgumentError(complaint(f"a tensor of shape {z.shape}", "(N, classes), at least 2 classes", where))
    N, C = z.shape
    y = forecast.output.argmax(axis=1)
    image = np.arange(N)
    others = np.array([[i for i in range(C) if i != top] for top in y])
    g = z[image, y][:, None] - z[image[:, None], others]

    def variance(M: Reals) -> Reals:
        """v of the other classes, shape (N, C - 1)."""
        own = np.diagonal(M, axis1=1, axis2=2)
        crossed = M[image[:, None], others, y[:, None]]
        v: Reals = own[image[:, None], others] + own[image, y][:, None] - 2 * crossed
        return np.maximum(v, 0.0)

    v = variance(sum(forecast.covariances.values(), np.zeros((N, C, C))))
    apart = np.where(g > 0, g, np.inf)
    sakr = {s: float(_chebyshev(apart, variance(M)).sum() / N) for s, M in forecast.covariances.items()}
    chebyshev, hoeffding, gaussian = (_tail(name, g, v) for name in TAILS)
    return Mismatch(chebyshev, hoeffding, gaussian, sakr)
