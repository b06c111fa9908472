"""Why a forecast is off: the way from what was measured to what was forecast, one assumption at a time.

Letters as in `forecast`; d_j the error that source j really injects, at its quantized value.

    measured                 E|e|^2
    derivatives              E|sum_j J_j d_j|^2                        kinks: derivatives in the places of secants
    sources apart            E|J m|^2 + sum_j E|J_j d_j|^2             between: no correlation of two tensors' errors
    elements apart           E|J m|^2 + sum_j sum_i E|J_j[:, i]|^2 d_ji^2     within: none of two elements' errors,
                                                                              but of equal ones
    the forecast             E|J m|^2 + sum_j sum_i |J_j[:, i]|^2 sigma_ji^2  power: d^2 is what the model says

with j over the sources with noise, and m what is known of the others.  The first step starts from the identity
(`secants`, mirrored), of which it is the linear part; so the four steps add up to the whole difference, in decibels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..arith.blas import one_blas_thread
from ..net.gradient import pushforward
from ..net.graph import Graph
from ..net.op import Array
from ..net.plan import QuantPlan
from .accumulate import mean_square
from .forecast import model_of
from .jacobian import probe_rows, second_moments
from .pair import Source, images_of, pair_of
from .ratios import decibels

__all__ = ["Excess", "excess"]


@dataclass(frozen=True)
class Excess:
    """The mean squared errors on the way, and the signal; each step in dB of SQNR, positive where it adds hope."""

    signal: float
    measured: float
    derivatives: float
    sources_apart: float
    elements_apart: float
    forecast: float

    def _step(self, before: float, after: float) -> float:
        return decibels(after / before) if before and after else 0.0

    @property
    def kinks(self) -> float:
        """dB by which slopes that change are missed."""
        return self._step(self.measured, self.derivatives)

    @property
    def between(self) -> float:
        """dB by which errors of different tensors are correlated, with each other and with what is known."""
        return self._step(self.derivatives, self.sources_apart)

    @property
    def within(self) -> float:
        """dB by which errors of one tensor's elements are correlated."""
        return self._step(self.sources_apart, self.elements_apart)

    @property
    def power(self) -> float:
        """dB by which the errors' squares are not the model's means and variances."""
        return self._step(self.elements_apart, self.forecast)

    @property
    def total(self) -> float:
        """dB by which the forecast SQNR is above the measured one."""
        return self._step(self.measured, self.forecast)


def excess(
    graph: Graph,
    plan: QuantPlan,
    x: ArrayLike,
    *,
    at: str | None = None,
    rng: np.random.Generator,
    probes: int = 8,
) -> Excess:
    """The way from the measured error at a tensor to the forecast one; arguments as for `forecast_error`.

    The last two steps are estimated by the same probes.  All images are held at once.

    >>> from refquant.zoo import load_data, load_network
    >>> graph, x = load_network("mlp"), load_data("fashion-mnist").calibration.x[:4]
    >>> found = excess(graph, QuantPlan(), x, rng=np.random.default_rng(0))
    >>> found.measured, found.forecast, found.total
    (0.0, 0.0, 0.0)
    """
    pair, feeds = pair_of(graph, plan), images_of(graph, x)
    where = at or pair.graph.output
    with one_blas_thread():
        model, moved = model_of(pair, feeds, where), pair.run(feeds, where, pair.sources)
        noisy = {s: value for s, (value, noise) in model.noises.items() if np.any(noise.variance)}
        d = {s: moved.values[v] - moved.points[v].inputs[0] for s, v in noisy.items()}
        known = {v: noise.mean for s, (v, noise) in model.noises.items() if s not in noisy}
        means = {v: noise.mean for v, noise in model.noises.values()}

        def pushed(errors: dict[str, Array]) -> float:
            return mean_square(pushforward(model.tape, errors)[model.tape.result]) if errors else 0.0

        rows = probe_rows(model.tape.output, probes, rng)

        def spread(squares: dict[Source, Array]) -> float:
            moments = second_moments(model.tape, rows, {s: (noisy[s], squares[s]) for s in noisy})
            return sum(float(np.trace(M, axis1=1, axis2=2).sum()) for M in moments.values()) / probes / len(rows[0])

        y, y_ = model.tape.values[where], moved.output
        return Excess(
            mean_square(y),
            mean_square(y_ - model.tape.output),
            pushed({**known, **{noisy[s]: e for s, e in d.items()}}),
            pushed(known) + sum(pushed({noisy[s]: e}) for s, e in d.items()),
            pushed(known) + spread({s: e * e for s, e in d.items()}),
            pushed(means) + spread({s: model.noises[s][1].variance for s in noisy}),
        )
