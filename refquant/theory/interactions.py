"""The loss of a network of which some sources are quantized: alone, in pairs, in sets; measured, and to second order.

Letters: L_A the loss with the sources A quantized, L_0 with none; z the logits, g and S the gradient and the Hessian of
the loss by them, dz_i = J dW_i how the error of source i moves them to first order.

- CLADO's pair term (Deng et al. 2023), L_ij - L_i - L_j + L_0, is to second order dW_i^T H_ij dW_j, and with the
  Gauss-Newton matrix for H dz_i^T S dz_j.  Other images than those it was measured on have other terms.
- AdaQuant's additivity (Hubara et al. 2021): L_A - L_0 is about the sum of the L_i - L_0: no pair terms.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ..arith.blas import one_blas_thread
from ..errors import ArgumentError, complaint
from ..net.gradient import Tape, pushforward
from ..net.graph import Graph
from ..net.loss import cross_entropy
from ..net.op import Array
from ..net.plan import QuantPlan
from .curvature import logits_of
from .pair import Pair, Source, images_of, pair_of

__all__ = ["Losses", "PairTerms", "Scatter", "additivity", "losses_of", "pair_terms"]

Reals = NDArray[np.float64]

# ---- losses ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Losses:
    """The cross-entropy of some images as a function of what is quantized: L_A, measured."""

    pair: Pair
    feeds: Mapping[str, Array]
    labels: NDArray[np.int64]

    @property
    def sources(self) -> list[Source]:
        """All that the plan quantizes, in order."""
        return list(self.pair.sources)

    def tape(self, quantized: Collection[Source]) -> Tape:
        """The run with these sources quantized."""
        with one_blas_thread():
            return self.pair.run(self.feeds, self.pair.graph.output, quantized)

    def __call__(self, quantized: Collection[Source]) -> float:
        """L_A."""
        return cross_entropy(self.tape(quantized).output, self.labels).value


def losses_of(graph: Graph, plan: QuantPlan, x: ArrayLike, labels: ArrayLike) -> Losses:
    """`Losses` of a network, a plan, images and their labels; all images are held at once.

    Raises ArgumentError for images, labels and plans that do not fit.

    >>> from refquant.zoo import load_data, load_network
    >>> graph, data = load_network("mlp"), load_data("fashion-mnist").test
    >>> round(losses_of(graph, QuantPlan(), data.x[:50], data.y[:50])([]), 3) < 1
    True
    """
    found = Losses(pair_of(graph, plan), images_of(graph, x), np.asarray(labels))
    cross_entropy(logits_of(found.tape(()), "losses_of"), found.labels)
    return found


# ---- pair terms -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PairTerms:
    """What sources add to the loss, alone and in pairs; all of shape (sources, sources), symmetric.

    measured: on the diagonal L_i - L_0, beside it L_ij - L_i - L_j + L_0.  model: their second-order forecasts at the
    float network, g dz_i + dz_i^T S dz_i / 2 and dz_i^T S dz_j, with dz_i = J dW_i and g the gradient by the logits.
    """

    sources: Sequence[Source]
    measured: Reals
    model: Reals

    def forecast(self, terms: Reals, chosen: Collection[Source], *, pairs: bool) -> float:
        """L_A - L_0 from such terms: the sum over i in A, and over pairs in A if wanted."""
        at = [self.sources.index(source) for source in chosen]
        block = terms[np.ix_(at, at)]
        return float(np.trace(block) + (np.triu(block, 1).sum() if pairs else 0.0))


def pair_terms(losses: Losses, kind: str = "weight") -> PairTerms:
    """Single and pair terms of the sources of one kind, "weight" or "activation": a run for every pair.

    The model takes an activation's error to be that at its float value.

    >>> from refquant.zoo import load_data, load_network
    >>> data = load_data("fashion-mnist").test
    >>> pair_terms(losses_of(load_network("mlp"), QuantPlan(), data.x[:2], data.y[:2])).measured.shape
    (0, 0)
    """
    sources = [source for source in losses.sources if source.kind == kind]
    n, zero, float_run = len(sources), losses(()), losses.tape(())
    alone = [losses([source]) - zero for source in sources]
    measured = np.diag(np.array(alone, dtype=float)) if n else np.zeros((0, 0))
    for i, j in combinations(range(n), 2):
        both = losses([sources[i], sources[j]]) - zero
        measured[i, j] = measured[j, i] = both - alone[i] - alone[j]
    loss = cross_entropy(float_run.output, losses.labels)
    dz = [
        pushforward(float_run, {losses.pair.sources[s]: _error(losses, float_run, s)})[float_run.result]
        for s in sources
    ]
    model = np.array([[np.sum(a * loss.curvature(b)) for b in dz] for a in dz]).reshape(n, n)
    np.fill_diagonal(model, [np.sum(loss.cotangent * a) + np.sum(a * loss.curvature(a)) / 2 for a in dz])
    return PairTerms(sources, measured, model)


def _error(losses: Losses, float_run: Tape, source: Source) -> Array:
    """What quantization adds to the value of a source, with all else float."""
    value = losses.pair.sources[source]
    if source.kind == "activation":
        x, way = float_run.values[source.name], losses.pair.through[source.name]
        params = {role: losses.pair.params[name] for role, name in way.params.items()}
        return np.asarray(way.op.forward(way.attrs, params, [x]) - x)
    return np.asarray(losses.pair.params[value].astype(np.float64) - losses.pair.graph.arrays[value])


# ---- AdaQuant's additivity ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scatter:
    """Loss increases of some sets of sources: the sum of those of their members alone, and measured together."""

    sums: Reals
    together: Reals

    @property
    def residual(self) -> float:
        """Root mean square of (together - sum) over that of together; NaN where nothing increases at all."""
        scale = float(np.sqrt(np.mean(self.together**2)))
        return float(np.sqrt(np.mean((self.together - self.sums) ** 2))) / scale if scale else float("nan")

    @property
    def rank_correlation(self) -> float:
        """Spearman's; NaN where one side is constant."""
        if np.ptp(self.sums) == 0 or np.ptp(self.together) == 0:
            return float("nan")
        return float(stats.spearmanr(self.sums, self.together).statistic)

    @property
    def slope(self) -> float:
        """The factor by which sums are best multiplied; above 1 where errors add up to more than their sum."""
        energy = float(np.sum(self.sums**2))
        return float(np.sum(self.sums * self.together)) / energy if energy else float("nan")


def additivity(losses: Losses, sets: Sequence[Collection[Source]]) -> Scatter:
    """The scatter of some sets of sources: a run for each of them, and for each source in them.

    Raises ArgumentError for no sets.

    >>> from refquant.zoo import load_data, load_network
    >>> data = load_data("fashion-mnist").test
    >>> found = additivity(losses_of(load_network("mlp"), QuantPlan(), data.x[:2], data.y[:2]), [[]])
    >>> found.sums.tolist(), found.together.tolist()
    ([0.0], [0.0])
    """
    if not sets:
        raise ArgumentError(complaint("no sets", "at least one", "additivity"))
    zero = losses(())
    alone = {source: losses([source]) - zero for source in dict.fromkeys(s for some in sets for s in some)}
    sums = [sum(alone[source] for source in some) for some in sets]
    return Scatter(np.array(sums, dtype=float), np.array([losses(some) - zero for some in sets]))
